"""A policy behind a websocket as a chunk predictor.

openpi answers every observation by itself. vla-eval keeps a session per connection, often with a buffer of actions, so
every episode under way has a connection of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from vlm4vla.core.actions import ActionSpec, require_same
from vlm4vla.core.errors import unknown_name
from vlm4vla.core.types import EpisodeResult, Observation
from vlm4vla.serving.codec import Dialect
from vlm4vla.serving.layout import actions_of, declared_spec, layout_for
from vlm4vla.serving.lines import Connection, Line, OpenPi, VlaEval

PROTOCOLS = ("auto", "openpi", "vla-eval")
_FIRST_WORD_SECONDS = 3.0
"""An openpi server speaks first; who has said nothing by then is asked in vla-eval's way."""


class RemotePolicy:
    """A policy server. `metadata` is what it says of itself, `protocol` what it speaks.

    Its horizon is what is executed: a server's chunk may be longer, and how long it is it does not say.
    """

    draws_noise = True
    """It may; a server does not say."""

    def __init__(
        self,
        address: str,
        action_spec: ActionSpec,
        *,
        benchmark: str,
        suite: str = "",
        execute: int,
        protocol: str = "auto",
        changes: Mapping[str, str] | None = None,
        seconds: float = 120.0,
        connections: int = 1,
    ) -> None:
        """Connects. `suite` is LIBERO's, for vla-eval servers that go by it; `changes` are those to the layout;
        `connections` is how many observations are asked for at a time.

        Raises: RecipeError for a bad argument, RunError when no server answers, ActionSpecMismatch when its actions
        cannot be what the benchmark takes.
        """
        if protocol not in PROTOCOLS:
            raise unknown_name("protocol", protocol, PROTOCOLS)
        self._address, self._seconds = address, seconds
        self._benchmark, self._suite = benchmark, suite
        self.action_spec, self.horizon = action_spec, execute
        self._width = connections
        first = self._first_line(protocol)
        self.protocol: Dialect = "openpi" if isinstance(first, OpenPi) else "vla-eval"
        self.metadata = first.metadata
        self._lines = [first] if isinstance(first, OpenPi) else []
        self._episodes: dict[str, VlaEval] = {}
        self._spare = first if isinstance(first, VlaEval) else None
        try:
            self.layout = layout_for(self.protocol, benchmark, self.metadata, changes or {})
            ours = declared_spec(self.metadata)
            if ours is not None:
                means = replace(ours, rotation=action_spec.rotation, gripper=action_spec.gripper)
                require_same(means, action_spec, who=f"{address} and {benchmark}")
            actions_of(np.zeros((execute, 7)), self.layout, action_spec, count=execute)
        except BaseException:
            self.close()
            raise

    def predict_chunk(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch horizon 7"]:
        """One question per observation. Raises: RunError when the server has gone or its answer cannot be used."""
        chunks = []
        for start in range(0, len(observations), self._width):
            batch = observations[start : start + self._width]
            lines = [self._line(observation, number) for number, observation in enumerate(batch)]
            for line, observation in zip(lines, batch, strict=True):
                line.ask(observation, self.layout)
            for line in lines:
                answer = line.answer()
                try:
                    chunk = actions_of(answer, self.layout, self.action_spec, count=self.horizon)
                except ValueError as error:
                    raise line.connection.nonsense(str(error)) from error
                chunks.append(chunk)
        return np.stack(chunks)

    def end_episode(self, episode: str, result: EpisodeResult | None) -> None:
        """Tell a vla-eval server, and hang up."""
        line = self._episodes.pop(episode, None)
        if line is not None:
            line.end(result)

    def close(self) -> None:
        """Hang up everywhere."""
        lines: list[Line] = [*self._lines, *self._episodes.values(), *([self._spare] if self._spare else [])]
        for line in lines:
            line.connection.close()

    def _first_line(self, protocol: str) -> OpenPi | VlaEval:
        connection = Connection(self._address, self._seconds)
        try:
            if protocol == "vla-eval":
                return VlaEval(connection, self._benchmark, self._suite)
            if protocol == "openpi":
                return OpenPi(connection)
            try:
                return OpenPi(connection, connection.receive(_FIRST_WORD_SECONDS))
            except TimeoutError:
                return VlaEval(connection, self._benchmark, self._suite)
        except BaseException:
            connection.close()
            raise

    def _line(self, observation: Observation, number: int) -> Line:
        if self.protocol == "openpi":
            if number == len(self._lines):
                self._lines.append(OpenPi(Connection(self._address, self._seconds)))
            return self._lines[number]
        if observation.episode not in self._episodes:
            line = self._spare or VlaEval(
                Connection(self._address, self._seconds), self._benchmark, self._suite
            )
            self._spare = None
            line.begin(observation)
            self._episodes[observation.episode] = line
        return self._episodes[observation.episode]
