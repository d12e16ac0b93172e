"""Rollouts: a policy plays a benchmark's episodes, many at a time, with results that do not depend on how many.

The policy predicts in the calling process, in batches; environments step in workers, a chunk of actions at a time.
Both are kept busy: predictions are made for whoever waits while the others step.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from vlm4vla.benchmarks.pool import Lost, Pool
from vlm4vla.benchmarks.progress import Progress
from vlm4vla.benchmarks.records import REPEAT, EpisodeLog, Origin, digest_of, keep_actions, keep_software
from vlm4vla.benchmarks.software import unpinned
from vlm4vla.benchmarks.video import video_path, write_index, write_video
from vlm4vla.benchmarks.wire import Reply, Request
from vlm4vla.core.actions import ACTION_SIZE, GRIPPER, ActionSpec, require_same
from vlm4vla.core.errors import RecipeError, RunError, SimulatorError
from vlm4vla.core.interfaces import Benchmark, ChunkPredictor, EpisodePredictor
from vlm4vla.core.recipes import fingerprint
from vlm4vla.core.types import EpisodeResult, EpisodeSpec, Observation

CHAIN = "chain"
"""Task and tier of an episode with several goals."""


def evaluate(
    predictor: ChunkPredictor,
    benchmark: Benchmark,
    *,
    execute: int,
    folder: Path | None,
    environments: int = 8,
    workers: int = 2,
    videos: int = 0,
    progress: bool | Progress = True,
    note: str = "",
    episodes: Sequence[EpisodeSpec] | None = None,
    time_limit: float = 120.0,
    python: str | None = None,
    repeats: int = 1,
    shard: tuple[int, int] = (0, 1),
    memory: int = 0,
    origin: Origin | None = None,
) -> list[EpisodeResult]:
    """Play the benchmark's episodes, or the given ones of them; results come in their order.

    Each is played `repeats` times by a policy that draws noise, other noise in each. `shard` (i, n) plays every n-th
    play, from the i-th on, and records them in a file of its own; results of the other shards that lie in `folder`
    count as known.

    `execute` actions of every chunk are carried out; a completed goal drops the rest. `environments` episodes are
    under way at once (twice the predictor's batch size keeps everyone busiest) in `workers` processes, or in this
    process with 0; never there where the benchmark is `Isolated` or a `python`, the interpreter of the processes, is
    named, by default the benchmark's own. Neither changes a result. `folder` receives episodes.jsonl and
    videos of the first `videos` episodes of each task; calling again with it continues an interrupted evaluation
    and plays episodes that ended in an error once more. `note` is what progress says of the policy.

    An environment that raises, dies or gives no answer for `time_limit` seconds costs its episode, which is recorded
    as an error. Simulators leak: a worker of one environment that holds more than `memory` bytes (0: any number) is
    replaced between episodes. Every recorded line also says its `origin`.

    Raises: ActionSpecMismatch, RecipeError for a bad argument, RunError for a damaged folder or a
    policy that predicts nonsense, SimulatorError when no worker starts.
    """
    require_same(predictor.action_spec, benchmark.action_spec, who=f"The policy and {benchmark.name}")
    _check_arguments(predictor, execute, environments, workers, videos, folder, repeats, shard)
    listed = benchmark.episodes()
    chosen = listed if episodes is None else episodes
    repeated = [name for name, count in Counter(spec.id for spec in chosen).items() if count > 1]
    if repeated:
        raise SimulatorError(
            f"{benchmark.name} has several episodes with the id {repeated[0]!r}; ids must be unique"
        )
    if repeats > 1 and not getattr(predictor, "draws_noise", False):
        raise RecipeError(
            f"repeats is {repeats}, but the policy draws no noise: every repeat of an episode would be the same. "
            "Set repeats to 1"
        )
    recorded = _first_of_each_task(chosen, videos)
    plays = plays_of(chosen, repeats=repeats, shard=shard)
    ids = [play_id(spec, repeat) for spec, repeat in plays]
    known = [play_id(spec, repeat) for repeat in range(repeats) for spec in (*listed, *chosen)]
    with EpisodeLog(folder, known, shard=shard, origin=origin) as log:
        missing = [play for play, name in zip(plays, ids, strict=True) if log.to_play(name)]
        done = [log.results[name] for name in ids if not log.to_play(name)]
        if isinstance(progress, Progress):
            display = progress
            display.begin(done)
        else:
            name = f"{benchmark.name} ({note})" if note else benchmark.name
            display = Progress(name, len(plays), done, shown=progress)
        if missing:
            pool = Pool(
                benchmark,
                places=min(environments, len(missing)),
                workers=workers,
                time_limit=time_limit,
                python=python,
                memory=memory,
            )
            try:
                _Rollout(predictor, execute, pool, log, display, folder, recorded).play(missing)
            finally:
                pool.close()
        if folder is not None:
            write_index(folder, recorded, log.results.values())
        if display is not progress:
            display.finish()
        return [log.results[name] for name in ids]


def plays_of(
    episodes: Sequence[EpisodeSpec], *, repeats: int = 1, shard: tuple[int, int] = (0, 1)
) -> list[tuple[EpisodeSpec, int]]:
    """Every play of the shard, in order: an episode and which play of it."""
    number, shards = shard
    return [(spec, repeat) for repeat in range(repeats) for spec in episodes][number::shards]


def play_id(spec: EpisodeSpec, repeat: int) -> str:
    """What a play is recorded as: the episode's id, from the second play on with its number."""
    return f"{spec.id}{REPEAT}{repeat}" if repeat else spec.id


def task_and_tier(episode: EpisodeSpec) -> tuple[str, str]:
    """Under which names an episode is reported: its goal's, or `chain` for several goals."""
    if len(episode.goals) > 1:
        return CHAIN, CHAIN
    return episode.goals[0].task, episode.goals[0].tier


class RandomPredictor:
    """The random policy: every pose number uniform in [-1, 1], the gripper open or closed at random.

    A chunk is a function of the seed and of what is observed (image and instruction), so a rollout is repeatable
    whatever is predicted beside it. A scene that does not move gets the same chunk again.
    """

    def __init__(self, action_spec: ActionSpec, horizon: int, seed: int = 0) -> None:
        self._action_spec = action_spec
        self._horizon = horizon
        self._seed = seed
        self.draws_noise = True

    @property
    def action_spec(self) -> ActionSpec:
        """The benchmark's own."""
        return self._action_spec

    @property
    def horizon(self) -> int:
        """Actions per chunk."""
        return self._horizon

    def predict_chunk(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch horizon 7"]:
        """One chunk per observation."""
        chunks = np.empty((len(observations), self._horizon, ACTION_SIZE), dtype=np.float32)
        for chunk, observation in zip(chunks, observations, strict=True):
            text = f"{self._seed}/{observation.instruction}/" + (
                f"{observation.repeat}/" * bool(observation.repeat)
            )
            digest = hashlib.blake2b(text.encode(), digest_size=16)
            digest.update(observation.image.tobytes())
            chunk[:] = np.random.default_rng(list(digest.digest())).uniform(-1, 1, chunk.shape)
            chunk[:, GRIPPER] = np.where(chunk[:, GRIPPER] < 0, -1, 1)
        return chunks


@dataclass(slots=True, eq=False)
class _Play:
    """An episode under way."""

    spec: EpisodeSpec
    repeat: int
    record: bool
    observation: Observation | None = None
    goals_completed: int = 0
    steps: int = 0
    steps_for_goal: int = 0
    frames: list[UInt8[np.ndarray, "steps height width 3"]] = field(default_factory=list)
    chunk: Float32[np.ndarray, "execute 7"] = field(
        default_factory=lambda: np.empty((0, ACTION_SIZE), np.float32)
    )
    """The actions under way."""
    actions: list[Float32[np.ndarray, "steps 7"]] = field(default_factory=list)
    """Those carried out."""
    looks: list[tuple[int, int, str]] = field(default_factory=list)
    """What was seen: after how many steps, goals completed by then, digest."""
    start: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """All goals are completed, or the present one was not within its steps."""
        all_completed = self.goals_completed == len(self.spec.goals)
        return all_completed or self.steps_for_goal >= self.spec.max_steps_per_goal

    def take(self, reply: Reply) -> None:
        """Count what a reply says."""
        name = play_id(self.spec, self.repeat)
        self.observation = reply.observation and replace(reply.observation, repeat=self.repeat, episode=name)
        self.actions.append(self.chunk[: reply.steps])
        self.steps += reply.steps
        self.steps_for_goal += reply.steps
        if reply.goals_completed > self.goals_completed:
            self.steps_for_goal = 0
        self.goals_completed = reply.goals_completed
        if reply.observation is not None:
            self.looks.append((self.steps, self.goals_completed, digest_of(reply.observation.image)))
        if reply.frames is not None:
            self.frames.append(reply.frames)

    def result(self, error: str | None = None, *, software: str = "") -> EpisodeResult:
        """The record of the episode as it stands."""
        task, tier = task_and_tier(self.spec)
        return EpisodeResult(
            episode=play_id(self.spec, self.repeat),
            task=task,
            tier=tier,
            goals=len(self.spec.goals),
            goals_completed=self.goals_completed,
            steps=self.steps,
            seconds=round(time.monotonic() - self.start, 3),
            actions=digest_of(*self.actions),
            last_image=self.looks[-1][2] if self.looks else "",
            software=software,
            error=error,
        )


class _Rollout:
    """Deals episodes to places, observations to the predictor and chunks back to the places."""

    def __init__(
        self,
        predictor: ChunkPredictor,
        execute: int,
        pool: Pool,
        log: EpisodeLog,
        display: Progress,
        folder: Path | None,
        recorded: Sequence[EpisodeSpec],
    ) -> None:
        self._predictor = predictor
        self._execute = execute
        self._pool = pool
        self._log = log
        self._display = display
        self._folder = folder
        self._recorded = recorded
        self._recorded_ids = {spec.id for spec in recorded}
        self._playing: dict[int, _Play] = {}
        self._waiting: dict[int, _Play] = {}
        """Those of them that wait for a prediction."""
        self._software: Mapping[str, str] = {}
        self._software_name = ""
        """What results name it by."""

    def play(self, plays: Sequence[tuple[EpisodeSpec, int]]) -> None:
        pending = deque(plays)
        while pending or self._playing:
            for place in self._pool.free(self._playing):
                if pending:
                    self._begin(place, *pending.popleft())
            if self._worth_predicting():
                self._predict()
            events = self._pool.wait()
            self._note_software()
            for event in events:
                if isinstance(event, Lost):
                    pending.extendleft(self._lose(event))
                else:
                    self._take(event)

    def _begin(self, place: int, spec: EpisodeSpec, repeat: int) -> None:
        record = repeat == 0 and spec.id in self._recorded_ids
        play = self._playing[place] = _Play(spec, repeat, record=record)
        self._pool.send(Request(place=place, episode=spec, record=play.record))

    def _worth_predicting(self) -> bool:
        # A prediction costs about the same for one as for a batch, so wait for half of those who play, and no longer
        # than every worker has something to do.
        enough = 2 * len(self._waiting) >= len(self._playing)
        return bool(self._waiting) and (enough or not all(map(self._pool.busy, self._waiting)))

    def _predict(self) -> None:
        observations = [play.observation for play in self._waiting.values() if play.observation is not None]
        chunks = np.asarray(self._predictor.predict_chunk(observations), dtype=np.float32)
        expected = (len(self._waiting), self._predictor.horizon, ACTION_SIZE)
        if chunks.shape != expected:
            raise RunError(f"the policy predicted actions of shape {chunks.shape}, expected {expected}")
        for chunk, (place, play) in zip(chunks, self._waiting.items(), strict=True):
            left = play.spec.max_steps_per_goal - play.steps_for_goal
            play.chunk = chunk[: min(self._execute, left)]
            if not np.isfinite(play.chunk).all():
                raise RunError(
                    f"the policy predicted an action that is not finite, at step {play.steps} of episode "
                    f"{play.spec.id!r}; its weights are damaged or its training diverged"
                )
            self._pool.send(Request(place=place, actions=play.chunk))
        self._waiting.clear()

    def _take(self, reply: Reply) -> None:
        play = self._playing[reply.place]
        play.take(reply)
        if play.over:
            self._finish(reply.place, None)
        else:
            self._waiting[reply.place] = play

    def _lose(self, lost: Lost) -> list[tuple[EpisodeSpec, int]]:
        """Record the culprit's error and return the other episodes, last first, to be begun again."""
        again = []
        for place in sorted(lost.places & self._playing.keys(), reverse=True):
            if place == lost.culprit:
                self._finish(place, lost.error)
            else:
                play = self._playing.pop(place)
                self._forget(play_id(play.spec, play.repeat), None)
                again.append((play.spec, play.repeat))
            self._waiting.pop(place, None)
        return again

    def _finish(self, place: int, error: str | None) -> None:
        play = self._playing.pop(place)
        result = play.result(error, software=self._software_name)
        if play.record and self._folder is not None and error is None:
            # Before the result, so that an episode with a result has its video even when we are killed in between.
            write_video(video_path(self._folder, play.spec.id), np.concatenate(play.frames))
        if self._folder is not None and error is None:
            keep_actions(self._folder, result.episode, play.actions, play.looks)
        self._log.add(result)
        self._forget(result.episode, result)
        if play.record and self._folder is not None:
            write_index(self._folder, self._recorded, self._log.results.values())
        self._display.add(result)

    def _forget(self, episode: str, result: EpisodeResult | None) -> None:
        if isinstance(self._predictor, EpisodePredictor):
            self._predictor.end_episode(episode, result)

    def _note_software(self) -> None:
        """Keep the versions that play; those that nobody tested are told."""
        software = self._pool.software
        if software and software != self._software:
            self._software = software
            self._software_name = fingerprint(dict(software))
            self._display.say(unpinned(self._pool.benchmark, software))
            if self._folder is not None:
                keep_software(self._folder, software)


def _check_arguments(
    predictor: ChunkPredictor,
    execute: int,
    environments: int,
    workers: int,
    videos: int,
    folder: Path | None,
    repeats: int,
    shard: tuple[int, int],
) -> None:
    if not 1 <= execute <= predictor.horizon:
        raise RecipeError(
            f"execute is {execute}, but the policy predicts {predictor.horizon} actions at a time; "
            f"choose 1 to {predictor.horizon}"
        )
    if not 0 <= shard[0] < shard[1] or repeats < 1:
        raise RecipeError(
            f"shard is {shard[0]} of {shard[1]}, repeats {repeats}; shards count from 0, and at least 1 repeat"
        )
    if environments < 1 or workers < 0 or videos < 0:
        raise RecipeError(
            f"environments is {environments}, workers {workers}, videos {videos}; "
            "at least 1 environment, 0 workers (this process) and 0 videos"
        )
    if videos and folder is None:
        raise RecipeError(f"{videos} videos a task were asked for without a folder to write them to")


def _first_of_each_task(episodes: Sequence[EpisodeSpec], count: int) -> list[EpisodeSpec]:
    seen: Counter[str] = Counter()
    first = []
    for spec in episodes:
        task, _ = task_and_tier(spec)
        if seen[task] < count:
            seen[task] += 1
            first.append(spec)
    return first
