"""A policy behind a websocket: openpi's protocol and vla-eval's, as a chunk predictor.

openpi answers every observation by itself. vla-eval keeps a session per connection, often with a buffer of actions, so
every episode under way has a connection of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.sync.client import connect

from vlm4vla import __version__
from vlm4vla.core.actions import ActionSpec, require_same
from vlm4vla.core.errors import RecipeError, RunError, unknown_name
from vlm4vla.core.types import EpisodeResult, Observation
from vlm4vla.serving.codec import LARGEST, Dialect, pack, unpack
from vlm4vla.serving.layout import Layout, actions_of, declared_spec, layout_for, parts_of

PROTOCOLS = ("auto", "openpi", "vla-eval")
API_KEY = "VLM4VLA_API_KEY"
"""Environment variable: sent as `Authorization: Api-Key ...`, and recorded nowhere."""
_FIRST_WORD_SECONDS = 3.0
"""An openpi server speaks first; who has said nothing by then is asked in vla-eval's way."""
_OPEN_SECONDS = 10.0
_KEPT = "What was recorded is kept: the same command goes on"


class Connection:
    """One websocket; whatever goes wrong is a RunError that names the address."""

    def __init__(self, address: str, seconds: float) -> None:
        """`seconds`: how long an answer may take. Raises: RecipeError for a bad address, RunError."""
        self.address = address
        self._seconds = seconds
        self._open = ExitStack()
        key = os.environ.get(API_KEY)
        try:
            self._socket = self._open.enter_context(
                connect(
                    address,
                    compression=None,
                    max_size=LARGEST,
                    open_timeout=_OPEN_SECONDS,
                    ping_interval=None,  # a server that computes does not answer pings
                    close_timeout=1,
                    proxy=None,
                    additional_headers={"Authorization": f"Api-Key {key}"} if key else None,
                )
            )
        except InvalidURI as error:
            raise RecipeError(f"{address}: no address; write ws://HOST:PORT") from error
        except (OSError, WebSocketException) as error:
            why = str(error) or type(error).__name__
            raise RunError(
                f"{address}: no policy server answers ({why}). Start it, or look at host and port. {_KEPT}"
            ) from error

    def send(self, message: bytes) -> None:
        """Raises: RunError when the server has gone."""
        try:
            self._socket.send(message)
        except (ConnectionClosed, OSError) as error:
            raise self._gone(error) from error

    def receive(self, seconds: float | None = None) -> Any:
        """The next message, unpacked. Raises: RunError for none, for text (an error of the server) and for no msgpack;
        TimeoutError instead of it when `seconds` are given.
        """
        try:
            message = self._socket.recv(self._seconds if seconds is None else seconds)
        except TimeoutError as error:
            if seconds is not None:
                raise
            raise RunError(
                f"{self.address}: no answer within {self._seconds:g} s; --timeout allows more. {_KEPT}"
            ) from error
        except (ConnectionClosed, OSError) as error:
            raise self._gone(error) from error
        if isinstance(message, str):
            lines = "\n  ".join(message.strip().splitlines()[-12:])
            raise RunError(
                f"{self.address}: the server reports an error. {_KEPT}. Its last lines:\n  {lines}"
            )
        try:
            return unpack(message)
        except ValueError as error:
            raise self.nonsense(str(error)) from error

    def nonsense(self, why: str) -> RunError:
        """The error for an answer that cannot be used."""
        return RunError(f"{self.address}: the server's answer cannot be used: {why}. {_KEPT}")

    def close(self) -> None:
        """Hang up; a server that is gone already does not matter."""
        self._open.close()

    def _gone(self, error: Exception) -> RunError:
        if isinstance(error, ConnectionClosed) and error.sent is not None and error.sent.code == 1009:
            return self.nonsense(f"it is larger than {LARGEST:,} bytes")
        return RunError(
            f"{self.address}: the policy server has gone ({error}). {_KEPT}, once the server is there again"
        )


class _Line(Protocol):
    """A connection in one of the protocols. Several questions may be under way; they are answered in order."""

    connection: Connection
    metadata: Mapping[str, Any]

    def ask(self, observation: Observation, layout: Layout) -> None: ...

    def answer(self) -> Any: ...


class _OpenPi:
    def __init__(self, connection: Connection, metadata: Any = None) -> None:
        self.connection = connection
        found = connection.receive() if metadata is None else metadata
        if not isinstance(found, dict):
            raise connection.nonsense(
                f"its first message is no map but {type(found).__name__}; is it openpi's?"
            )
        self.metadata: Mapping[str, Any] = found

    def ask(self, observation: Observation, layout: Layout) -> None:
        parts = parts_of(observation, layout)
        message: dict[str, Any] = {layout.image: parts.image}
        if parts.wrist_image is not None:
            message[layout.wrist_image] = parts.wrist_image
        if parts.state is not None:
            message[layout.state] = parts.state
        self.connection.send(pack({**message, layout.prompt: observation.instruction}, "openpi"))

    def answer(self) -> Any:
        found = self.connection.receive()
        if not isinstance(found, dict) or "actions" not in found:
            raise self.connection.nonsense("it has no `actions`")
        return found["actions"]


class _VlaEval:
    def __init__(self, connection: Connection, benchmark: str) -> None:
        self.connection = connection
        self._number = 0
        self._asked: list[int] = []
        self._instruction = ""
        hello = {"harness_version": f"vlm4vla-{__version__}", "protocol_version": 1, "benchmark": benchmark}
        self._send("hello", hello)
        self.metadata: Mapping[str, Any] = self._receive("hello", self._number)

    def begin(self, observation: Observation) -> None:
        task = {"name": observation.instruction, "episode_id": observation.episode}
        self._send("episode_start", {"task": task})

    def ask(self, observation: Observation, layout: Layout) -> None:
        parts = parts_of(observation, layout)
        images = {layout.image: parts.image}
        if parts.wrist_image is not None:
            images[layout.wrist_image] = parts.wrist_image
        message: dict[str, Any] = {"images": images, layout.prompt: observation.instruction}
        if parts.state is not None:
            message[layout.state] = parts.state
        if observation.instruction != self._instruction:  # CALVIN's next goal
            self._instruction = observation.instruction
            message["episode_restart"] = True
        self._asked.append(self._send("observation", message))

    def answer(self) -> Any:
        found = self._receive("action", self._asked.pop(0))
        if "actions" not in found:
            raise self.connection.nonsense("it has no `actions`")
        return found["actions"]

    def end(self, result: EpisodeResult | None) -> None:
        if result is not None:
            told = {"metrics": {"success": result.success}, "steps": result.steps}
            self._send("episode_end", {**told, "elapsed_sec": result.seconds})
        self.connection.close()

    def _send(self, kind: str, payload: Mapping[str, Any]) -> int:
        self._number += 1
        message = {"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()}
        self.connection.send(pack(message, "vla-eval"))
        return self._number

    def _receive(self, kind: str, number: int) -> Mapping[str, Any]:
        found = self.connection.receive()
        payload = found.get("payload") if isinstance(found, dict) else None
        if not isinstance(payload, dict):
            raise self.connection.nonsense(
                "it is no message of vla-eval's; --protocol openpi is the other one"
            )
        if found.get("type") == "error":
            raise RunError(
                f"{self.connection.address}: the server reports an error: {payload.get('error')}. {_KEPT}"
            )
        if (found.get("type"), found.get("seq")) != (kind, number):
            raise self.connection.nonsense(
                f"{kind} {number} was expected, and {found.get('type')} {found.get('seq')} came"
            )
        return payload


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
        execute: int,
        protocol: str = "auto",
        changes: Mapping[str, str] | None = None,
        seconds: float = 120.0,
        connections: int = 1,
    ) -> None:
        """Connects. `changes` are those to the layout; `connections` how many observations are asked for at a time.

        Raises: RecipeError for a bad argument, RunError when no server answers, ActionSpecMismatch when its actions
        cannot be what the benchmark takes.
        """
        if protocol not in PROTOCOLS:
            raise unknown_name("protocol", protocol, PROTOCOLS)
        self._address, self._seconds, self._benchmark = address, seconds, benchmark
        self.action_spec, self.horizon = action_spec, execute
        self._width = connections
        first = self._first_line(protocol)
        self.protocol: Dialect = "openpi" if isinstance(first, _OpenPi) else "vla-eval"
        self.metadata = first.metadata
        self._lines = [first] if isinstance(first, _OpenPi) else []
        self._episodes: dict[str, _VlaEval] = {}
        self._spare = first if isinstance(first, _VlaEval) else None
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
        lines: list[_Line] = [*self._lines, *self._episodes.values(), *([self._spare] if self._spare else [])]
        for line in lines:
            line.connection.close()

    def _first_line(self, protocol: str) -> _OpenPi | _VlaEval:
        connection = Connection(self._address, self._seconds)
        try:
            if protocol == "vla-eval":
                return _VlaEval(connection, self._benchmark)
            if protocol == "openpi":
                return _OpenPi(connection)
            try:
                return _OpenPi(connection, connection.receive(_FIRST_WORD_SECONDS))
            except TimeoutError:
                return _VlaEval(connection, self._benchmark)
        except BaseException:
            connection.close()
            raise

    def _line(self, observation: Observation, number: int) -> _Line:
        if self.protocol == "openpi":
            if number == len(self._lines):
                self._lines.append(_OpenPi(Connection(self._address, self._seconds)))
            return self._lines[number]
        if observation.episode not in self._episodes:
            line = self._spare or _VlaEval(Connection(self._address, self._seconds), self._benchmark)
            self._spare = None
            line.begin(observation)
            self._episodes[observation.episode] = line
        return self._episodes[observation.episode]
