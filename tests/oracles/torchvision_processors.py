"""What Hugging Face's processors make of pictures with torchvision, as NumPy files. Run by a test with another Python.

    python3 -m venv other && other/bin/pip install torch==2.14.1 torchvision==0.29.1 transformers==5.23.0
    VLM4VLA_TORCHVISION_PYTHON=other/bin/python pytest -m slow tests/unit/test_images.py

torchvision does not import beside the CPU build of torch that the project is developed with.

    python torchvision_processors.py FOLDER   # reads pictures.npy and processors.json, writes 0.npy, 1.npy, ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

folder = Path(sys.argv[1])
pictures = [torch.from_numpy(picture).permute(2, 0, 1) for picture in np.load(folder / "pictures.npy")]
for number, facts in enumerate(json.loads((folder / "processors.json").read_text())):
    processor = getattr(transformers, facts.pop("class"))(**facts)
    assert "Torchvision" in str(type(processor).__mro__), "a processor without torchvision"
    np.save(folder / f"{number}.npy", processor(pictures, return_tensors="pt")["pixel_values"].numpy())
