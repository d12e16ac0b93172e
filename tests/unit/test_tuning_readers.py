"""What VLMs are tuned on: published layouts, written small and read back; the paper's A.6 word for word."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.tuning.examples import IMAGE_MARK, Conversation, ConversationSource, check
from vlm4vla.tuning.readers import Files, Mixed, RowSource
from vlm4vla.tuning.readers_rows import JsonRows
from vlm4vla.tuning.tasks import TASKS, open_task

ROBOPOINT = "Locate several points on an item situated beneath the bordered item."
POINTS = "[(0.56, 0.69), (0.53, 0.76), (0.45, 0.72), (0.43, 0.67)]"
ARROW = (
    "The robot task is to flip the switch of the extension cord. Which colored arrow correctly shows the direction the "
    "robot will move next?"
)


def encoded(kind: str = "JPEG", size: tuple[int, int] = (32, 24), shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 200, 40)).save(buffer, kind)
    return buffer.getvalue()


def llava(question: str, answer: str, image: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    says = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": "7", "image": image, "conversations": says, **more}


def written(folder: Path, name: str, rows: Sequence[Any], images: str = ".") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(lines if name.endswith("l") else json.dumps(rows, indent=1), encoding="utf-8")
    (folder / images).mkdir(parents=True, exist_ok=True)
    (folder / images / "a.jpg").write_bytes(encoded())
    return folder


def video(path: Path, frames: int = 24) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            pixels = np.full((32, 32, 3), number * 10, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def only(source: ConversationSource) -> Conversation:
    assert len(source) == 1
    assert not check(source[0])
    return source[0]


def test_robopoint_reads_as_in_the_paper(tmp_path: Path) -> None:
    written(tmp_path, "robopoint_1432k.json", [llava(ROBOPOINT, POINTS)], "images")
    conversation = only(open_task("robopoint", tmp_path))
    exchange = conversation.exchanges[0]
    assert (exchange.question, exchange.answer) == (f"{IMAGE_MARK}\n{ROBOPOINT}", POINTS)
    assert conversation.images == (encoded(),)  # as it lies
    region = exchange.truth["region"]
    assert exchange.measure == "points" and region[69, 56] and not region[10, 10]


def test_vica_takes_moments_of_the_video(tmp_path: Path) -> None:
    question = (
        "How large is this room in terms of square meters? If more than one room is shown, approximate the overall "
        "space."
    )
    row = {k: v for k, v in llava(question, "18.33", video="scans/room.mp4").items() if k != "image"}
    written(tmp_path, "scannet/base/room_size.json", [row])
    (tmp_path / "scans").mkdir()
    video(tmp_path / "scans/room.mp4")
    conversation = only(open_task("vica-332k", tmp_path, frames="4"))
    assert (
        conversation.exchanges[0].truth == {"value": 18.33} and conversation.exchanges[0].measure == "number"
    )
    assert conversation.exchanges[0].question == f"{IMAGE_MARK * 4}\n{question}"
    shades = [int(image.mean()) for image in conversation.images]  # type: ignore[union-attr]
    assert np.allclose(shades, [30, 90, 150, 210], atol=14)  # the middle of each quarter
    (tmp_path / "scans/room.mp4").write_bytes(b"none")
    with pytest.raises(DataError, match=r"row 0: room.mp4 cannot be read"):
        open_task("vica-332k", tmp_path)[0]


def test_bridgevqa_reads_what_vqasynth_writes(tmp_path: Path) -> None:
    question = "Who is positioned more to the left, the red spoon or the robot arm?"

    def part(kind: str, text: str | None, index: int | None) -> dict[str, Any]:
        return {"index": index, "text": text, "type": kind}

    ask = {"role": "user", "content": [part("image", None, 0), part("text", question, None)]}
    tell = {"role": "assistant", "content": [part("text", "Red spoon is more to the left.", None)]}
    table = pa.Table.from_pylist(
        [{"images": [{"bytes": encoded("PNG"), "path": None}], "messages": [ask, tell]}] * 5
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/train-0.parquet", row_group_size=2)
    source = open_task("bridgevqa", tmp_path)
    assert len(source) == 5
    conversation = source[4]
    exchange = conversation.exchanges[0]
    assert (exchange.question, exchange.answer) == (IMAGE_MARK + question, "Red spoon is more to the left.")
    assert exchange.measure == "exact" and conversation.images == (encoded("PNG"),)
    assert conversation.id.endswith("train-0.parquet, row 4")


def test_robo2vlm_reads_as_in_the_paper(tmp_path: Path) -> None:
    row = {
        "id": "x",
        "question": ARROW,
        "choices": "['Yellow', 'Blue', 'None of the above', 'Purple', 'Green']",
        "correct_answer": 2,
        "image": {"bytes": encoded(), "path": None},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train-00000-of-00001.parquet")
    exchange = only(open_task("robo2vlm", tmp_path)).exchanges[0]
    assert exchange.question == (
        f"{IMAGE_MARK}\n{ARROW} Choices: A. Yellow. B. Blue. C. None of the above. D. Purple. E. Green. Please answer "
        "directly with only the letter of the correct option and nothing else."
    )
    assert exchange.answer == "C" and exchange.truth == {"choices": ("A", "B", "C", "D", "E")}
    row["choices"] = "__import__('os').getcwd()"
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="row 0: is not of the layout of robo2vlm"):
        open_task("robo2vlm", tmp_path)[0]


def test_sharerobot_reads_as_in_the_paper(tmp_path: Path) -> None:
    row = {
        "id": "a.jpg",
        "meta_data": {"original_dataset": "bridge", "original_width": 640, "original_height": 480},
        "instruction": "reach for the ketchup bottle",
        "points": [[113.66, 106.19], [153.3, 111.42], [217.61, 121.14], [248.27, 135.35]],
    }
    written(tmp_path, "trajectory/trajectory.json", [row], "trajectory/images")
    exchange = only(open_task("sharerobot-trajectory", tmp_path)).exchanges[0]
    assert exchange.question == f"{IMAGE_MARK}\nreach for the ketchup bottle"
    assert exchange.answer == "[[113.66,106.19],[153.30,111.42],[217.61,121.14],[248.27,135.35]]"
    exchange = open_task("sharerobot-trajectory", tmp_path, normalized="true")[0].exchanges[0]
    assert exchange.answer.startswith("[[0.178,0.221],") and exchange.measure == "trajectory"
    assert np.allclose(exchange.truth["path"][0], [113.66 / 640, 106.19 / 480])
    box = {**row, "affordance": {"x": 352.874, "y": 186.4, "width": 19.2, "height": 14.4}}
    written(tmp_path, "affordance/affordance.json", [box], "affordance/images")
    assert (
        only(open_task("sharerobot-affordance", tmp_path)).exchanges[0].answer
        == "[352.87,186.40,372.07,200.80]"
    )
    plan = llava("", "<place the banana into the mug>", "a.jpg")
    plan["conversations"][0]["value"] = "<image 0-25> After <move the banana>, what's next?"
    written(tmp_path, "planning/jsons/future.json", [plan], "planning/images")
    assert (
        only(open_task("sharerobot-planning", tmp_path))
        .exchanges[0]
        .question.startswith(f"{IMAGE_MARK} After <move")
    )


def mix_parts(folder: Path) -> None:
    sums = [llava(f"How many, {number}?", "3") for number in range(40)]
    written(folder / "vica-332k", "a/count.json", sums)
    problem = {
        "problem": "Which is nearer?",
        "options": ["A. chair", "B. bed"],
        "solution": "<answer>B</answer>",
        "data_type": "image",
        "path": "a.jpg",
    }
    written(folder / "spacer", "SpaceR.jsonl", [problem] * 40)
    held = base64.b64encode(encoded(size=(64, 64))).decode()
    rooms = {"image": held, "question": "Where is it?", "answer_options": ["left", "right"], "answer": 1}
    written(folder / "embspatial", "embspatial_sft.json", [rooms] * 40)
    written(
        folder / "refspatial", "2D/choice_qa.json", [llava("Which?", "the cup", ["a.jpg"])] * 40, "2D/image"
    )
    written(folder / "general-vqa", "mix.json", [llava("What?", "A dog.")] * 110, "images")


def test_vqa_mix_keeps_the_papers_proportions(tmp_path: Path) -> None:
    mix_parts(tmp_path)
    mix = open_task("vqa-mix", tmp_path)
    tasks = [mix[index].task for index in range(len(mix))]
    general = tasks.count("general-vqa")
    assert abs(general / len(mix) - 360 / 980) < 0.01 and 249 <= len(mix) <= 252
    ids = [mix[index].id for index in range(len(mix))]
    assert len(set(ids)) == len(ids)  # no row twice
    assert abs(tasks[:98].count("general-vqa") - 36) <= 2  # any stretch alike
    letters = [mix[i].exchanges[0] for i in range(12) if mix[i].task in ("spacer", "embspatial")]
    assert {exchange.answer for exchange in letters} == {"B"}
    assert all(exchange.truth == {"choices": ("A", "B")} for exchange in letters)
    with pytest.raises(RecipeError, match="positive weights"):
        Mixed("mix", [mix], [0])


def test_conversations_of_several_turns_and_pictures(tmp_path: Path) -> None:
    says = [
        ("human", "<image><image>\nAre they alike?"),
        ("gpt", "No"),
        ("human", "Why?"),
        ("gpt", "One is 3 m away."),
    ]
    row = {
        "image": ["a.jpg", "deep/b.png"],
        "conversations": [{"from": who, "value": text} for who, text in says],
    }
    written(tmp_path, "café.json", [row, {"conversations": row["conversations"][2:]}])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.png").write_bytes(encoded("PNG"))
    source = open_task("llava", tmp_path)
    assert [e.answer for e in source[0].exchanges] == ["No", "One is 3 m away."]
    assert [e.measure for e in source[0].exchanges] == ["exact", "text"]
    assert source[0].images == (encoded(), encoded("PNG")) and source[1].images == ()


def test_other_formats_come_as_pixels(tmp_path: Path) -> None:
    written(tmp_path, "a.json", [llava("What?", "green", "a.bmp")])
    (tmp_path / "a.bmp").write_bytes(encoded("BMP"))
    image = open_task("llava", tmp_path)[0].images[0]
    assert (
        isinstance(image, np.ndarray) and image.shape == (24, 32, 3) and tuple(image[0, 0]) == (90, 200, 40)
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (llava("Where?", "there", "../secret.jpg"), "leads out of"),
        (llava("Where?", "there", "/etc/passwd"), "leads out of"),
        (llava("Where?", "there", "link.jpg"), "leads out of"),
        (llava("Where?", "there", "no.jpg"), "'no.jpg' is missing"),
        (llava("Where?", "there", "cut.jpg"), "cannot be read"),
        (llava("Where?", "there", "text.jpg"), "cannot be read"),
        (llava("Where?", "there", ["a.jpg", "a.jpg"]), "1 image marks, but 2 images"),
        (llava("Where?", " "), "answer 0 is empty"),
        ({"image": "a.jpg", "text": "?"}, "no field 'conversations'"),
        ({"conversations": [{"from": "gpt", "value": "hello"}]}, "do not take turns"),
        ({"conversations": [{"from": "robot", "value": "hello"}]}, "speaker 'robot'"),
        ({"conversations": []}, "no question"),
    ],
)
def test_errors_name_file_and_row(tmp_path: Path, row: Any, said: str) -> None:
    folder = written(tmp_path / "set", "a.json", [llava("Where?", "there"), row])
    (tmp_path / "secret.jpg").write_bytes(encoded())
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "cut.jpg").write_bytes(encoded(size=(320, 240))[:900])
    (folder / "text.jpg").write_text("no picture")
    source = open_task("llava", folder)
    assert source[0].exchanges
    with pytest.raises(DataError) as raised:
        source[1]
    assert said in str(raised.value) and "a.json, row 1" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1}, {"b": ', "row 1: is no whole JSON object"),
        ('[{"a": 1}', "the list is not closed"),
        ('{"a": 1}\n{"b" 2}', "row 1: is no whole JSON object"),
        ("[1, 2]", "byte 1: '1' where a row should begin"),
        ("<html>", "byte 0"),
    ],
)
def test_damaged_json_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json") as raised:
        open_task("llava", tmp_path)
    assert said in str(raised.value)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_task("messages", tmp_path)


def test_rows_are_found_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm4vla.tuning.readers_rows._WINDOW", 64)
    rows = [{"n": n, "text": 'ü"\\]}[{' * (n % 7), "deep": {"list": [1, {"x": None}]}} for n in range(200)]
    for name, text in (
        ("a.json", "\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False)),
        ("b.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        found = JsonRows(tmp_path / name)
        assert [found[index] for index in range(len(found))] == rows


def test_names_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'robopoint'"):
        open_task("robopont", tmp_path)
    with pytest.raises(RecipeError, match=r"name BAAI/RoboBrain2\.0-7B as the backbone"):
        open_task("robobrain2")
    with pytest.raises(RecipeError, match="neither code, data nor weights are public"):
        open_task("omni-generation")
    with pytest.raises(RecipeError, match="name their folder"):
        open_task("robopoint")
    with pytest.raises(DataError, match="no such folder"):
        open_task("robopoint", tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no robopoint_1432k\.json"):
        open_task("robopoint", tmp_path)
    written(tmp_path, "a.json", [llava("Where?", "there")])
    with pytest.raises(RecipeError, match="option of llava"):
        open_task("llava", tmp_path, radios="1")
    with pytest.raises(RecipeError, match="frames=many: int is expected"):
        open_task("llava", tmp_path, frames="many")
    with pytest.raises(RecipeError, match="layout"):
        RowSource(tmp_path, layout="lava")


def test_every_task_tells_its_source() -> None:
    for name, facts in TASKS.items():
        assert facts.about and facts.source, name
        own = name in ("actions", "boxes", "drawings") or "tabletop" in name
        assert facts.files or facts.parts or not facts.reader or own, name


def read_all(source: ConversationSource) -> list[tuple[str, tuple[bytes, ...]]]:
    return [(source[i % len(source)].id, source[i % len(source)].images) for i in range(120)]  # type: ignore[misc]


def test_sources_pickle_fork_and_know_their_content(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", "a.json", [llava(f"Where is {n}?", "there") for n in range(30)])
    image = {"bytes": encoded(), "path": None}
    row = {
        "images": [image],
        "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "b"}],
    }
    pq.write_table(pa.Table.from_pylist([row] * 30), folder / "a.parquet", row_group_size=7)
    sources: list[ConversationSource] = [open_task("llava", folder), open_task("messages", folder)]
    assert all(isinstance(source, ConversationSource) for source in sources)
    here = [read_all(source) for source in sources]  # before the fork: files were open
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_all, sources) == here
    again = [pickle.loads(pickle.dumps(source)) for source in sources]  # noqa: S301  our own bytes
    assert [read_all(source) for source in again] == here
    copy = shutil.copytree(folder, tmp_path / "two")
    assert [open_task(n, copy).fingerprint for n in ("llava", "messages")] == [s.fingerprint for s in sources]
    assert open_task("llava", folder, frames=2).fingerprint != sources[0].fingerprint
    text = (copy / "a.json").read_text()
    (copy / "a.json").write_text(text.replace("there", "hence"))
    assert open_task("llava", copy).fingerprint != sources[0].fingerprint
    with pytest.raises(IndexError):
        sources[0][30]


def test_a_folder_may_divide_its_files(tmp_path: Path) -> None:
    written(tmp_path, "x/a.json", [llava("Where?", "here")], "x/pictures")
    written(tmp_path, "y/b.json", [llava("Where?", "there")], "y")
    files = (Files("x/a.json", "x/pictures"), Files("y/b.json", "y"))
    source = RowSource(tmp_path, layout="llava", files=files)
    assert [source[i].exchanges[0].answer for i in range(2)] == ["here", "there"]
