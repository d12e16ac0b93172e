"""What every test runs under: one thread, no network, no hub."""

from __future__ import annotations

import os

# Before numpy and torch load, which read it then; child processes inherit it. torch.get_num_threads() is 1 after it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ipaddress
import socket
from collections.abc import Generator
from typing import Any

import pytest

REQUIRED = frozenset(os.environ.get("VLM4VLA_REQUIRE", "").split(",")) - {""}
"""Simulators that have to be here: a skipped test in integration/test_NAME.py, or marked `needs`, has failed."""

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_getaddrinfo = socket.getaddrinfo


class NetworkBlocked(RuntimeError):
    """A test reached for the network."""


def _require_local(host: object) -> None:
    if host is None or host in ("", "localhost", socket.gethostname()):
        return
    try:
        local = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        local = False
    if not local:
        raise NetworkBlocked(f"a test reached for {host!r}; mark it `hub` or give it a local stand-in")


def _guarded(call: Any) -> Any:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _require_local(address[0])
        return call(self, address)

    return connect


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    _require_local(host)
    return _getaddrinfo(host, *args, **kwargs)


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets reach this machine only, unless a test is marked `hub`."""
    if request.node.get_closest_marker("hub"):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        return
    monkeypatch.setattr(socket.socket, "connect", _guarded(_connect))
    monkeypatch.setattr(socket.socket, "connect_ex", _guarded(_connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", _guarded_getaddrinfo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needed = {mark.args[0] for mark in item.iter_markers("needs")}
    if item.path.parent.name == "integration":
        needed.add(item.path.stem.removeprefix("test_"))
    if report.skipped and (names := needed & REQUIRED):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = (
            "failed",
            f"VLM4VLA_REQUIRE names {', '.join(names)}, and this was not run: {reason}",
        )
    return report
