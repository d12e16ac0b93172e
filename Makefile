# `make help` lists the targets. Every target works from nothing: it makes .venv first when that is missing or stale.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup check format test slow simulators test-simulators quickstart study simulator-study bench clean

STAMP := .venv/.installed
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet -c constraints.txt

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## .venv with exact versions of everything but the simulators (PYTHON=... picks the interpreter)
	@echo "setup: ready; activate with: source .venv/bin/activate"

check: $(STAMP) ## format, lint, types, import arrows, house rules and documents, line budget
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -p no:xdist tests/unit/test_house.py tests/unit/test_documents.py
	@find src -name '*.py' -exec cat {} + | wc -l | awk '{ printf "package: %d lines (budget: about 10000)\n", $$1 }'
	@find src -name '*.py' -exec wc -l {} + | awk '$$1 > 300 && $$2 != "total" { printf "  %d lines: %s (what noun hides in it?)\n", $$1, $$2 }'

format: $(STAMP) ## rewrite the files as `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP) ## every test that needs neither a GPU nor a network; CALVIN and LIBERO briefly, where they are installed
	$(BIN)/pytest -n 2 --dist loadscope

slow: $(STAMP) ## the tests marked slow: minutes each
	$(BIN)/pytest -m slow

# Where the models' repositories cannot be reached, a copy: CALVIN's are in tests/; make simulators SIMPLER=FOLDER.
SIMULATORS ?= calvin libero simpler
CALVIN ?= tests/assets/calvin.tar.xz
copy = $(if $(filter calvin,$1),--from $(CALVIN),$(if $(filter simpler,$1),$(addprefix --from ,$(SIMPLER))))
simulators: $(STAMP) ## install what is missing of CALVIN, LIBERO and SimplerEnv (SIMULATORS="calvin libero": of these)
	$(foreach name,$(SIMULATORS),$(BIN)/vlm4vla simulators install $(name) $(call copy,$(name)) &&) true

test-simulators: simulators ## all three simulators at work, none skipped: within twenty minutes on two cores
	VLM4VLA_REQUIRE=calvin,libero,simpler $(BIN)/pytest -n 2 --dist loadscope -m "not slow" \
		tests/integration/test_simpler.py tests/integration/test_calvin.py tests/integration/test_libero.py \
		tests/integration/test_simulator_faults.py

quickstart: $(STAMP) ## demonstrations, two VLMs, training, rollouts, report: runs/quickstart/report.html
	$(BIN)/vlm4vla quickstart --out runs/quickstart

study: $(STAMP) ## does training from scratch hurt, does freezing the vision encoder hurt: three seeds, about two hours
	$(BIN)/vlm4vla study mini --run --out runs/studies

# Of each simulator, what its scripted expert shows, and the name under which that is read.
shown_calvin = --scenes D --tasks open_drawer,turn_on_led --episodes 80
shown_libero = --tasks put_the_bowl_on_the_plate --episodes 60
shown_simpler = --tasks carrot,cube --episodes 200
source = $(if $(filter simpler,$1),bridge,$1)
# Without EGL another renderer draws; folder, benchmark and study are then called after it. RENDERER_calvin=tiny chooses.
instead = $(shell $(BIN)/python -c "from vlm4vla.benchmarks.osmesa import egl_works; egl_works() or print('$1')")
RENDERER_calvin = $(call instead,tiny)
RENDERER_libero = $(call instead,osmesa)
define scripted
	$(call drawn,$1,$(RENDERER_$1),runs/studies/scripted/$1$(addprefix -,$(RENDERER_$1)))

endef
define drawn
	$(if $2,@echo "simulator-study: $1 is drawn with $2 and called $1-$2")
	@[ -n "$$(ls $3 2>/dev/null)" ] || $(BIN)/vlm4vla simulators demonstrate $1 $3 $(shown_$1) $(addprefix --renderer ,$2)
	$(BIN)/vlm4vla study scripted-$1 --run --out runs/studies --data $(call source,$1)=$3 $(addprefix --renderer ,$2)

endef
simulator-study: simulators ## scripted demonstrations, training, closed loop, against chance, on each simulator
	$(foreach name,$(SIMULATORS),$(call scripted,$(name)))

bench: $(STAMP) ## speed and memory: every program in perf/, results in runs/bench/*.json
	@mkdir -p runs/bench
	@for program in perf/*.py; do \
		name=$$(basename $$program .py); echo "== $$name"; \
		$(BIN)/python $$program --json runs/bench/$$name.json || exit 1; \
	done

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# A machine without an NVIDIA GPU takes torch's CPU build where an index that pip knows offers one (the version with
# the local part "+cpu"), else the default build. Everything else is installed after it and finds torch satisfied.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=""; \
		for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
			if $$candidate -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
				>/dev/null 2>&1; then python=$$candidate; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "setup: found no usable Python 3.11, 3.12 or 3.13 (tried: $(or $(PYTHON),python3.11 python3.12 python3.13 python3))." >&2; \
			echo "Install one together with its venv module, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
			exit 1; \
		fi; \
		echo "setup: .venv with $$($$python --version)"; \
		$$python -m venv --clear .venv; \
	fi
	@echo "setup: installing the versions in constraints.txt (minutes the first time)"
	@$(PIP) --upgrade pip hatchling editables setuptools
	@torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then \
		$(PIP) "torch==$$torch"; \
	elif ! $(PIP) "torch==$$torch+cpu" >/dev/null 2>&1; then \
		echo "setup: no index that pip knows offers a CPU build of torch $$torch; installing the default build."; \
		echo "       On Linux it brings some GB of CUDA libraries. To avoid that, interrupt, set PIP_EXTRA_INDEX_URL to the"; \
		echo "       CPU index that PyTorch's installation page shows, and run the command again."; \
		$(PIP) "torch==$$torch"; \
	fi
	@$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@
