"""Run folders: a trial's or a tuning's own is named by the fingerprint of its recipe, so the same recipe finds it and
continues.

The layout is described in docs/conventions.md. Everything is written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

from vlm4vla import __version__
from vlm4vla.benchmarks.software import processor
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.recipes import Trial, TuneRecipe, fingerprint, from_json, to_json
from vlm4vla.studies.energy import EnergyMeter

Phase = Literal["demonstrations", "train", "evaluate"]
Recipe = TypeVar("Recipe", Trial, TuneRecipe)
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "mujoco")
_OPTIONAL = ("peft",)
_SOFTWARE = ("versions", "commit", "dirty")
_LOCK_SECONDS = 10.0
"""A process that was just killed takes a moment to let go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall time by phase, over all resumes."""

    demonstrations: float = 0.0
    """Zero where another trial had made them already."""
    train: float = 0.0
    evaluate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joules:
    """What the machine spent by phase, over all resumes, as `studies.energy` reads it."""

    demonstrations: float = 0.0
    train: float = 0.0
    evaluate: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a trial is: status.json."""

    state: Literal["running", "done", "failed"]
    """`running` is also what an interrupted trial says."""
    phase: Phase | None = None
    """The last one begun."""
    episodes: int = 0
    """How many its evaluations have in all; 0 before they are listed."""
    error: str | None = None
    seconds: Seconds = Seconds()
    joules: Joules | None = None
    """None where they could not be read for all of these seconds."""


class TrialRun:
    """A trial's folder while this process works on it, locked. Made by `RunStore.open`; leaving it records an error."""

    def __init__(self, folder: Path, lock: int, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self.lock = lock
        """File descriptor; a child that inherits it keeps the folder locked when this process dies."""
        self._facts = facts
        self.status = read_status(folder) or Status(state="running")

    def is_done(self, *, evaluated: bool) -> bool:
        """Whether nothing is left to do, or nothing but the evaluation."""
        return self.status.state == "done" and (self.status.phase == "evaluate" or not evaluated)

    def begin(self) -> None:
        """Say that work goes on, and with which software if that has changed."""
        path = self.folder / "provenance.json"
        kept, now = read_json(path), provenance(self._facts)
        last = [kept, *kept.get("continued", [])][-1]
        if any(last[name] != now[name] for name in _SOFTWARE):
            kept.setdefault("continued", []).append({name: now[name] for name in (*_SOFTWARE, "started")})
            write_json(path, kept)
        self.update(state="running", error=None)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Time spent inside counts for this phase, also when it ends in an error."""
        self.update(phase=name)
        start, before = time.monotonic(), getattr(self.status.seconds, name)
        metered = Joules() if self.status.seconds == Seconds() else self.status.joules
        meter = EnergyMeter()
        try:
            with meter:
                yield
        finally:
            spent = round(before + time.monotonic() - start, 3)
            joules = None
            if metered is not None and meter.joules is not None:
                whole = round(getattr(metered, name) + meter.joules, 1)
                joules = dataclasses.replace(metered, **{name: whole})
            self.update(seconds=dataclasses.replace(self.status.seconds, **{name: spent}), joules=joules)

    def update(self, **changes: Any) -> None:
        """Replace fields of the status."""
        self.status = dataclasses.replace(self.status, **changes)
        write_json(self.folder / "status.json", to_json(self.status))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupted trial has not failed: the same command continues it.
        if error is not None and not isinstance(error, KeyboardInterrupt):
            self.update(state="failed", error=str(error) or type(error).__name__)


class RunStore:
    """Everything under one --out folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, recipe: Trial | TuneRecipe) -> Path:
        """A trial's folder, or a tuning's."""
        kind = "trials" if isinstance(recipe, Trial) else "tunings"
        return self.root / kind / fingerprint(recipe)

    def demonstrations(self, identity: str) -> Path:
        """Where demonstrations with this fingerprint are packed."""
        return self.root / "demonstrations" / identity

    @contextmanager
    def open(
        self,
        recipe: Trial | TuneRecipe,
        *,
        facts: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        patience: float = _LOCK_SECONDS,
    ) -> Iterator[TrialRun]:
        """Lock a trial's or a tuning's folder, made if it is new, for work.

        `facts` are what the result depends on beside the recipe and must stay the same; `notes` are recorded with
        them when the folder is new; `patience`: seconds to wait for another process.

        Raises: RunError when another process works on it, when its recipe or the facts
        are others.
        """
        folder = self.folder(recipe)
        trial = isinstance(recipe, Trial)
        what = f"the trial {recipe.name!r}" if isinstance(recipe, Trial) else "this tuning"
        with locked(folder / ".lock", what=what, patience=patience) as lock:
            _keep_recipe(folder / ("trial.json" if trial else "tuning.json"), recipe)
            _keep_provenance(folder / "provenance.json", facts, notes or {})
            with TrialRun(folder, lock, facts) as run:
                yield run


@contextmanager
def locked(path: Path, *, what: str, patience: float = _LOCK_SECONDS) -> Iterator[int]:
    """Hold a file's lock; it ends with the process, however that ends. Gives its file descriptor.

    Raises: RunError when another process holds it for longer than `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read().strip() or "unknown"
                    raise RunError(
                        f"{path.parent}: another process (id {owner}) is working on {what}. "
                        "Wait for it or end it, or choose another --out folder."
                    ) from None
                time.sleep(0.1)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def read_status(folder: Path) -> Status | None:
    """A trial's status; None before there is one. Raises: RunError when it is damaged."""
    path = folder / "status.json"
    if not path.exists():
        return None
    try:
        return from_json(Status, read_json(path), where=str(path))
    except RecipeError as error:
        raise RunError(
            f"{error}. It was written by another version, or damaged; delete it to continue."
        ) from error


def read_trial(folder: Path) -> Trial:
    """The recipe of a trial's folder. Raises: RunError when it is missing or damaged."""
    return _read_recipe(folder / "trial.json", Trial)


def read_tuning(folder: Path) -> TuneRecipe:
    """The recipe of a tuning's folder. Raises: RunError when it is missing or damaged."""
    return _read_recipe(folder / "tuning.json", TuneRecipe)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: RunError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing, so {path.parent} is no run folder") from error
    except ValueError as error:
        raise RunError(
            f"{path}: damaged ({error}); restore it, or delete its folder and start again"
        ) from error
    if not isinstance(data, dict):
        raise RunError(f"{path}: damaged (no JSON object); restore it, or delete its folder and start again")
    return cast(dict[str, Any], data)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole: readers see the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def provenance(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Software and machine as they are now, and the given facts."""
    versions = {"vlm4vla": __version__, "python": platform.python_version()}
    libraries = [*_LIBRARIES, *(name for name in _OPTIONAL if find_spec(name))]
    versions |= {name: metadata.version(name) for name in libraries}
    commit, dirty = _checkout()
    return {
        "versions": versions,
        "commit": commit,
        "dirty": dirty,
        "platform": platform.platform(),
        "machine": processor(),
        "cpus": os.cpu_count(),
        **facts,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _keep_recipe(path: Path, recipe: Trial | TuneRecipe) -> None:
    if not path.exists():
        write_json(path, to_json(recipe))
    elif (
        _read_recipe(path, Trial) if isinstance(recipe, Trial) else _read_recipe(path, TuneRecipe)
    ) != recipe:
        raise RunError(
            f"{path}: holds another recipe than its folder's name says; it was changed by hand. "
            "Restore it, or delete the folder and start again."
        )


def _read_recipe(path: Path, kind: type[Recipe]) -> Recipe:
    try:
        return from_json(kind, read_json(path), where=str(path))
    except RecipeError as error:
        raise RunError(f"{error}. It was written by another version, or damaged.") from error


def _keep_provenance(path: Path, facts: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    if not path.exists():
        write_json(path, {**provenance(facts), **notes})
        return
    kept = read_json(path)
    changed = [name for name, value in facts.items() if kept.get(name) != value]
    if changed:
        described = ", ".join(f"{name} {kept.get(name)} then, {facts[name]} now" for name in changed)
        raise RunError(
            f"{path.parent}: this was begun with something else ({described}). "
            "Choose another --out folder, or delete this one to begin it again."
        )


def _checkout() -> tuple[str | None, bool | None]:
    """Commit of the checkout this package runs from, and whether it has changes; None where there is no checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or not (root / "src" / "vlm4vla").is_dir():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "src"))
    except (OSError, subprocess.CalledProcessError):  # no git here, or it does not trust the folder
        return None, None
