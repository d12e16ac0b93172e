"""Reading demonstrations: samples per CPU second, one 224 x 224 frame with a chunk of ten actions, in random order.

jpeg         decoding the same JPEGs with simplejpeg and nothing else: the limit
packed       our packed folder; lerobot, video: our reader of LeRobotDataset v3.0, images and H.264; folder: files
calvin       our reader of CALVIN's npz; calvin_reference: all arrays of the eleven steps that the released code loads
lerobot_own  LeRobot 0.6.1's own loader on the same images and video: measured where VLM4VLA_LEROBOT_PYTHON names an
             interpreter that has it (tests/oracles/lerobot_reader.py), else the recorded 215 to 256 of its video
growth_mb    of this process while an epoch is read from the packed folder
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import support

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.recipes import DemonstrationRecipe
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations import sources
from vlm4vla.demonstrations.chunks import ChunkDataset
from vlm4vla.demonstrations.frames import EncodedFrames
from vlm4vla.demonstrations.lerobot_writer import write_lerobot
from vlm4vla.demonstrations.packed import write_packed
from vlm4vla.demonstrations.sources import open_demonstrations

EPISODES, STEPS, SIDE = 40, 60, 224
SAMPLES = 600
SPEC = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")
RECORDED_LEROBOT = 236.0
"""Samples per CPU second of LeRobot 0.6.1 with torchcodec on such a set: the middle of 215 to 256."""
THEIRS = """
import sys, time
sys.argv = sys.argv[:1] + sys.argv[1:]
import importlib.util
spec = importlib.util.spec_from_file_location("oracle", sys.argv[1])
source = open(sys.argv[1]).read().split("found = []")[0]
exec(compile(source, sys.argv[1], "exec"))
import numpy as np
data = LeRobotDataset("made/here", root=sys.argv[2], video_backend="pyav",
                      delta_timestamps={"action": [i / 10 for i in range(10)]})
order = np.random.default_rng(0).permutation(len(data))[:200].tolist()
for index in order[:20]:
    data[index]
start = time.process_time()
for index in order:
    data[index]
print(len(order) / (time.process_time() - start))
"""


def episodes() -> Iterator[Demonstration]:
    """A textured table, a few objects, an arm that moves, sensor noise: JPEGs of some 18 kB."""
    for episode in range(EPISODES):
        rng = np.random.default_rng(episode)
        table = np.kron(rng.integers(90, 160, (28, 28, 3)), np.ones((8, 8, 1)))
        blobs = []
        for step in range(STEPS):
            image = table + rng.normal(0, 4, table.shape)
            place = 20 + 2 * step
            image[place : place + 40, 60:110] = (200, 40 + episode, 30)
            pixels = image.clip(0, 255).astype(np.uint8)
            blobs.append(simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="420"))
        stops = np.cumsum([len(blob) for blob in blobs])
        starts = stops - [len(blob) for blob in blobs]
        frames = EncodedFrames(
            b"".join(blobs), starts, stops, codec="jpeg", size=(SIDE, SIDE), where=str(episode)
        )
        actions = rng.normal(size=(STEPS, 7)).astype(np.float32)
        yield Demonstration(id=str(episode), instruction="push it", task="", images=frames, actions=actions)


def rate(work: Callable[[], object], count: int) -> float:
    """The best of three, per CPU second of all threads."""
    work()
    best = 0.0
    for _ in range(3):
        start = time.process_time()
        work()
        best = max(best, count / (time.process_time() - start))
    return best


def reading(source: str, folder: Path, index: Path) -> tuple[float, ChunkDataset]:
    recipe = DemonstrationRecipe(source=source, path=(str(folder),), episodes=0, looks=())
    opened = open_demonstrations(sources.make(recipe, index))
    dataset = ChunkDataset(opened, range(len(opened)), 10)
    order = np.random.default_rng(0).permutation(len(dataset))[:SAMPLES]

    def read() -> None:
        for start in range(0, len(order), 32):
            dataset.fetch(order[start : start + 32])

    return rate(read, len(order)), dataset


def calvin(folder: Path) -> float:
    """Writes a small split; returns how the released code reads: all arrays of eleven steps for one picture."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from formats_calvin import write_calvin

    spans = tuple((100 + 70 * i, 164 + 70 * i, "push it", "push") for i in range(6))
    write_calvin(folder / "training", spans, compressed=True)
    starts = np.random.default_rng(0).integers(0, 50, 20)

    def released() -> None:
        for number, offset in enumerate(starts.tolist()):
            first = spans[number % len(spans)][0] + offset
            for step in range(first, first + 11):
                with np.load(folder / "training" / f"episode_{step:07d}.npz") as frame:
                    {key: frame[key] for key in frame.files}

    return rate(released, len(starts))


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    options = support.arguments(__doc__)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_packed(episodes(), folder / "packed", name="made", action_spec=SPEC, fingerprint="made")
        write_lerobot(episodes(), folder / "lerobot", name="made", action_spec=SPEC, fps=10)
        write_lerobot(episodes(), folder / "video", name="made", action_spec=SPEC, fps=10, video=True)
        packed = open_demonstrations(folder / "packed")
        rng = np.random.default_rng(0)
        blobs = [
            bytes(packed[int(e)].images.encoded(int(s)))  # type: ignore[attr-defined]
            for e, s in zip(rng.integers(0, EPISODES, SAMPLES), rng.integers(0, STEPS, SAMPLES), strict=True)
        ]
        figures["jpeg_per_cpu_s"] = rate(
            lambda: [simplejpeg.decode_jpeg(blob, colorspace="RGB") for blob in blobs], SAMPLES
        )
        figures["packed_per_cpu_s"], dataset = reading("packed", folder / "packed", folder / "of-packed")
        gc.collect()
        before = memory_mb()
        for start in range(0, len(dataset), 64):
            dataset.fetch(range(start, min(start + 64, len(dataset))))
        figures["growth_mb"] = memory_mb() - before
        figures["lerobot_per_cpu_s"], _ = reading("lerobot", folder / "lerobot", folder / "of-lerobot")
        figures["video_per_cpu_s"], _ = reading("lerobot", folder / "video", folder / "of-video")
        figures["calvin_reference_per_cpu_s"] = calvin(folder / "calvin")
        figures["calvin_per_cpu_s"], _ = reading("calvin", folder / "calvin", folder / "of-calvin")
        theirs = os.environ.get("VLM4VLA_LEROBOT_PYTHON")
        figures["lerobot_own_video_per_cpu_s"] = RECORDED_LEROBOT
        if theirs:
            oracle = Path(__file__).parents[1] / "tests" / "oracles" / "lerobot_reader.py"
            for kind in ("lerobot", "video"):
                done = subprocess.run(
                    [theirs, "-c", THEIRS, str(oracle), str(folder / kind)],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
                )
                figures[f"lerobot_own_{'images' if kind == 'lerobot' else kind}_per_cpu_s"] = float(
                    done.stdout
                )
    own = figures["lerobot_own_video_per_cpu_s"]
    figures["packed_over_jpeg"] = figures["packed_per_cpu_s"] / figures["jpeg_per_cpu_s"]
    figures["packed_over_lerobot_own"] = figures["packed_per_cpu_s"] / own
    figures["video_over_lerobot_own"] = figures["video_per_cpu_s"] / own
    figures["calvin_over_reference"] = figures["calvin_per_cpu_s"] / figures["calvin_reference_per_cpu_s"]
    support.publish("data", figures, options.json)


if __name__ == "__main__":
    main()
