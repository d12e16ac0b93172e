"""Policies from outside: servers of both protocols on this machine, and somebody's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from point_world import SPEC, PointWorld, Seeker
from policy_servers import HORIZON, Host, bytes_array, hosted, openpi, vla_eval

from vlm4vla import cli
from vlm4vla.benchmarks.rollout import evaluate
from vlm4vla.core.errors import ActionSpecMismatch, RecipeError, RunError
from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.core.types import EpisodeResult
from vlm4vla.demonstrations.scripted import SCRIPTED
from vlm4vla.reports.records import collect
from vlm4vla.serving.client import RemotePolicy
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.outside import OutsidePolicy, evaluate_outside
from vlm4vla.studies.runs import RunStore, read_json

STATE = {"state": "observation/state"}
ASKS = {"observation_params": {"send_state": True}}


RECIPE = EvaluationRecipe(benchmark="policy_servers:point_world", look="", episodes_per_task=4, execute=3)
QUIET = Resources(progress=False, workers=0)


def timeless(results: list[EpisodeResult]) -> list[EpisodeResult]:
    return [replace(result, seconds=0.0) for result in results]


def local(execute: int, world: PointWorld | None = None, **options: Any) -> list[EpisodeResult]:
    world = world or PointWorld()
    return timeless(
        evaluate(Seeker(), world, execute=execute, folder=None, workers=0, progress=False, **options)
    )


def remote(host: Host, *, execute: int, **options: Any) -> RemotePolicy:
    return RemotePolicy(host.address, SPEC, benchmark="point-world", execute=execute, **options)


def play(policy: RemotePolicy, world: PointWorld | None = None, **options: Any) -> list[EpisodeResult]:
    world = world or PointWorld()
    settings = {"workers": 0, "progress": False, "folder": None, **options}
    return timeless(evaluate(policy, world, execute=policy.horizon, **settings))


@pytest.mark.parametrize("connections", [1, 4])
def test_an_openpi_server_gives_the_results_of_the_same_policy_here(connections: int) -> None:
    with hosted(openpi()) as host:
        for environments, workers in ((1, 0), (8, 0), (6, 2)):
            with closing(remote(host, execute=3, changes=STATE, connections=connections)) as policy:
                assert policy.protocol == "openpi" and policy.metadata == {"policy": "seeker"}
                found = play(policy, environments=environments, workers=workers)
                assert found == local(3)
        assert set(host.said[0]) == {"observation/image", "observation/state", "prompt"}
        assert len(host.connections) == sum(min(connections, n) for n in (1, 8, 6)) or connections == 4


def test_a_vla_eval_server_with_a_buffer_gives_the_results_of_whole_chunks() -> None:
    with hosted(vla_eval(hello=ASKS)) as host:
        for environments, connections in ((1, 1), (5, 1), (5, 3)):
            protocol = "auto" if environments == 1 else "vla-eval"
            with closing(remote(host, execute=1, connections=connections, protocol=protocol)) as policy:
                assert policy.protocol == "vla-eval" and policy.metadata["model_server"] == "Seeker"
                assert play(policy, environments=environments) == local(HORIZON)
        kinds = [said["type"] for said in host.said]
        assert kinds.count("episode_start") == kinds.count("episode_end") == 3 * 12
        ends = [said["payload"] for said in host.said if said["type"] == "episode_end"][:12]
        assert [end["metrics"]["success"] for end in ends] == [r.success for r in local(HORIZON)]
        assert host.said[0]["payload"]["protocol_version"] == 1


def test_a_vla_eval_server_may_answer_whole_chunks_and_hears_of_new_goals() -> None:
    world = PointWorld(goals=2, episodes_per_task=2)
    with hosted(vla_eval(hello=ASKS, chunked=True)) as host:
        with closing(remote(host, execute=3, protocol="vla-eval")) as policy:
            assert play(policy, world) == local(3, world)
        restarts = sum(said["payload"].get("episode_restart", False) for said in host.said)
        reached = sum(r.goals_completed == 1 or r.success for r in local(3, world))
        assert restarts == 6 + reached


def test_a_server_is_told_the_suite_and_the_key_and_the_key_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM4VLA_API_KEY", "secret-key")
    with hosted(vla_eval(hello=ASKS)) as host:
        policy = OutsidePolicy(address=host.address, protocol="vla-eval")
        evaluate_outside(policy, replace(RECIPE, execute=1, episodes_per_task=1), RunStore(tmp_path), QUIET)
        starts = [said["payload"]["task"] for said in host.said if said["type"] == "episode_start"]
        assert [(task["suite"], task["name"]) for task in starts] == [
            ("point", "go left"),
            ("point", "go right"),
            ("point", "go up"),
        ]
        request = host.connections[0].request
        assert request is not None and request.headers["Authorization"] == "Api-Key secret-key"
    assert not any("secret-key" in path.read_text() for path in tmp_path.rglob("*.json*"))


def test_sessions_survive_a_worker_that_breaks(tmp_path: Path) -> None:
    world = PointWorld(faults={"2": "exit"})
    with (
        hosted(vla_eval(hello=ASKS)) as host,
        closing(remote(host, execute=1, protocol="vla-eval")) as policy,
    ):
        found = play(policy, world, workers=2, environments=6, folder=tmp_path)
        expected = local(HORIZON)
        assert [result.error is not None for result in found].count(True) == 1
        assert all(a == b for a, b in zip(found, expected, strict=True) if a.error is None)


@pytest.mark.parametrize("protocol", ["openpi", "vla-eval"])
def test_a_server_that_dies_stops_it_and_the_same_again_ends_with_the_same_numbers(
    protocol: str, tmp_path: Path
) -> None:
    deadly = openpi(die_after=17) if protocol == "openpi" else vla_eval(hello=ASKS, die_after=17)
    with hosted(deadly) as host:
        policy = OutsidePolicy(
            address=host.address,
            layout=STATE if protocol == "openpi" else {},
            name="seeker",
            seconds=5,
            protocol=protocol,
        )
        recipe = replace(RECIPE, execute=3 if protocol == "openpi" else 1)
        store = RunStore(tmp_path)
        with pytest.raises(RunError, match=r"the policy server has gone .* kept: the same command goes on"):
            evaluate_outside(policy, recipe, store, QUIET)
        (log,) = tmp_path.glob("trials/*/evaluations/*/episodes.jsonl")
        kept = log.read_text().splitlines()
        host.stop()
        with pytest.raises(RunError, match="no policy server answers"):
            evaluate_outside(policy, recipe, store, QUIET)
        assert log.read_text().splitlines() == kept
        status = read_json(log.parents[2] / "status.json")
        assert status["state"] == "failed" and "has gone" in status["error"]
        host.start()
        folder, results = evaluate_outside(policy, recipe, store, QUIET)
        assert timeless(results) == local(3 if protocol == "openpi" else HORIZON)
        assert log.read_text().splitlines()[: len(kept)] == kept
        status = read_json(folder / "status.json")
        assert status["state"] == "done" and status["seconds"]["evaluate"] > 0
        noted = read_json(folder / "provenance.json")
        assert noted["address"] == host.address
        assert noted["policy"]["protocol"] == protocol
        assert "policy" in noted["policy"]["metadata"] or "model_server" in noted["policy"]["metadata"]


def test_shards_and_repeats_of_a_server_are_those_of_an_evaluation(tmp_path: Path) -> None:
    with hosted(openpi()) as host:
        policy = OutsidePolicy(address=host.address, layout=STATE)
        recipe = replace(RECIPE, repeats=2)
        whole = evaluate_outside(policy, recipe, RunStore(tmp_path / "whole"), QUIET)[1]
        assert len(whole) == 24 and whole[12].episode == "left/000~repeat-1"
        parts = []
        for number in range(3):
            sharded = replace(QUIET, shard=(number, 3))
            parts += evaluate_outside(policy, recipe, RunStore(tmp_path / "parts"), sharded)[1]
        by_name = sorted(timeless(parts), key=lambda r: r.episode)
        assert by_name == sorted(timeless(whole), key=lambda r: r.episode)


def test_another_policy_at_the_same_address_is_not_taken_for_the_first(tmp_path: Path) -> None:
    with hosted(openpi(metadata={"step": 1})) as first, hosted(openpi(metadata={"step": 2})) as second:
        store = RunStore(tmp_path)
        for host in (first, second):
            policy = OutsidePolicy(address=host.address, layout=STATE, name="pi0")
            if host is second:
                with pytest.raises(RunError, match=r"begun with something else.*'step': 1.*'step': 2"):
                    evaluate_outside(policy, RECIPE, store, QUIET)
            else:
                evaluate_outside(policy, RECIPE, store, QUIET)
        other = replace(policy, layout={**STATE, "gripper": "close_positive"})
        evaluate_outside(other, RECIPE, store, QUIET)
        assert len(list(tmp_path.glob("trials/*"))) == 2


def test_a_server_that_saw_scripted_demonstrations_is_called_so(tmp_path: Path) -> None:
    """As `vlm4vla serve` says of a checkpoint; other servers say nothing."""
    for number, metadata in enumerate(({"scripted": "by a test"}, {"step": 1})):
        with hosted(openpi(metadata=metadata)) as host:
            policy = OutsidePolicy(address=host.address, layout=STATE, name=f"pi{number}")
            evaluate_outside(policy, RECIPE, RunStore(tmp_path), QUIET)
    assert [record.note for record in collect(tmp_path)] == [SCRIPTED, ""]


def packed(**message: Any) -> bytes:
    return bytes(msgpack.packb(message, default=bytes_array))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (packed(actions=np.zeros((5, 6))), r"actions of shape \(5, 6\)"),
        (packed(actions=np.full((5, 7), np.inf)), "actions that are not finite"),
        (packed(actions=np.zeros((2, 7))), "2 actions at a time"),
        (packed(action=np.zeros((5, 7))), "it has no `actions`"),
        (
            packed(actions={b"__ndarray__": True, b"data": b"x", b"dtype": "|O", b"shape": []}),
            "array of the type",
        ),
        (b"\xc1", "no message in msgpack"),
        (bytes(65 << 20), "larger than 67,108,864 bytes"),
        (
            "Traceback (most recent call last):\nKeyError: 'observation/wrist_image'",
            "KeyError: 'observation/wrist",
        ),
    ],
)
def test_an_answer_that_cannot_be_used_is_named_with_the_address(answer: Any, told: str) -> None:
    with hosted(openpi(lambda _: answer)) as host, closing(remote(host, execute=3, seconds=20)) as policy:
        with pytest.raises(RunError, match=told) as caught:
            play(policy)
        assert str(caught.value).startswith(host.address)
        assert "What was recorded is kept" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("error", "KeyError: 'wrist'"), ("action", "action 3 was expected, and action 4 came")],
)
def test_errors_of_a_vla_eval_server_are_told(wrong: str, told: str) -> None:
    with (
        hosted(vla_eval(hello=ASKS, wrong=wrong)) as host,
        closing(remote(host, execute=1, protocol="vla-eval")) as policy,
        pytest.raises(RunError, match=told),
    ):
        play(policy)


def test_a_server_that_does_not_answer_is_not_waited_for_forever() -> None:
    def silent(host: Host, connection: Any) -> None:
        connection.send(msgpack.packb({}))
        connection.recv()
        connection.recv()

    with (
        hosted(silent) as host,
        closing(remote(host, execute=3, seconds=0.3)) as policy,
        pytest.raises(RunError, match=r"no answer within 0.3 s; --timeout allows more"),
    ):
        play(policy)


def test_bad_addresses_protocols_and_conventions_are_told_before_anything_is_played() -> None:
    for address, kind in (("ws://", RecipeError), ("ws://127.0.0.1:1", RunError)):
        with pytest.raises(kind, match=address):
            RemotePolicy(address, SPEC, benchmark="point-world", execute=1)
    with hosted(openpi()) as host:
        with pytest.raises(RecipeError, match="did you mean 'openpi'"):
            remote(host, execute=1, protocol="openpy")
        with pytest.raises(ActionSpecMismatch, match="rotation"):
            remote(host, execute=1, changes={"rotation": "axis_angle"})
        with pytest.raises(RunError, match="no message of vla-eval's"):
            remote(host, execute=1, protocol="vla-eval")
        assert host.questions <= 1


CODE = """
import numpy as np
from point_world import Seeker

BROKEN = {broken}
made = 0

def seek(observations):
    global made
    made += 1
    if BROKEN and made > 2:
        raise KeyError("no such joint")
    return Seeker().predict_chunk(observations)

class Memory(Seeker):
    version = "3"
    def __init__(self):
        super().__init__()
        self.ended = []
    def end_episode(self, episode, result):
        assert result is not None and result.episode == episode
        self.ended.append(episode)

def make():
    return Seeker()

here = Seeker()

def still(observations):
    return np.zeros((len(observations), 7))
"""


@pytest.fixture
def code(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *, broken: bool = False) -> str:
        path = tmp_path / "mine.py"
        path.write_text(CODE.format(broken=broken))
        return f"{path}:{name}"

    return write


@pytest.mark.parametrize("name", ["seek", "Memory", "make", "here"])
def test_code_is_a_policy_as_function_class_factory_or_object(
    name: str, code: Callable[..., str], tmp_path: Path
) -> None:
    policy = OutsidePolicy(address=code(name), name=name)
    folder, results = evaluate_outside(policy, RECIPE, RunStore(tmp_path / "out"), QUIET)
    assert timeless(results) == local(3)
    noted = read_json(folder / "provenance.json")["policy"]
    assert len(noted["sha256"]) == 16 and noted["version"] == ("3" if name == "Memory" else "")


def test_code_by_module_name_in_worker_processes(tmp_path: Path) -> None:
    policy = OutsidePolicy(address="point_world:Seeker")
    resources = replace(QUIET, workers=2)
    assert timeless(evaluate_outside(policy, RECIPE, RunStore(tmp_path), resources)[1]) == local(3)


def test_code_that_breaks_is_told_with_its_place_and_goes_on_when_mended(
    code: Callable[..., str], tmp_path: Path
) -> None:
    policy = OutsidePolicy(address=code("seek", broken=True), name="mine")
    store = RunStore(tmp_path / "out")
    with pytest.raises(
        RunError, match=r"KeyError: 'no such joint' \(.*mine.py:12, in seek\). What was recorded"
    ):
        evaluate_outside(policy, RECIPE, store, QUIET)
    code("seek")
    _, results = evaluate_outside(policy, RECIPE, store, QUIET)
    assert timeless(results) == local(3)
    assert len(list((tmp_path / "out").glob("trials/*"))) == 2, "other code is another policy"


def test_code_may_ask_for_what_a_benchmark_does_not_show(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def policy(observations):\n    return 0\n\npolicy.needs = ('state',)\n")
    recipe = EvaluationRecipe(benchmark="tabletop-d", episodes_per_task=1, execute=3)
    with pytest.raises(RecipeError, match="shows no state, which the policy asks for"):
        evaluate_outside(OutsidePolicy(address=f"{path}:policy"), recipe, RunStore(tmp_path / "out"), QUIET)


def test_code_that_is_no_policy_is_told(code: Callable[..., str], tmp_path: Path) -> None:
    store = RunStore(tmp_path / "out")
    cases = [
        (code("still"), RunError, r"float64 \(12, 7\); floats \(12, 3, 7\) are expected"),
        (code("BROKEN"), RecipeError, "bool is no policy"),
        (code("nothing"), RecipeError, "no 'nothing' at its top level"),
        ("nowhere.py:policy", RecipeError, "nowhere.py: there is no such file"),
        ("nowhere:policy", RecipeError, "there is no module 'nowhere'"),
    ]
    for address, kind, told in cases:
        with pytest.raises(kind, match=told):
            evaluate_outside(OutsidePolicy(address=address), RECIPE, store, QUIET)
    with pytest.raises(RecipeError, match="draws no noise"):
        evaluate_outside(OutsidePolicy(address=code("seek")), replace(RECIPE, repeats=2), store, QUIET)


def test_the_example_of_the_documents_plays_tabletop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text()
    example = text.partition("## A policy")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "mine.py").write_text(example)
    arguments = ["evaluate", "--policy", f"{tmp_path / 'mine.py'}:policy", "--benchmark", "tabletop-d"]
    few = [
        "--tasks",
        "press,reach",
        "--episodes",
        "1",
        "--execute",
        "4",
        "--workers",
        "0",
        "--quiet",
        "--json",
    ]
    assert cli.main([*arguments, *few, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["task"] for row in rows} == {"all", "press", "reach"}
    assert all(row["errors"] == 0 and row["episodes"] >= 1 for row in rows)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hosted(openpi()) as host:
        common = [
            "--benchmark",
            RECIPE.benchmark,
            "--episodes",
            "2",
            "--out",
            str(tmp_path),
            "--workers",
            "0",
        ]
        wire = [
            "--wire",
            "state=observation/state",
            "--name",
            "pi0",
            "--protocol",
            "openpi",
            "--execute",
            "3",
        ]
        assert cli.main(["evaluate", "--policy", host.address, *common, *wire, "--quiet", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {(row["weights"], row["errors"]) for row in rows} == {("given", 0)}
        assert all(row["backbone"].startswith("pi0@") for row in rows)
        assert (
            cli.main(["evaluate", "--policy", "point_world:Seeker", *common, "--execute", "1,3", "--quiet"])
            == 0
        )
        table = capsys.readouterr().out
        assert "pi0@" in table and "point_world:Seeker@" in table
        assert "1 action of each chunk" in table and "3 actions of each chunk" in table
        page = (tmp_path / "report.html").read_text()
        assert "observation/state" in page and "fast_vocabulary" not in page, "nothing of ours is said of it"
        (trial,) = [
            path.parent for path in tmp_path.glob("trials/*/trial.json") if "pi0@" in path.read_text()
        ]
        told = [
            (["evaluate", str(trial), "--quiet"], "name it with --policy"),
            (["evaluate"], "needs one of RUN and --policy"),
            (["evaluate", "--policy", "point_world:Seeker"], "needs --benchmark"),
            (["evaluate", "--policy", "nowhere", *common], "neither a folder nor"),
            (["evaluate", "--policy", "gpu-3:8000", *common], "write ws://gpu-3:8000 for a server"),
            (["evaluate", "--policy", "point_world:Seeker", *common, "--plan"], "not for --policy"),
            (["evaluate", "--policy", "a:b", *common, "--checkpoints", "all"], "not for --policy"),
            (["evaluate", "--policy", host.address, *common, "--wire", "state"], "FIELD=VALUE"),
        ]
        for arguments, text in told:
            assert cli.main(arguments) == 1
            assert text in capsys.readouterr().err
