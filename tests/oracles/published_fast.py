"""What the published FAST processor makes of chunks, kept as golden files; it also reads a folder of ours.

Its code is not kept here: `processing_action_tokenizer.py` of physical-intelligence/fast on the Hugging Face hub.

    python published_fast.py processing_action_tokenizer.py GOLDEN   # with vlm4vla, transformers 5.23.0
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from vlm4vla.policies.action_tokens import FastTokenizer


def chunks(count: int, seed: int) -> np.ndarray:
    """Smooth movements with some noise."""
    rng = np.random.default_rng(seed)
    start, slope = rng.uniform(-0.5, 0.5, (2, count, 1, 7))
    line = start + slope * np.linspace(0, 1, 10)[None, :, None]
    return np.asarray(line + rng.normal(0, 0.05, (count, 10, 7)), dtype=np.float32)


spec = importlib.util.spec_from_file_location("published", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
Published, golden = module.UniversalActionProcessor, Path(sys.argv[2])
golden.mkdir(parents=True, exist_ok=True)
training, other = chunks(200, 0), chunks(20, 1)

published = Published.fit(list(training), vocab_size=384, time_horizon=10, action_dim=7)
published.save_pretrained(golden / "published")
ids = published(other)
with tempfile.TemporaryDirectory() as folder:
    FastTokenizer.fit(training, vocabulary=384).save(Path(folder))
    reading = Published.from_pretrained(folder)
    read = reading(other)
    known = {"ids": read, "chunks": reading.decode(read).tolist()}
np.savez_compressed(golden / "chunks.npz", training=training, other=other)
facts = {"published": {"ids": ids, "chunks": published.decode(ids).tolist()}, "ours": known}
(golden / "answers.json").write_text(json.dumps(facts) + "\n")
