"""A checkpoint behind a socket: the same actions as here, to the bit, for one client and for several at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import tiny_trials
from point_world import SPEC, PointWorld, Seeker
from websockets.sync.client import connect

from vlm4vla import cli
from vlm4vla.benchmarks.rollout import evaluate
from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import ActionSpecMismatch, RunError
from vlm4vla.core.interfaces import ChunkPredictor
from vlm4vla.core.types import EpisodeResult, Observation
from vlm4vla.policies.predictor import Predictor
from vlm4vla.policies.vla import VLA
from vlm4vla.serving.client import RemotePolicy
from vlm4vla.serving.codec import pack, unpack
from vlm4vla.serving.layout import Layout
from vlm4vla.serving.server import PolicyServer
from vlm4vla.training.train import train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    vlm = tiny_trials.tiny_vlm(folder / "vlm")
    source = tiny_trials.packed(folder / "walks")
    return train(tiny_trials.trial(vlm, steps=8), source, folder / "run", progress=False)


@contextmanager
def serving(predictor: ChunkPredictor, layout: Layout | None = None) -> Iterator[PolicyServer]:
    with closing(PolicyServer(predictor, port=0, layout=layout)) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


def play(predictor: ChunkPredictor, world: PointWorld) -> list[EpisodeResult]:
    found = evaluate(predictor, world, execute=3, folder=None, workers=0, progress=False)
    return [replace(result, seconds=0.0) for result in found]


def test_a_served_checkpoint_acts_as_it_does_here_to_the_bit(checkpoint: Path) -> None:
    here = Predictor(VLA.from_pretrained(checkpoint), batch_size=4)
    world = PointWorld(episodes_per_task=2)
    expected = play(here, world)
    assert len({result.actions for result in expected}) > 3
    with serving(here) as server:
        for connections in (1, 5):
            with closing(
                RemotePolicy(
                    server.address, SPEC, benchmark="point-world", execute=3, connections=connections
                )
            ) as policy:
                assert policy.metadata["action_spec"] == SPEC.to_json()
                assert play(policy, world) == expected


def test_clients_ask_at_the_same_time_and_one_that_errs_disturbs_nobody() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with serving(Seeker()) as server:
        port = server.address.rpartition(":")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        told = [
            ("text", "in a binary frame"),
            (b"\xc1", "no message in msgpack"),
            (msgpack.packb({"prompt": "go"}), "'observation/image' must be uint8"),
            (msgpack.packb({"observation/image": 3}), "'observation/image' must be uint8"),
        ]
        for message, text in told:
            with connect(server.address) as client:
                client.recv()
                client.send(message)
                assert text in client.recv()
        other = RemotePolicy(server.address, SPEC, benchmark="w", execute=2, changes={"prompt": "words"})
        with closing(other), pytest.raises(RunError, match="'prompt' must be the instruction"):
            other.predict_chunk([Observation(image, "go left")])


def test_actions_go_in_the_convention_that_was_asked_for() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    seen = Observation(image, "go left", state=np.zeros(2, np.float32))

    class Gripping(Seeker):
        def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
            chunks = np.zeros((len(observations), 5, 7), np.float32)
            chunks[:, ::2, 6], chunks[:, 1::2, 6] = 1, -1
            return chunks

    grips = {"close_positive": [-1, 1, -1], "open_one": [1, 0, 1], "close_one": [0, 1, 0]}
    for word, expected in grips.items():
        layout = Layout(image="observation/image", gripper=word)  # type: ignore[arg-type]
        with serving(Gripping(), layout) as server:
            with connect(server.address) as client:
                assert msgpack.unpackb(client.recv())["action_spec"]["gripper"] == word
                client.send(pack({"observation/image": image, "prompt": "x"}, "openpi"))
                assert unpack(client.recv())["actions"][:3, 6].tolist() == expected
            with closing(RemotePolicy(server.address, SPEC, benchmark="w", execute=3)) as policy:
                assert policy.predict_chunk([seen])[0, :, 6].tolist() == [1, -1, 1]
    with pytest.raises(ActionSpecMismatch, match="rotation"):
        PolicyServer(Seeker(), port=0, layout=Layout(image="i", rotation="axis_angle"))


def test_a_policy_that_fails_is_told_to_who_asked() -> None:
    class Broken(Seeker):
        def predict_chunk(self, observations):  # type: ignore[no-untyped-def]
            raise ValueError("the weights are gone")

    with serving(Broken()) as server:
        policy = RemotePolicy(server.address, SPEC, benchmark="w", execute=2)
        with closing(policy), pytest.raises(RunError, match="ValueError: the weights are gone"):
            policy.predict_chunk([Observation(np.zeros((8, 8, 3), np.uint8), "go left")])
        with pytest.raises(RunError, match="choose another --port"):
            PolicyServer(Seeker(), port=int(server.address.rpartition(":")[2]))
        metres = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="metres_radians")
        with pytest.raises(ActionSpecMismatch, match="unit"):
            RemotePolicy(server.address, metres, benchmark="w", execute=2)


def test_serve_and_evaluate_from_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "vlm4vla.cli", "serve", str(checkpoint), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["address"].startswith("ws://127.0.0.1:")
        assert (told["horizon"], told["head"], len(told["weights"])) == (5, "mlp", 16)
        common = ["--benchmark", "policy_servers:point_world", "--episodes", "1", "--execute", "3"]
        quiet = ["--workers", "0", "--json", "--quiet"]
        served = ["evaluate", "--policy", told["address"], "--out", str(tmp_path), *common, *quiet]
        assert cli.main(served) == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 3 and all(row["errors"] == 0 for row in rows)
    assert cli.main(["evaluate", str(checkpoint), *common, *quiet]) == 0
    capsys.readouterr()
    kept = [
        {line["episode"]: line["actions"] for line in map(json.loads, path.read_text().splitlines())}
        for folder in (tmp_path, checkpoint)
        for path in folder.rglob("episodes.jsonl")
    ]
    assert len(kept) == 2 and kept[0] == kept[1] and len(kept[0]) == 3


def test_a_folder_without_a_policy_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", str(tmp_path)]) == 1
    assert "neither a checkpoint" in capsys.readouterr().err
