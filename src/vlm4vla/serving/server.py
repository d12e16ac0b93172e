"""A policy as a server that openpi's clients ask: one observation in, one chunk out, many connections at a time.

Whoever asks while a batch is computed waits for the next one; a chunk does not depend on who else asks.
"""

from __future__ import annotations

import http
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from vlm4vla import __version__
from vlm4vla.core.errors import RunError
from vlm4vla.core.interfaces import ChunkPredictor
from vlm4vla.core.types import Observation
from vlm4vla.serving.codec import LARGEST, pack, unpack
from vlm4vla.serving.layout import Layout, told

_Chunk = Float32[np.ndarray, "horizon 7"]
_INTERNAL_ERROR = 1011


class PolicyServer:
    """Listens from the start on; `run` answers. `layout` says under which names image and instruction come, and in
    which convention actions go.
    """

    def __init__(
        self,
        predictor: ChunkPredictor,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        layout: Layout | None = None,
        metadata: Mapping[str, Any] | None = None,
        batch: int = 16,
    ) -> None:
        """Port 0: a free one. Raises: RunError when the port cannot be had, ActionSpecMismatch when the actions cannot
        be told in the layout's convention.
        """
        self._predictor = predictor
        self._layout = layout or Layout(image="observation/image")
        self._batch = batch
        told(
            np.zeros((1, 7), np.float32), self._layout, predictor.action_spec
        )  # what cannot be told is refused now
        means = self._layout.spec(predictor.action_spec).to_json()
        if self._layout.gripper.endswith("one"):
            means["gripper"] = self._layout.gripper
        self.metadata = {
            "server": f"vlm4vla {__version__}",
            "action_spec": means,
            "horizon": predictor.horizon,
            **(metadata or {}),
        }
        self._asked: queue.SimpleQueue[tuple[Observation, Future[_Chunk]] | None] = queue.SimpleQueue()
        try:
            self._server = serve(
                self._converse,
                host,
                port,
                compression=None,
                max_size=LARGEST,
                ping_interval=None,
                process_request=_health,
            )
        except OSError as error:
            raise RunError(f"{host}:{port}: cannot listen there ({error}); choose another --port") from error
        self.address = "ws://{}:{}".format(*self._server.socket.getsockname()[:2])
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def run(self) -> None:
        """Answer until `stop`."""
        while (first := self._asked.get()) is not None:
            questions = [first]
            with suppress(queue.Empty):
                while len(questions) < self._batch:
                    further = self._asked.get_nowait()
                    if further is None:
                        self._asked.put(None)
                        break
                    questions.append(further)
            self._answer(questions)

    def stop(self) -> None:
        """End `run` when it has answered what it computes."""
        self._asked.put(None)

    def close(self) -> None:
        """Hang up everywhere and stop listening; who still waits for an answer is told."""
        ending = threading.Thread(target=self._server.shutdown)
        ending.start()
        while ending.is_alive():
            with suppress(queue.Empty):
                left = self._asked.get(timeout=0.05)
                if left is not None:
                    self._fail([left], RunError("the server was stopped"))
        self._thread.join()

    def _answer(self, questions: list[tuple[Observation, Future[_Chunk]]]) -> None:
        try:
            chunks = self._predictor.predict_chunk([observation for observation, _ in questions])
        except (RuntimeError, ValueError) as error:  # out of memory, too; those who ask later may be answered
            self._fail(questions, error)
        except BaseException as error:
            self._fail(questions, error)
            raise
        else:
            for chunk, (_, future) in zip(chunks, questions, strict=True):
                future.set_result(chunk)

    def _fail(self, questions: list[tuple[Observation, Future[_Chunk]]], error: BaseException) -> None:
        for _, future in questions:
            future.set_exception(RunError(f"the policy failed: {type(error).__name__}: {error}"))

    def _converse(self, connection: ServerConnection) -> None:
        """One client, in a thread of its own."""
        try:
            connection.send(pack(self.metadata, "openpi"))
            for message in connection:
                began = time.monotonic()
                try:
                    future: Future[_Chunk] = Future()
                    self._asked.put((self._read(message), future))
                    actions = told(future.result(), self._layout, self._predictor.action_spec)
                except (RunError, ValueError) as error:
                    connection.send(f"vlm4vla: error: {error}")
                    connection.close(_INTERNAL_ERROR, "the frame before says why")
                    return
                timing = {"infer_ms": 1000 * (time.monotonic() - began)}
                connection.send(pack({"actions": actions, "server_timing": timing}, "openpi"))
        except (ConnectionClosed, OSError):
            return

    def _read(self, message: str | bytes) -> Observation:
        found = unpack(message) if isinstance(message, bytes) else None
        if not isinstance(found, dict):
            raise ValueError("an observation is a map in msgpack, in a binary frame")
        image, instruction = found.get(self._layout.image), found.get(self._layout.prompt)
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.shape[2:] != (3,)
            or not image.size
        ):
            raise ValueError(
                f"{self._layout.image!r} must be uint8 [height, width, 3]; what came has {', '.join(map(str, found))}"
            )
        if not isinstance(instruction, str):
            raise ValueError(f"{self._layout.prompt!r} must be the instruction, as text")
        return Observation(image, instruction)


def _health(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    return None
