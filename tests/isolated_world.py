"""The point world as a simulator that another Python has: it needs `only_there`, and a process of its own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from point_world import PointEnvironment, PointWorld

from vlm4vla.core.recipes import EvaluationRecipe

made = 0


class IsolatedWorld(PointWorld):
    """As an `Isolated` benchmark of one's own."""

    software: Mapping[str, str] = {"only-there": "1.5"}

    def __init__(self, python: str | None) -> None:
        super().__init__()
        self.name, self.python = "isolated-world-v1", python

    def make_environment(self) -> PointEnvironment:
        global made
        importlib.import_module("only_there")
        made += 1
        assert made == 1, "its simulator can be once in a process"
        return PointEnvironment()

    def recipe(self) -> tuple[str, Mapping[str, Any]]:
        return "isolated_world:IsolatedWorld", {"python": self.python}


def benchmark(recipe: EvaluationRecipe) -> IsolatedWorld:
    return IsolatedWorld(os.environ["ONLY_THERE_PYTHON"])
