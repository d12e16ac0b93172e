"""Simulators: CPU time of a step, of looking at every step, of isolation in a process; and what a second worker brings.

All that is compared plays the same actions from the same state, and takes turns. CPU time is that of all processes
that take part; `throughput` is by the clock, and means something on idle cores alone. `noise` is how much two workers
differ that do the same; `messages` is what sending and receiving costs, at both ends, without that noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import support

from vlm4vla.benchmarks.osmesa import egl_works
from vlm4vla.benchmarks.pool import Lost, Pool
from vlm4vla.benchmarks.registry import BENCHMARKS, make_benchmark
from vlm4vla.benchmarks.simulators import SIMULATORS, interpreter
from vlm4vla.benchmarks.wire import Reply, Request
from vlm4vla.benchmarks.workers import ONE_THREAD, SOURCE_ROOT
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.interfaces import Benchmark
from vlm4vla.core.recipes import EvaluationRecipe

CHUNKS = {"calvin": 10, "libero": 10, "simpler": 4}
"""Actions that are carried out before the policy looks again."""
STEPS = {"calvin": 200, "libero": 60, "simpler": 40}
"""Twice in a round: one or two seconds' worth, and no more than LIBERO's 1,000 in all."""
LOOKING, ROUNDS = 20, 5
"""Steps of a round at each of which it is looked; rounds."""
WITHOUT_EGL = {"calvin": "tiny", "libero": "osmesa"}


class Bare:
    """`support/bare.py` at work."""

    def __init__(self, benchmark: Benchmark, python: str) -> None:
        factory, arguments = benchmark.recipe()
        reading, writing = os.pipe()
        asked = {"factory": factory, "arguments": dict(arguments), "path": [SOURCE_ROOT]}
        self._told = tempfile.TemporaryFile("a+")  # noqa: SIM115 - lives as long as the process
        program = Path(support.__file__).with_name("bare.py")
        self._process = subprocess.Popen(
            [python, str(program), str(writing), json.dumps(asked)],
            pass_fds=[writing],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._told,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )
        os.close(writing)
        self._answers = os.fdopen(reading)
        self._answer()

    def step(self, steps: int, chunk: int, measured: int) -> float:
        """Seconds of CPU time a step over the first `measured` ones, looking after every `chunk` of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps} {chunk} {measured}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._answers.close()
        self._told.close()

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            self._told.seek(0)
            raise SimulatorError(
                f"an environment ended: {(self._told.read().strip().splitlines() or [''])[-1]}"
            )
        return line


class Isolated:
    """Two workers of the rollout engine, each with its own generator of actions."""

    def __init__(self, benchmark: Benchmark, python: str | None) -> None:
        before = children()
        self._pool = Pool(benchmark, places=2, workers=2, time_limit=600, python=python)
        self._rngs = [np.random.default_rng(0) for _ in range(2)]
        for place in range(2):
            self._pool.send(Request(place=place, episode=benchmark.episodes()[0]))
        left = 2
        while left:
            left -= len(self._replies())
        self._processes = children() - before

    def step(self, steps: int, chunk: int, *places: int) -> tuple[float, float, float]:
        """Seconds by the clock; of CPU time a step, and of that on this end, while these places play `steps` each."""
        todo = {place: list(self._actions(place, steps, chunk)) for place in places}
        start, here, began = time.perf_counter(), time.process_time(), self._seconds()
        for place in places:
            self._pool.send(Request(place=place, actions=todo[place].pop(0)))
        left = sum(map(len, todo.values())) + len(places)
        while left:
            for reply in self._replies():
                left -= 1
                if todo[reply.place]:
                    self._pool.send(Request(place=reply.place, actions=todo[reply.place].pop(0)))
        taken, played = time.perf_counter() - start, steps * len(places)
        return taken, (self._seconds() - began) / played, (time.process_time() - here) / played

    def close(self) -> None:
        self._pool.close()

    def _actions(self, place: int, steps: int, chunk: int) -> np.ndarray:
        return self._rngs[place].uniform(-1, 1, (steps, 7)).astype(np.float32).reshape(-1, chunk, 7)

    def _replies(self) -> list[Reply]:
        events = self._pool.wait()
        for event in events:
            if isinstance(event, Lost):
                raise SimulatorError(event.error)
        return [event for event in events if isinstance(event, Reply)]

    def _seconds(self) -> float:
        return time.process_time() + sum(
            time.clock_gettime((~process << 3) | 2) for process in self._processes
        )


def children() -> set[int]:
    return {int(word) for word in Path("/proc/thread-self/children").read_text().split()}


def measured(name: str, python: str | None) -> Mapping[str, float]:
    entry = BENCHMARKS[SIMULATORS[name].benchmark]
    renderer = "" if name == "simpler" else "egl" if egl_works() else WITHOUT_EGL[name]
    changes = {**entry.defaults, "episodes_per_task": 1, **({"renderer": renderer} if renderer else {})}
    benchmark = make_benchmark(EvaluationRecipe(benchmark=SIMULATORS[name].benchmark, **changes))
    steps, chunk = STEPS[name], CHUNKS[name]
    bare, isolated = Bare(benchmark, python or sys.executable), Isolated(benchmark, python)
    found: dict[str, list[float]] = {}
    try:
        for _ in range(ROUNDS):
            alone = bare.step(steps, chunk, steps)
            one, first, here = isolated.step(steps, chunk, 0)
            other, second, _ = isolated.step(steps, chunk, 1)
            looking = bare.step(steps, 1, LOOKING)
            both, together, _ = isolated.step(steps, chunk, 0, 1)
            single = (first + second) / 2
            figures = {
                "cpu_ms_per_step": 1000 * alone,
                "cpu_ms_per_step_looking_always": 1000 * looking,
                "looking_always_over_chunks": looking / alone,
                "isolation_cpu_overhead_percent": 100 * (single / alone - 1),
                "isolation_messages_percent": 100 * 2 * here / alone,
                "isolation_noise_percent": 100 * abs(first / second - 1),
                "two_workers_throughput": (one + other) / both,
                "two_workers_throughput_by_cpu_time": 2 * single / together,
            }
            for label, value in figures.items():
                found.setdefault(label, []).append(value)
    finally:
        bare.close()
        isolated.close()
    return {f"{name}_{label}": statistics.median(values) for label, values in found.items()}


def main() -> None:
    options = support.arguments(__doc__)
    figures: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name in SIMULATORS:
        try:
            figures |= measured(name, interpreter(name))
        except SimulatorError as error:
            skipped[name] = str(error)
    support.publish("simulators", figures, options.json, skipped=skipped)


if __name__ == "__main__":
    main()
