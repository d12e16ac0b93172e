"""A policy that is somebody's Python code: `module:name` or `file.py:name`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from vlm4vla.benchmarks.registry import load
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import RecipeError, RunError, VLAError
from vlm4vla.core.interfaces import ChunkPredictor
from vlm4vla.core.types import EpisodeResult, Observation


class ModulePolicy:
    """What stands at an address: an object with `predict_chunk`, a callable without arguments that makes one, or a
    function from observations to actions [observations, at least `execute`, 7] in the benchmark's own convention.

    Whatever their code raises is a RunError that says where.
    """

    def __init__(self, address: str, benchmark: ActionSpec, *, execute: int) -> None:
        """Raises: RecipeError for an address where nothing of this kind is, RunError for what their code raises."""
        self._address = address
        found = self._call(self._found)
        if isinstance(found, type) or (not hasattr(found, "predict_chunk") and _takes(found, 0)):
            found = self._call(found)
        if isinstance(found, ChunkPredictor):
            self._predict = found.predict_chunk
            self.action_spec, self.horizon = found.action_spec, found.horizon
        elif callable(found) and _takes(found, 1):
            self._predict = found
            self.action_spec = getattr(found, "action_spec", benchmark)
            self.horizon = execute
        else:
            raise RecipeError(
                f"{address}: {type(found).__name__} is no policy: it needs action_spec, horizon and predict_chunk, or "
                "must be a function of a list of observations (docs/adding.md, A policy)"
            )
        self._policy = found
        self.needs = tuple(getattr(found, "needs", ()))
        self.draws_noise = bool(getattr(found, "draws_noise", False))
        file = address.rpartition(":")[0]
        source = file if file.endswith(".py") else sys.modules[file].__file__
        self.sha256 = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else ""
        self.version = str(getattr(found, "version", ""))

    def predict_chunk(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch horizon 7"]:
        """Theirs. Raises: RunError saying where their code broke, or what is wrong with the result."""
        chunks = np.asarray(self._call(self._predict, list(observations)))
        expected = (len(observations), self.horizon, 7)
        fits = chunks.ndim == 3 and chunks.dtype.kind in "iuf" and chunks.shape[::2] == expected[::2]
        if not fits or chunks.shape[1] < self.horizon:
            raise RunError(
                f"{self._address}: it returned {chunks.dtype} {chunks.shape}; floats {expected} are expected, a chunk "
                "for each observation"
            )
        return chunks[:, : self.horizon].astype(np.float32)

    def end_episode(self, episode: str, result: EpisodeResult | None) -> None:
        """Theirs, when they have one."""
        end = getattr(self._policy, "end_episode", None)
        if end is not None:
            self._call(end, episode, result)

    def _found(self) -> Any:
        file, _, name = self._address.rpartition(":")
        if not file.endswith(".py"):
            return load(self._address)
        if not Path(file).is_file():
            raise RecipeError(f"{file}: there is no such file")
        spec = importlib.util.spec_from_file_location(f"_policy_{Path(file).stem}", file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise RecipeError(f"{file}: it has no {name!r} at its top level")
        return getattr(module, name)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except VLAError:
            raise
        except (Exception, SystemExit) as error:  # somebody else's code may raise anything
            frames = traceback.extract_tb(error.__traceback__)
            where = next(
                (f for f in reversed(frames) if "site-packages" not in f.filename and f.filename != __file__),
                frames[-1],
            )
            raise RunError(
                f"{self._address}: its code raised {type(error).__name__}: {error} ({where.filename}:{where.lineno}, "
                f"in {where.name}). What was recorded is kept: the same command goes on"
            ) from error


def _takes(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True
