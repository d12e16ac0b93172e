"""Replay: recorded episodes played again from their actions alone, and compared with the record to the bit.

No policy is needed: seed, actions and versions are in the record, and environments are deterministic. What differs
then was changed since: the simulator, the machine, or the record itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from vlm4vla.benchmarks.pool import Lost, Pool
from vlm4vla.benchmarks.records import REPEAT, digest_of, kept_actions, kept_software, logs, read_log
from vlm4vla.benchmarks.rollout import task_and_tier
from vlm4vla.benchmarks.software import differences
from vlm4vla.benchmarks.video import write_video
from vlm4vla.benchmarks.wire import Reply, Request
from vlm4vla.core.errors import RecipeError, RunError, unknown_name
from vlm4vla.core.interfaces import Benchmark
from vlm4vla.core.types import EpisodeResult, EpisodeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a recorded episode went when it was played again."""

    episode: str
    steps: int
    """As recorded."""
    goals: int
    goals_completed: int
    """As recorded."""
    identical: bool
    """Goals, steps and every picture that was kept, to the bit."""
    difference: str
    """What differs first, or why it could not be played; empty when identical."""
    software: tuple[str, ...]
    """Versions that are others now."""


def replay(
    benchmark: Benchmark,
    folder: Path,
    *,
    episodes: Sequence[str] = (),
    workers: int = 0,
    environments: int = 8,
    time_limit: float = 120.0,
    python: str | None = None,
    memory: int = 0,
    video: Path | None = None,
    say: Callable[[int, int], None] = lambda played, total: None,
) -> list[Replay]:
    """Play recorded episodes of an evaluation's folder again; none named: all but those that ended in an error.

    `workers` and `python` as for `evaluate`. `video` receives what the one named episode showed, every step. `say` is
    told how many of how many are done.

    Raises: RunError where nothing is recorded or a log is damaged, RecipeError for an episode that is not recorded or
    a video of several, SimulatorError when no worker starts. What is wrong with one episode is its `difference`.
    """
    recorded = {result.episode: result for path in logs(folder) for result in read_log(path)[0]}
    if not recorded:
        raise RunError(
            f"{folder}: no episodes are recorded there; name the folder of an evaluation that was played"
        )
    for name in episodes:
        if name not in recorded:
            raise unknown_name("recorded episode", name, recorded)
    specs = {spec.id: spec for spec in benchmark.episodes()}
    order = {name: number for number, name in enumerate(specs)}
    chosen = [recorded[name] for name in episodes] or sorted(
        (result for result in recorded.values() if result.error is None),
        key=lambda result: (order.get(result.episode.partition(REPEAT)[0], len(order)), result.episode),
    )
    if video is not None and len(chosen) != 1:
        raise RecipeError(f"a video shows one episode, not {len(chosen)}; name it with --episode")
    found: dict[str, Replay] = {}
    plays = []
    for result in chosen:
        try:
            plays.append(_prepare(result, specs, benchmark, folder, record=video is not None))
        except RunError as error:
            found[result.episode] = _told(result, str(error))
    if plays:
        places = min(environments, len(plays))
        pool = Pool(
            benchmark, places=places, workers=workers, time_limit=time_limit, python=python, memory=memory
        )
        try:
            for play, broke in _play_all(pool, plays):
                then = kept_software(folder, play.result)
                changed = differences(then, pool.software) if then else []
                found[play.result.episode] = _told(play.result, broke or play.verdict(), changed)
                say(len(found), len(chosen))
        finally:
            pool.close()
        if video is not None and plays[0].frames:
            write_video(video, np.concatenate(plays[0].frames))
    return [found[result.episode] for result in chosen]


@dataclass(slots=True, eq=False)
class _Play:
    """An episode that is played again."""

    result: EpisodeResult
    spec: EpisodeSpec
    actions: Float32[np.ndarray, "steps 7"]
    looks: dict[int, tuple[int, str]]
    """By step: goals completed and digest of the picture, as recorded."""
    record: bool
    steps: int = 0
    goals_completed: int = 0
    seen: str = ""
    alike: int = -1
    """The last step after which all was as recorded."""
    difference: str = ""
    """The first one."""
    frames: list[UInt8[np.ndarray, "steps height width 3"]] = field(default_factory=list)

    def due(self) -> Float32[np.ndarray, "steps 7"]:
        """The actions until the next recorded look."""
        end = min((step for step in self.looks if step > self.steps), default=len(self.actions))
        return self.actions[self.steps : end]

    def take(self, reply: Reply) -> None:
        """Compare with the record."""
        self.steps += reply.steps
        self.goals_completed = reply.goals_completed
        assert reply.observation is not None
        self.seen = digest_of(reply.observation.image)
        if reply.frames is not None:
            self.frames.append(reply.frames)
        if self.looks and not self.difference:
            self._compare()

    def verdict(self) -> str:
        """What differs; empty when nothing does."""
        if self.difference:
            return self.difference
        if self.goals_completed != self.result.goals_completed:
            return (
                f"{self.goals_completed} of {self.result.goals} goals are completed at the end, "
                f"{self.result.goals_completed} in the record"
            )
        return "" if self.seen == self.result.last_image else "the last picture is another"

    def _compare(self) -> None:
        goals, seen = self.looks.get(self.steps, (None, ""))
        if goals is None:
            what = "a goal is completed which was not"
        elif goals != self.goals_completed:
            what = f"{self.goals_completed} goals are completed, {goals} in the record"
        elif seen != self.seen:
            what = "the picture is another"
        else:
            self.alike = self.steps
            return
        until = f", alike until {self.alike}" if self.alike >= 0 else ""
        self.difference = f"at step {self.steps}{until}: {what}"


def _prepare(
    result: EpisodeResult,
    specs: Mapping[str, EpisodeSpec],
    benchmark: Benchmark,
    folder: Path,
    *,
    record: bool,
) -> _Play:
    """Raises: RunError when it cannot be played again."""
    spec = specs.get(result.episode.partition(REPEAT)[0])
    if spec is None:
        raise RunError(f"{benchmark.name} has no such episode here: the record is of another version of it")
    if (len(spec.goals), *task_and_tier(spec)) != (result.goals, result.task, result.tier):
        raise RunError(
            f"the record says {result.goals} goals of task {result.task!r}, tier {result.tier!r}; the episode has "
            f"{len(spec.goals)} of {' and '.join(map(repr, task_and_tier(spec)))}: it was changed, or is of another "
            "version"
        )
    if result.error is not None:
        raise RunError(f"it ended in an error, of which no actions are kept: {result.error}")
    actions, looks = kept_actions(folder, result)
    return _Play(result, spec, actions, {step: (goals, seen) for step, goals, seen in looks}, record)


def _play_all(pool: Pool, plays: Sequence[_Play]) -> Iterator[tuple[_Play, str]]:
    """Every play when it is over, with what broke it, if anything did."""
    pending, playing = deque(plays), dict[int, _Play]()
    while pending or playing:
        for place in pool.free(playing):
            if pending:
                play = playing[place] = pending.popleft()
                pool.send(Request(place=place, episode=play.spec, record=play.record))
        for event in pool.wait():
            if isinstance(event, Lost):
                for place in sorted(event.places & playing.keys()):
                    play = playing.pop(place)
                    if place == event.culprit:
                        yield play, f"the simulator broke after step {play.steps}: {event.error}"
                    else:  # begun again elsewhere, with nothing of this attempt
                        pending.append(_Play(play.result, play.spec, play.actions, play.looks, play.record))
                continue
            play = playing[event.place]
            play.take(event)
            if len(due := play.due()):
                pool.send(Request(place=event.place, actions=due))
            else:
                yield playing.pop(event.place), ""


def _told(result: EpisodeResult, difference: str, software: Sequence[str] = ()) -> Replay:
    return Replay(
        episode=result.episode,
        steps=result.steps,
        goals=result.goals,
        goals_completed=result.goals_completed,
        identical=not difference,
        difference=difference,
        software=tuple(software),
    )
