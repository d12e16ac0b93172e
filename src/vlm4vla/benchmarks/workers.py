"""Who steps environments: a child process, or for debugging this one.

The child is started with the interpreter that has the simulator, builds the benchmark from its recipe and imports
no torch. It answers on an inherited socket, since simulators print to stdout, and ends when the socket closes or
its parent dies.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm4vla.benchmarks import wire
from vlm4vla.benchmarks.machine import resident
from vlm4vla.benchmarks.registry import load
from vlm4vla.benchmarks.software import software_of
from vlm4vla.benchmarks.wire import START, Reply, Request
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.interfaces import Benchmark, Environment, LazyEnvironment
from vlm4vla.core.types import EpisodeSpec

SOURCE_ROOT = str(Path(__file__).parents[2])
"""Where this package is, for a Python that does not have it."""
# Our own interpreter gets exactly our import path; a foreign one keeps its own and finds this package after it.
_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from vlm4vla.benchmarks.workers import main; main()"
_BOOT_FOREIGN = "import sys; sys.path += sys.argv[2:]; from vlm4vla.benchmarks.workers import main; main()"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"), "1"
)
"""Workers share the cores: each computes with one thread, and so does Mesa's software renderer (`LP_`)."""
_OUTPUT_LIMIT = 1 << 20
"""Bytes of a simulator's chatter that are kept."""
_GOODBYE_SECONDS = 5.0


@dataclass(slots=True)
class _Stage:
    environment: Environment
    episode: EpisodeSpec
    record: bool
    completed: int = 0


class Host:
    """The environments of one process, by place."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        # One is built at once, so that a simulator that cannot start fails here and not in its first episode.
        self._spare: list[Environment] = [benchmark.make_environment()]
        self._stages: dict[int, _Stage] = {}

    def answer(self, request: Request) -> Reply:
        """Do what is asked; whatever the simulator raises becomes the reply's error."""
        try:
            return self._play(request) if request.episode is None else self._reset(request, request.episode)
        except Exception as error:  # noqa: BLE001 - the one place: a broken simulator costs one episode
            return Reply(place=request.place, error=_describe(error))

    def close(self) -> None:
        """Close every environment."""
        for environment in [*self._spare, *(stage.environment for stage in self._stages.values())]:
            environment.close()

    def _reset(self, request: Request, episode: EpisodeSpec) -> Reply:
        place = request.place
        if place in self._stages:
            environment = self._stages[place].environment
        else:
            environment = self._spare.pop() if self._spare else self._benchmark.make_environment()
        self._stages[place] = _Stage(environment, episode, request.record)
        observation = environment.reset(episode)
        return Reply(
            place=place, observation=observation, frames=observation.image[None] if request.record else None
        )

    def _play(self, request: Request) -> Reply:
        assert request.actions is not None and len(request.actions)
        stage = self._stages[request.place]
        environment = stage.environment
        lazy = environment if isinstance(environment, LazyEnvironment) and not stage.record else None
        frames, steps = [], 0
        # A copy: an environment that clips its action in place must not change the policy's.
        for action in np.array(request.actions, dtype=np.float32):
            if lazy is not None:
                completed = lazy.advance(action)
            else:
                step = environment.step(action)
                observation, completed = step.observation, step.goals_completed
                if stage.record:
                    frames.append(observation.image)
            steps += 1
            if completed != stage.completed:
                break
        goals = len(stage.episode.goals)
        if not stage.completed <= completed <= goals:
            raise SimulatorError(
                f"goals completed went from {stage.completed} to {completed} of {goals}; "
                "they count up and never fall"
            )
        stage.completed = completed
        return Reply(
            place=request.place,
            observation=lazy.observe() if lazy is not None else observation,
            goals_completed=completed,
            steps=steps,
            frames=np.stack(frames) if frames else None,
        )


class LocalWorker:
    """The same in this process: no parallelism and no watchdog, but a debugger reaches it."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._host = Host(benchmark)
        self._replies = bytearray()

    def send(self, request: Request) -> None:
        """Carry the request out at once. It goes through the same bytes, so that both ways see the same values."""
        message = wire.unpack(bytearray(wire.pack_request(request)))
        assert message is not None
        self._replies += wire.pack_reply(self._host.answer(wire.unpack_request(*message)))

    def receive(self) -> list[Reply]:
        """Every reply not yet taken."""
        return list(wire.take_replies(self._replies))

    def kill(self) -> None:
        """Leave the environments, one of them broken, to the garbage collector."""

    def close(self) -> None:
        """Close the environments."""
        self._host.close()


class WorkerProcess:
    """A child process with a `Host`. Its first reply, from place START, says that the benchmark is built."""

    def __init__(self, factory: str, arguments: Mapping[str, Any], *, python: str | None = None) -> None:
        self.ended = False
        self._buffer = bytearray()
        self._output = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
        self._socket, theirs = socket.socketpair()
        own_path = [str(Path(entry).absolute()) for entry in sys.path]
        start = [sys.executable, "-c", _BOOT] if python is None else [python, "-c", _BOOT_FOREIGN]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*start, str(theirs.fileno()), *(own_path if python is None else [SOURCE_ROOT])],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=self._output,
                    env={**os.environ, **ONE_THREAD, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
                )
            except OSError as error:
                self._socket.close()
                self._output.close()
                raise SimulatorError(
                    f"cannot start a worker with the interpreter {start[0]}: {error}"
                ) from error
        self._socket.setblocking(False)
        self._outbox = bytearray(wire.pack({"factory": factory, "arguments": dict(arguments)}, {}))
        self._flush()

    def fileno(self) -> int:
        """To wait for replies with `selectors`."""
        return self._socket.fileno()

    @property
    def memory(self) -> int:
        """Bytes that it holds now; 0 where that cannot be told."""
        return resident(self._process.pid)

    def send(self, request: Request) -> None:
        """Queue a request; several may be under way. A dead child shows in `receive`."""
        if request.episode is not None and os.fstat(self._output.fileno()).st_size > _OUTPUT_LIMIT:
            self._output.truncate(0)
        self._outbox += wire.pack_request(request)
        self._flush()

    def receive(self) -> list[Reply]:
        """Every complete reply that has arrived, without waiting. Sets `ended` when there will be no more."""
        self._read()
        self._flush()
        return list(wire.take_replies(self._buffer))

    def describe_end(self) -> str:
        """How the process ended and the last lines it printed."""
        try:
            code = self._process.wait(timeout=_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            how = "the worker process closed its connection"
        else:
            name = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
            how = f"the worker process ended {name}"
        return how + self.last_lines()

    def last_lines(self) -> str:
        """The last lines that the process printed, as the end of a message."""
        self._output.seek(max(0, os.fstat(self._output.fileno()).st_size - 4000))
        lines = self._output.read().decode(errors="replace").strip().splitlines()[-15:]
        return "; it printed nothing" if not lines else "; its last lines:\n  " + "\n  ".join(lines)

    def kill(self) -> None:
        """End the process whatever it does."""
        self._process.kill()
        self.close()

    def hang_up(self) -> None:
        """Ask the process to end by closing the connection."""
        self._socket.close()

    def close(self) -> None:
        """Hang up and wait; kill the process when it does not end within seconds."""
        self.hang_up()
        try:
            self._process.wait(timeout=_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _flush(self) -> None:
        # Never waits: the child may itself be waiting for us to take a reply. What is left goes with a later call.
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._outbox.clear()

    def _read(self) -> None:
        try:
            while wire.receive(self._socket, self._buffer):
                pass
            self.ended = True
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.ended = True


def main() -> None:
    """The child: build the benchmark named in the first message, then answer until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()  # a closed connection is only noticed between requests
    connection = socket.socket(fileno=int(sys.argv[1]))
    del sys.argv[1:]
    buffer = bytearray()
    host: Host | None = None
    while wire.receive(connection, buffer):
        while (message := wire.unpack(buffer)) is not None:
            if host is None:
                benchmark = load(message[0]["factory"])(**message[0]["arguments"])
                host = Host(benchmark)
                reply = Reply(place=START, benchmark=benchmark.name, software=software_of(benchmark))
            else:
                reply = host.answer(wire.unpack_request(*message))
            try:
                connection.sendall(wire.pack_reply(reply))
            except (BrokenPipeError, ConnectionResetError):
                return
    if host is not None:
        host.close()


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, however that dies; on Linux only."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _describe(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:500]  # OpenGL's take a screen
    return f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno} in {where.name})"
