"""The workers of one evaluation: started when needed, watched, replaced when they break.

Environments are numbered places; place p belongs to worker p modulo the number of workers. A worker that breaks
takes the episodes of all its places with it: one is to blame, the others are begun again elsewhere, with equal
results since episodes carry no history.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from vlm4vla.benchmarks.software import software_of
from vlm4vla.benchmarks.wire import START, Reply, Request
from vlm4vla.benchmarks.workers import LocalWorker, WorkerProcess
from vlm4vla.core.errors import SimulatorError
from vlm4vla.core.interfaces import Benchmark, Isolated

_STARTS = 2
"""How often in a row a worker may fail to start before it is given up."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker broke. Its places are free again; the next request starts another."""

    places: frozenset[int]
    culprit: int | None
    """The place whose episode broke it, when it was one."""
    error: str


@dataclass(slots=True, eq=False)
class _Seat:
    places: frozenset[int]
    worker: WorkerProcess | LocalWorker | None = None
    outstanding: deque[int] = field(default_factory=deque)
    """Places whose requests are not answered; a worker answers in order."""
    since: float = 0.0
    """When the first of them began; rather too late than too early, since we may look late."""
    last: int | None = None
    """The place that was answered last."""
    failed_starts: int = 0


class Pool:
    """`places` environments in `workers` processes; 0 workers: in this process.

    What is `Isolated` is never played in this process, and has one place in each; nor is what a `python` is named for.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        *,
        places: int,
        workers: int,
        time_limit: float,
        python: str | None = None,
        memory: int = 0,
    ) -> None:
        """A worker of one place that holds more than `memory` bytes (0: any number) is replaced before an episode.

        `python` is the interpreter of the processes, by default the benchmark's own.
        """
        self.benchmark = benchmark
        if isinstance(benchmark, Isolated):
            workers = max(1, workers)
            places = min(places, workers)
            python = python or benchmark.python
        elif python is not None:
            workers = max(1, workers)
        self._local = workers == 0
        self._time_limit = time_limit
        self._python = python
        self._memory = memory
        count = max(1, min(workers, places))
        self._seats = [_Seat(frozenset(range(seat, places, count))) for seat in range(count)]
        self._selector = selectors.DefaultSelector()
        self.software: Mapping[str, str] = software_of(benchmark) if self._local else {}
        """What plays, as the worker that started last says; all of a pool have the same."""
        self._last_error = ""

    def free(self, occupied: Collection[int]) -> list[int]:
        """Places that can take an episode: not occupied, and their worker not given up."""
        usable = [seat.places for seat in self._seats if seat.failed_starts < _STARTS]
        return sorted(frozenset().union(*usable).difference(occupied))

    def busy(self, place: int) -> bool:
        """Whether the place's worker has anything to do."""
        return bool(self._seat(place).outstanding)

    def send(self, request: Request) -> None:
        """Ask a place for something; its worker is started if there is none."""
        seat = self._seat(request.place)
        if request.episode is not None and self._overfull(seat):
            self._dismiss(seat)
        if seat.worker is None:
            self._start(seat)
        assert seat.worker is not None
        if not seat.outstanding:
            seat.since = time.monotonic()
        seat.outstanding.append(request.place)
        seat.worker.send(request)

    def wait(self) -> list[Reply | Lost]:
        """At least one answer. Raises: SimulatorError when no worker can be started."""
        events: list[Reply | Lost] = []
        while not events:
            if all(seat.failed_starts >= _STARTS for seat in self._seats):
                raise SimulatorError(
                    f"no worker of {self.benchmark.name} could be started: {self._last_error}"
                )
            readable = self._seats if self._local else self._select()
            for seat in readable:
                events += self._receive(seat)
            now = time.monotonic()
            for seat in self._seats:
                if seat not in readable and seat.outstanding and now - seat.since >= self._time_limit:
                    events.append(self._lose(seat, f"no answer within {self._time_limit:g} s"))
        return events

    def close(self) -> None:
        """End every worker."""
        workers = [seat.worker for seat in self._seats if seat.worker is not None]
        for worker in workers:
            if isinstance(worker, WorkerProcess):
                worker.hang_up()  # all at once, so that they end side by side
        for worker in workers:
            worker.close()
        self._selector.close()

    def _seat(self, place: int) -> _Seat:
        return self._seats[place % len(self._seats)]

    def _overfull(self, seat: _Seat) -> bool:
        if not self._memory or len(seat.places) > 1 or seat.outstanding:
            return False
        return isinstance(seat.worker, WorkerProcess) and seat.worker.memory > self._memory

    def _dismiss(self, seat: _Seat) -> None:
        """End a worker that is between episodes."""
        assert isinstance(seat.worker, WorkerProcess)
        self._selector.unregister(seat.worker)
        seat.worker.close()
        seat.worker = None

    def _start(self, seat: _Seat) -> None:
        seat.last = None
        if self._local:
            seat.worker = LocalWorker(self.benchmark)
            return
        seat.worker = WorkerProcess(*self.benchmark.recipe(), python=self._python)
        seat.since = time.monotonic()
        seat.outstanding.append(START)
        self._selector.register(seat.worker, selectors.EVENT_READ, seat)

    def _select(self) -> list[_Seat]:
        began = [seat.since for seat in self._seats if seat.outstanding]
        assert began, "waiting though nothing was asked"
        timeout = max(0.0, min(began) + self._time_limit - time.monotonic())
        return [key.data for key, _ in self._selector.select(timeout)]

    def _receive(self, seat: _Seat) -> list[Reply | Lost]:
        worker = seat.worker
        if worker is None:
            return []
        events: list[Reply | Lost] = []
        for reply in worker.receive():
            if reply.place == START and reply.benchmark != self.benchmark.name:
                error = f"recipe() of {self.benchmark.name} made {reply.benchmark} in the worker"
                return [*events, self._lose(seat, error)]
            if reply.error is not None:
                return [*events, self._lose(seat, reply.error)]
            seat.last = seat.outstanding.popleft()
            seat.since = time.monotonic()
            if reply.place == START:
                seat.failed_starts = 0
                self.software = reply.software
            else:
                events.append(reply)
        if isinstance(worker, WorkerProcess) and worker.ended:
            events.append(self._lose(seat, worker.describe_end()))
        return events

    def _lose(self, seat: _Seat, error: str) -> Lost:
        """Blames the request under way; between requests, the place that was answered last."""
        assert seat.worker is not None
        blamed = seat.outstanding[0] if seat.outstanding else seat.last
        if blamed == START:
            seat.failed_starts += 1
            self._last_error = error
        if isinstance(seat.worker, WorkerProcess):
            self._selector.unregister(seat.worker)
        seat.worker.kill()
        seat.worker = None
        seat.outstanding.clear()
        return Lost(seat.places, None if blamed == START else blamed, error)
