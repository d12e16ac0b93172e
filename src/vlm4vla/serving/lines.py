"""One websocket to a policy server, and what is said on it in openpi's protocol and in vla-eval's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.sync.client import connect

from vlm4vla import __version__
from vlm4vla.core.errors import RecipeError, RunError
from vlm4vla.core.types import EpisodeResult, Observation
from vlm4vla.serving.codec import LARGEST, pack, unpack
from vlm4vla.serving.layout import Layout, parts_of

API_KEY = "VLM4VLA_API_KEY"
"""Environment variable: sent as `Authorization: Api-Key ...`, and recorded nowhere."""
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
            told = "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in message)
            lines = "\n  ".join(told.strip().splitlines()[-12:])
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


class Line(Protocol):
    """A connection in one of the protocols. Several questions may be under way; they are answered in order."""

    connection: Connection
    metadata: Mapping[str, Any]

    def ask(self, observation: Observation, layout: Layout) -> None:
        """Raises: RunError when the server has gone, and for what the benchmark does not show."""
        ...

    def answer(self) -> Any:
        """The actions of the question asked first, as they came. Raises: RunError when there are none."""
        ...


class OpenPi:
    """The server speaks first (its metadata); then a question is one observation, an answer one chunk."""

    def __init__(self, connection: Connection, metadata: Any = None) -> None:
        self.connection = connection
        found = connection.receive() if metadata is None else metadata
        if not isinstance(found, dict):
            raise connection.nonsense(
                f"its first message is no map but {type(found).__name__}; is it openpi's?"
            )
        self.metadata: Mapping[str, Any] = found

    def ask(self, observation: Observation, layout: Layout) -> None:
        """One observation, under the layout's names."""
        parts = parts_of(observation, layout)
        message: dict[str, Any] = {layout.image: parts.image}
        if parts.wrist_image is not None:
            message[layout.wrist_image] = parts.wrist_image
        if parts.state is not None:
            message[layout.state] = parts.state
        self.connection.send(pack({**message, layout.prompt: observation.instruction}, "openpi"))

    def answer(self) -> Any:
        """What stands under `actions`."""
        found = self.connection.receive()
        if not isinstance(found, dict) or "actions" not in found:
            raise self.connection.nonsense("it has no `actions`")
        return found["actions"]


class VlaEval:
    """A session: greetings, then episodes of numbered observations and actions (protocol 1)."""

    def __init__(self, connection: Connection, benchmark: str, suite: str = "") -> None:
        self.connection = connection
        self._suite = suite
        self._number = 0
        self._asked: list[int] = []
        self._instruction = ""
        hello = {"harness_version": f"vlm4vla-{__version__}", "protocol_version": 1, "benchmark": benchmark}
        self._send("hello", hello)
        self.metadata: Mapping[str, Any] = self._receive("hello", self._number)

    def begin(self, observation: Observation) -> None:
        """An episode, of which this is the first observation."""
        task = {"name": observation.instruction, "suite": self._suite, "episode_id": observation.episode}
        self._send("episode_start", {"task": task})

    def ask(self, observation: Observation, layout: Layout) -> None:
        """One observation, under the layout's names."""
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
        """What stands under `actions`."""
        found = self._receive("action", self._asked.pop(0))
        if "actions" not in found:
            raise self.connection.nonsense("it has no `actions`")
        return found["actions"]

    def end(self, result: EpisodeResult | None) -> None:
        """The episode and the session; one that was broken off has no result."""
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
