"""Policy servers for tests, in a thread: both protocols, written with msgpack and not with our codec."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import msgpack
import numpy as np
from point_world import PointWorld, Seeker
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.core.types import Observation

HORIZON = 5


def point_world(recipe: EvaluationRecipe) -> PointWorld:
    """`point_world.PointWorld` as a benchmark with a name."""
    return PointWorld(episodes_per_task=recipe.episodes_per_task)


def chunk_for(image: np.ndarray, instruction: str, state: np.ndarray | None) -> np.ndarray:
    """What `point_world.Seeker` does."""
    return Seeker().predict_chunk([Observation(np.array(image), instruction, state=state)])[0]


def bytes_array(item: Any) -> Any:
    """As openpi's msgpack_numpy packs."""
    return {
        b"__ndarray__": True,
        b"data": item.tobytes(),
        b"dtype": item.dtype.str,
        b"shape": item.shape,
    }


def text_array(item: Any) -> Any:
    """As vla-eval's numpy_codec packs."""
    return {
        "__ndarray__": True,
        "data": item.tobytes(),
        "dtype": item.dtype.str,
        "shape": list(item.shape),
    }


def array(found: dict[Any, Any]) -> Any:
    for key in (str, str.encode):
        if key("__ndarray__") in found:
            return np.frombuffer(found[key("data")], found[key("dtype")]).reshape(found[key("shape")])
    return found


def cut(connection: ServerConnection) -> None:
    """Without a goodbye."""
    with suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


class Host:
    """`handle` is called with every connection. Ends when left, or by itself with `stop`."""

    def __init__(self, handle: Callable[[Host, ServerConnection], None]) -> None:
        self._handle = handle
        self.questions = 0
        self.connections: list[ServerConnection] = []
        self.said: list[dict[str, Any]] = []
        self._port = 0
        self.start()

    def start(self) -> None:
        """Again on the same port."""
        quiet = logging.getLogger("quiet")
        quiet.disabled = True
        self._server: Server = serve(
            self._one, "127.0.0.1", self._port, compression=None, max_size=None, logger=quiet
        )
        self._port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Cut every connection, as a process that dies does."""
        for connection in self.connections:
            cut(connection)
        self._server.shutdown()
        self._thread.join()
        self.connections.clear()

    def _one(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        with suppress(ConnectionClosed, OSError):
            self._handle(self, connection)


@contextmanager
def hosted(handle: Callable[[Host, ServerConnection], None]) -> Iterator[Host]:
    host = Host(handle)
    try:
        yield host
    finally:
        host.stop()


def openpi(
    answer: Callable[[dict[str, Any]], Any] | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    die_after: int | None = None,
) -> Callable[[Host, ServerConnection], None]:
    """`answer` gives the whole message instead of actions; the first `die_after` questions are answered."""

    def handle(host: Host, connection: ServerConnection) -> None:
        connection.send(msgpack.packb(dict(metadata or {"policy": "seeker"}), default=bytes_array))
        while True:
            said = msgpack.unpackb(connection.recv(), object_hook=array)
            host.said.append(said)
            host.questions += 1
            if die_after is not None and host.questions == die_after + 1:
                cut(connection)
                return
            if answer is not None:
                connection.send(answer(said))
                continue
            actions = chunk_for(
                said["observation/image"], said["prompt"], said.get("observation/state")
            ).astype(np.float64)
            reply = {"actions": actions, "server_timing": {"infer_ms": 1.0}}
            connection.send(msgpack.packb(reply, default=bytes_array))

    return handle


def vla_eval(
    *,
    chunked: bool = False,
    hello: Mapping[str, Any] | None = None,
    wrong: str = "",
    die_after: int | None = None,
) -> Callable[[Host, ServerConnection], None]:
    """Buffers chunks and answers one action at a time, or whole chunks when `chunked`."""

    def handle(host: Host, connection: ServerConnection) -> None:
        def say(kind: str, payload: Mapping[str, Any], number: int) -> None:
            message = {"type": kind, "payload": payload, "seq": number, "timestamp": 0.0}
            connection.send(msgpack.packb(message, default=text_array))

        buffer: list[np.ndarray] = []
        while True:
            said = msgpack.unpackb(connection.recv(), object_hook=array)
            host.said.append(said)
            payload, number = said["payload"], said["seq"]
            if said["type"] == "hello":
                answer = {"harness_version": "0", "protocol_version": 1, "model_server": "Seeker"}
                say("hello", {**answer, "capabilities": {}, **(hello or {})}, number)
            elif said["type"] == "episode_start":
                buffer.clear()
            elif said["type"] == "observation":
                host.questions += 1
                if die_after is not None and host.questions == die_after + 1:
                    cut(connection)
                    return
                if wrong:
                    say(
                        wrong,
                        {"error": "observation_failed: KeyError: 'wrist'"},
                        number + (wrong == "action"),
                    )
                    continue
                if not buffer:
                    (image,) = payload["images"].values()
                    buffer += list(chunk_for(image, payload["task_description"], payload.get("states")))
                actions = np.stack(buffer) if chunked else buffer.pop(0)
                if chunked:
                    buffer.clear()
                say("action", {"actions": actions}, number)

    return handle
