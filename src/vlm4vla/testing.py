"""Contracts as code: run these over whatever you plug in. Each raises ContractError: what is wrong, why it matters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from vlm4vla.benchmarks.rollout import task_and_tier
from vlm4vla.core.actions import ACTION_SIZE, GRIPPER, ActionSpec
from vlm4vla.core.errors import ContractError
from vlm4vla.core.interfaces import Benchmark, ChunkPredictor, Environment, LazyEnvironment, Outlined
from vlm4vla.core.types import EpisodeSpec, Observation

if TYPE_CHECKING:
    from vlm4vla.backbones.backbone import Backbone
    from vlm4vla.policies.vla import VLA

__all__ = ["ContractError", "check_backbone", "check_benchmark", "check_head", "check_policy"]

_Trace = list[tuple[Observation, int]]
"""Observations and goals completed: after the reset, then after every step."""


def check_benchmark(
    benchmark: Benchmark, *, steps: int = 5, raising: Float32[np.ndarray, "7"] | None = None
) -> None:
    """Check a benchmark and the environment it makes, on its first, middle and last episode.

    Every episode is played for `steps` repeatable actions: in a fresh environment, in one that played others before,
    and in a worker process; all must agree to the bit. `raising` is an action that raises what the camera sees move;
    given, its picture must move up, which an upside-down image does not.
    """
    specs = _check_episodes(benchmark)
    chosen = [specs[i] for i in sorted({0, len(specs) // 2, len(specs) - 1})]
    traces = {spec.id: _fresh_trace(benchmark, spec, steps) for spec in chosen}
    used = benchmark.make_environment()
    for spec in [*chosen, *reversed(chosen)]:
        _require_equal(
            traces[spec.id],
            list(_trace(used, spec, steps)),
            f"episode {spec.id!r} went differently in an environment that had played others before: its reset keeps "
            "history, so results would depend on the order and number of workers",
        )
        if isinstance(used, LazyEnvironment):
            _check_lazy(used, spec, traces[spec.id])
    used.close()
    _check_recipe(benchmark, specs)
    for spec in chosen:
        _require_equal(
            traces[spec.id],
            _trace_in_worker(benchmark, spec, steps),
            f"episode {spec.id!r} went differently in a worker process: it depends on something outside its setup",
        )
    if raising is not None:
        _check_upright(benchmark, chosen[0], raising, steps)


def check_policy(predictor: ChunkPredictor, observations: Sequence[Observation]) -> None:
    """Check a chunk predictor on at least two different observations."""
    _require(
        isinstance(predictor.action_spec, ActionSpec), "action_spec is no ActionSpec: nobody can compare it"
    )
    _require(predictor.horizon >= 1, f"horizon is {predictor.horizon}: a chunk has at least one action")
    _require(len(observations) >= 2, "check_policy needs at least two observations to compare rows")
    pixels = [observation.image.copy() for observation in observations]
    together = predictor.predict_chunk(observations)
    expected = (len(observations), predictor.horizon, ACTION_SIZE)
    _require(
        together.shape == expected and together.dtype == np.float32,
        f"predict_chunk gave {together.dtype} {together.shape}, expected float32 {expected}",
    )
    _require(bool(np.isfinite(together).all()), "an action is not finite: it would move a robot anywhere")
    _require(
        all(np.array_equal(a, o.image) for a, o in zip(pixels, observations, strict=True)),
        "predict_chunk changed the images it was given: others look at them too",
    )
    why = "results would depend on how many environments run side by side"
    _require(
        np.array_equal(together, predictor.predict_chunk(observations)),
        "the same observations gave another prediction: evaluations cannot be repeated",
    )
    _require(
        np.array_equal(together[::-1], predictor.predict_chunk(observations[::-1])),
        f"a row depends on its position in the batch; {why}",
    )
    for row, observation in zip(together, observations, strict=True):
        _require(
            np.array_equal(row, predictor.predict_chunk([observation])[0]),
            f"a row alone differs from the row in a batch; {why}",
        )


def check_head(vla: VLA, observations: Sequence[Observation], *, steps: int = 150) -> None:
    """Check an action head on a tiny, untrained VLA (`policies.contracts.check_head`)."""
    from vlm4vla.policies import contracts

    contracts.check_head(vla, observations, steps=steps)


def check_backbone(backbone: Backbone) -> None:
    """Check a VLM with the conformance battery (`policies.conformance`), as `vlm4vla models check` does."""
    from vlm4vla.policies.conformance import examine

    for finding in examine(backbone):
        _require(finding.passed, f"{finding.check}: {finding.measured}; {finding.why}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _check_episodes(benchmark: Benchmark) -> Sequence[EpisodeSpec]:
    _require(
        re.search(r"-v\d+$", benchmark.name) is not None,
        f"the name {benchmark.name!r} ends in no version like -v1: numbers of two versions would be mixed up",
    )
    _require(
        isinstance(benchmark.action_spec, ActionSpec), "action_spec is no ActionSpec: nobody can compare it"
    )
    specs = benchmark.episodes()
    _require(len(specs) > 0, "there are no episodes")
    ids = [spec.id for spec in specs]
    _require(len(set(ids)) == len(ids), "episode ids are not unique: one result would overwrite another")
    _require(
        list(specs) == list(benchmark.episodes()),
        "episodes() differs from call to call: an interrupted evaluation could not continue",
    )
    if isinstance(benchmark, Outlined):
        made, told = (
            [(s.id, task_and_tier(s), len(s.goals), s.max_steps_per_goal) for s in listed]
            for listed in (specs, benchmark.outline())
        )
        _require(
            made == told,
            "outline() tells of other episodes than episodes(): a report would call them invented",
        )
    for spec in specs:
        _require(len(spec.goals) > 0, f"episode {spec.id!r} has no goal")
        _require(spec.max_steps_per_goal >= 1, f"episode {spec.id!r} allows {spec.max_steps_per_goal} steps")
        _require(
            all(goal.task and goal.instruction for goal in spec.goals),
            f"episode {spec.id!r} has a goal without task or instruction",
        )
        _require(
            json.loads(json.dumps(spec.setup)) == spec.setup,
            f"the setup of episode {spec.id!r} is not plain JSON (lists, no tuples; text keys): a worker process "
            "would see another one",
        )
    return specs


def _check_recipe(benchmark: Benchmark, specs: Sequence[EpisodeSpec]) -> None:
    from vlm4vla.benchmarks.registry import load

    factory, arguments = benchmark.recipe()
    again: Benchmark = load(factory)(**json.loads(json.dumps(arguments)))
    _require(
        again.name == benchmark.name
        and again.action_spec == benchmark.action_spec
        and list(again.episodes()) == list(specs),
        f"recipe() leads to another benchmark ({again.name}): workers would play other episodes than are counted",
    )


def _trace(environment: Environment, spec: EpisodeSpec, steps: int) -> Iterator[tuple[Observation, int]]:
    """What an episode shows and counts under repeatable random actions."""
    first = environment.reset(spec)
    pixels = first.image.copy()
    _check_observation(first, spec, 0)
    yield first, 0
    completed = 0
    for action in _actions(steps):
        step = environment.step(action)
        _require(
            completed <= step.goals_completed <= len(spec.goals),
            f"episode {spec.id!r}: goals completed went from {completed} to {step.goals_completed} of "
            f"{len(spec.goals)}; they count up and never fall",
        )
        completed = step.goals_completed
        _check_observation(step.observation, spec, completed)
        yield step.observation, completed
    _require(
        np.array_equal(pixels, first.image),
        f"episode {spec.id!r}: a later step changed an observation given out earlier; return a fresh array each time",
    )


def _fresh_trace(benchmark: Benchmark, spec: EpisodeSpec, steps: int) -> _Trace:
    environment = benchmark.make_environment()
    trace = list(_trace(environment, spec, steps))
    environment.close()
    return trace


def _check_lazy(environment: LazyEnvironment, spec: EpisodeSpec, expected: _Trace) -> None:
    environment.reset(spec)
    completed = 0
    for action in _actions(len(expected) - 1):
        completed = environment.advance(action)
    _require_equal(
        expected[-1:],
        [(environment.observe(), completed)],
        f"episode {spec.id!r} went differently with advance() than with step(): results would depend on who looks",
    )


def _trace_in_worker(benchmark: Benchmark, spec: EpisodeSpec, steps: int) -> _Trace:
    from vlm4vla.benchmarks.pool import Lost, Pool
    from vlm4vla.benchmarks.wire import Request

    pool = Pool(benchmark, places=1, workers=1, time_limit=120.0)
    trace = []
    try:
        plays = [Request(place=0, actions=action[None]) for action in _actions(steps)]
        for request in [Request(place=0, episode=spec), *plays]:
            pool.send(request)
            (reply,) = pool.wait()
            if isinstance(reply, Lost):
                raise ContractError(f"episode {spec.id!r} breaks in a worker process: {reply.error}")
            assert reply.observation is not None
            trace.append((reply.observation, reply.goals_completed))
    finally:
        pool.close()
    return trace


def _actions(steps: int) -> Float32[np.ndarray, "steps 7"]:
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, ACTION_SIZE)).astype(np.float32)
    actions[:, GRIPPER] = np.sign(actions[:, GRIPPER])
    return actions


def _check_observation(observation: Observation, spec: EpisodeSpec, completed: int) -> None:
    for name in ("image", "wrist_image"):
        image = getattr(observation, name)
        if image is not None:
            _require(
                image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3,
                f"{name} of episode {spec.id!r} is {image.dtype} {image.shape}; an image is uint8 [height, width, 3]",
            )
            _require(
                int(image.min()) < int(image.max()),
                f"{name} of episode {spec.id!r} has one colour only: a renderer that shows nothing gives a plausible 0",
            )
    state = observation.state
    _require(
        state is None or (state.dtype == np.float32 and state.ndim == 1),
        f"state of episode {spec.id!r} is no float32 vector",
    )
    goal = spec.goals[min(completed, len(spec.goals) - 1)]
    _require(
        observation.instruction == goal.instruction,
        f"episode {spec.id!r} with {completed} goals completed instructs {observation.instruction!r} instead of "
        f"{goal.instruction!r}: the policy would pursue another goal than is counted",
    )


def _require_equal(expected: _Trace, found: _Trace, message: str) -> None:
    for step, ((a, goals_a), (b, goals_b)) in enumerate(zip(expected, found, strict=True)):
        for name in ("image", "wrist_image", "state", "instruction"):
            _require(
                np.array_equal(getattr(a, name), getattr(b, name)),
                f"{message} ({name}, row {step} of the trace)",
            )
        _require(
            goals_a == goals_b, f"{message} (goals completed after {step} steps: {goals_a} and {goals_b})"
        )


def _check_upright(
    benchmark: Benchmark, spec: EpisodeSpec, raising: Float32[np.ndarray, "7"], steps: int
) -> None:
    environment = benchmark.make_environment()
    before = environment.reset(spec).image.astype(np.int16)
    for _ in range(steps):
        observation = environment.step(np.array(raising, dtype=np.float32)).observation
    environment.close()
    after = observation.image.astype(np.int16)
    rows, columns = np.nonzero(np.abs(after - before).max(axis=2) > 16)
    _require(len(rows) > 0, f"{steps} raising actions changed nothing in the picture of episode {spec.id!r}")

    def misfit(shift: int) -> float:
        """How badly the changed pixels look like those `shift` rows below them did before."""
        there = np.clip(rows + shift, 0, len(before) - 1)
        return float(np.abs(after[rows, columns] - before[there, columns]).mean())

    furthest = len(before) // 2
    _require(
        min(misfit(d) for d in range(1, furthest)) < min(misfit(-d) for d in range(1, furthest)),
        f"what rises in episode {spec.id!r} moves down in its image: the image is upside down",
    )
