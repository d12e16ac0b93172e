"""Real simulators that break for real, once: a benchmark around another, for worker processes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.benchmarks.registry import load
from vlm4vla.core.interfaces import Benchmark
from vlm4vla.core.types import EpisodeSpec, Observation, Step


class LosesContext:
    """In the middle of the first episode the OpenGL context is destroyed, while `file` is not there."""

    def __init__(self, factory: str, arguments: Mapping[str, Any], file: str) -> None:
        self._arguments = {"factory": factory, "arguments": dict(arguments), "file": file}
        self.inner: Benchmark = load(factory)(**arguments)
        self.name, self.action_spec = self.inner.name, self.inner.action_spec

    def episodes(self) -> Sequence[EpisodeSpec]:
        return self.inner.episodes()

    def make_environment(self) -> BreakingEnvironment:
        return BreakingEnvironment(self.inner.make_environment(), Path(self._arguments["file"]))

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        return "faulty_simulators:LosesContext", self._arguments


class BreakingEnvironment:
    """Lazy, as all simulators here are."""

    def __init__(self, inner: Any, file: Path) -> None:
        self._inner, self._file, self._steps = inner, file, 0

    def reset(self, episode: EpisodeSpec) -> Observation:
        self._steps = 0
        observation: Observation = self._inner.reset(episode)
        return observation

    def step(self, action: np.ndarray) -> Step:
        completed = self.advance(action)
        return Step(self.observe(), completed)

    def advance(self, action: np.ndarray) -> int:
        self._steps += 1
        if self._steps == 3 and not self._file.exists():
            self._file.touch()
            destroy_context()
        completed: int = self._inner.advance(action)
        return completed

    def observe(self) -> Observation:
        observation: Observation = self._inner.observe()
        return observation

    def close(self) -> None:
        self._inner.close()


def destroy_context() -> None:
    """What a reset of the graphics driver does to a program: its context is gone."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetCurrentContext.restype = egl.eglGetCurrentDisplay.restype = ctypes.c_void_p
    context, display = egl.eglGetCurrentContext(), egl.eglGetCurrentDisplay()
    assert context and display
    egl.eglMakeCurrent(ctypes.c_void_p(display), None, None, None)
    egl.eglDestroyContext(ctypes.c_void_p(display), ctypes.c_void_p(context))
