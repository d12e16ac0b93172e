"""Optional copies of the metrics in TensorBoard, Weights & Biases or Trackio, looked for only when asked for.

metrics.jsonl is the record; a mirror is for looking at.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlm4vla.core.errors import RunError, unknown_name


class Mirror(Protocol):
    """Where metrics are copied to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of a step, by names such as `train/loss`."""
        ...

    def close(self) -> None:
        """Flush and end the run."""
        ...


class TensorBoard:
    """Event files in `folder/tensorboard`."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        module = _load("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("recipe", f"{name}\n\n    {config}")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class Tracker:
    """Weights & Biases, or Trackio, which has the same interface; project `vlm4vla`."""

    def __init__(self, package: str, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self._module = _load(package, package)
        place = {"dir": str(folder)} if package == "wandb" else {}
        self._module.init(project="vlm4vla", name=name, config=dict(config), **place)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One record."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._module.finish()


MIRRORS = ("tensorboard", "wandb", "trackio")


def open_mirrors(names: Sequence[str], folder: Path, *, name: str, config: Mapping[str, Any]) -> list[Mirror]:
    """Start the mirrors with these names. Raises: RecipeError for an unknown one, RunError for one not installed."""
    check_mirrors(names)
    return [
        TensorBoard(folder, name, config) if asked == "tensorboard" else Tracker(asked, folder, name, config)
        for asked in names
    ]


def check_mirrors(names: Sequence[str]) -> None:
    """Raises: RecipeError for an unknown mirror, RunError for one that is not installed."""
    for asked in names:
        if asked not in MIRRORS:
            raise unknown_name("mirror", asked, MIRRORS)
        if importlib.util.find_spec(asked) is None:
            raise RunError(f"mirror {asked!r} is not installed; pip install {asked}")


def _load(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(f"mirror {package!r} is not installed ({error}); pip install {package}") from error
