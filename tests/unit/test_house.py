"""The rules of the house that neither ruff, mypy nor import-linter can check."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm4vla import __version__
from vlm4vla.backbones.registry import BACKBONES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "vlm4vla"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FAMILY_WORDS = re.compile(r"qwen|gemma|kosmos|internvl|smolvlm|siglip", re.IGNORECASE)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def tracked_text() -> Iterator[tuple[str, str]]:
    for path in tracked_files():
        try:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_torch_distributed_lives_in_one_file() -> None:
    users = {
        relative(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if any(name.startswith("torch.distributed") for name in imported_modules(node))
        or (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed"))
    }
    assert users <= {"training/distributed.py"}


def test_nothing_is_unpickled_or_evaluated() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            modules = {name.split(".")[0] for name in imported_modules(node)}
            if modules & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}:
                found.append(f"{relative(path)}:{node.lineno} imports {modules}")  # type: ignore[attr-defined]
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if (
                    call in {"eval", "exec", "torch.load", "os.system"}
                    or keywords.get("allow_pickle") == "True"
                ):
                    found.append(f"{relative(path)}:{node.lineno} calls {call}")
    assert not found


def test_one_place_catches_everything() -> None:
    broad = {
        relative(path)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not (node.body and isinstance(node.body[-1], ast.Raise))
    }
    assert broad <= {
        "benchmarks/workers.py"
    }  # where a broken simulator becomes an EpisodeResult with an error


def strings_and_names(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string that is no docstring, and every identifier."""
    docstrings = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def test_vlm_families_are_known_to_backbones_only() -> None:
    """Elsewhere a VLM is a registered name, e.g. a preset's default; nobody branches on what it is."""
    registered = sorted(BACKBONES, key=len, reverse=True)
    found = []
    for path in SOURCES:
        if relative(path).startswith("backbones/"):
            continue
        for line, text in strings_and_names(tree(path)):
            for name in registered:
                text = text.replace(name, "")
            if FAMILY_WORDS.search(text):
                found.append(f"{relative(path)}:{line}: {text!r}")
    assert not found


WITHOUT_TORCH = ("vlm4vla.core", "vlm4vla.benchmarks", "vlm4vla.reports")
WITHOUT_TORCH_IN_STUDIES = ("presets", "paper", "runs")


def modules_below(package: str) -> list[str]:
    folder = PACKAGE.joinpath(*package.split(".")[1:])
    return [
        ".".join(("vlm4vla", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(folder.rglob("*.py"))
    ]


def loaded_after_import(modules: list[str]) -> set[str]:
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(*(name for name in sys.modules if '.' not in name))"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return set(outcome.stdout.split())


def test_benchmarks_reports_and_recipes_load_without_torch() -> None:
    modules = [name for package in WITHOUT_TORCH for name in modules_below(package)]
    modules += [
        f"vlm4vla.studies.{name}"
        for name in WITHOUT_TORCH_IN_STUDIES
        if (PACKAGE / "studies" / f"{name}.py").exists()
    ]
    assert loaded_after_import(modules).isdisjoint({"torch", "transformers"})


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "mujoco", "scipy", "av", "tokenizers"}
    assert loaded_after_import(["vlm4vla.cli", "vlm4vla"]).isdisjoint(heavy)


@pytest.mark.parametrize(
    "module",
    [
        name
        for name, path in zip(modules_below("vlm4vla"), SOURCES, strict=True)
        if ">>>" in path.read_text(encoding="utf-8")
    ],
)
def test_examples_in_docstrings(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_no_private_paths_and_no_package_hosts() -> None:
    paths = re.compile(r"(?<![\w.~$}/-])/(?:home|Users|root|work)/[A-Za-z]")
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|pytorch\.org/whl|anaconda\.org|index-url")
    found = [
        f"{name}: {match.group()}"
        for name, text in tracked_text()
        if name != "tests/unit/test_house.py"
        for pattern in (paths, hosts)
        for match in pattern.finditer(text)
    ]
    assert not found


def test_large_files_are_weights_pictures_reports_or_test_data() -> None:
    allowed = ("src/vlm4vla/backbones/weights/", "docs/images/", "docs/studies/", "tests/")
    found = {
        path.relative_to(ROOT).as_posix(): path.stat().st_size
        for path in tracked_files()
        if path.stat().st_size > 200_000 and not path.relative_to(ROOT).as_posix().startswith(allowed)
    }
    assert not found


def test_shipped_weights_stay_small() -> None:
    folder = PACKAGE / "backbones" / "weights"
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.safetensors")
    }
    assert all(size <= 3 * 2**20 for size in sizes.values()), sizes
    assert sum(sizes.values()) <= 15 * 2**20, sizes


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_has_an_exact_version() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    pins = [re.fullmatch(r"([A-Za-z0-9][\w.-]*)==(\d[\w.]*)", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    names = [normalized(pin.group(1)) for pin in pins if pin]
    assert len(names) == len(set(names))

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    needed = {normalized(re.split(r"[\s<>=!~;\[]", requirement)[0]) for requirement in wanted}
    assert needed <= set(names)


def test_version_is_told_once() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] in {__version__, "Unreleased"}


def test_continuous_integration_runs_what_the_readme_names() -> None:
    program = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^make .*$", program, re.MULTILINE)
    assert commands == ["make check", 'make simulators SIMULATORS="calvin libero"', "make test"]
    assert program.index("export VLM4VLA_REQUIRE=calvin,libero") < program.index("make test")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(command in readme for command in ("make check", "make test"))
