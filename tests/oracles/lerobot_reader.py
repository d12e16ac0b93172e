"""LeRobot's own reader on folders: prints what it finds as JSON. Run by tests with an interpreter that has lerobot.

    python3.12 -m venv lerobot && lerobot/bin/pip install torch==2.13.0
    lerobot/bin/pip install --no-deps lerobot==0.6.1
    lerobot/bin/pip install "datasets<5" "huggingface-hub<2" pandas "av<16" jsonlines draccus einops deepdiff \
        gymnasium opencv-python-headless imageio
    VLM4VLA_LEROBOT_PYTHON=lerobot/bin/python pytest -m slow tests/unit/test_lerobot.py

Its pins contradict current versions of everything, so it is installed without them; torchvision, which its reader needs
for one call, is replaced here.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from unittest.mock import MagicMock

import numpy as np
import torch


class NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = MagicMock()
        module.__name__, module.__path__, module.__spec__, module.__version__ = spec.name, [], spec, "0.26.0"
        return module

    def exec_module(self, module):
        pass


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


sys.meta_path.insert(0, NoTorchvision())
import torchvision.transforms  # noqa: E402

torchvision.transforms.ToTensor = lambda: to_tensor
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

found = []
for folder in sys.argv[1:]:
    data = LeRobotDataset(
        "made/here", root=folder, video_backend="pyav", delta_timestamps={"action": [0.0, 0.1, 0.2]}
    )
    items = [data[index] for index in range(len(data))]
    found.append(
        {
            "episodes": data.num_episodes,
            "tasks": [item["task"] for item in items],
            "actions": [item["action"].tolist() for item in items],
            "padded": [item["action_is_pad"].tolist() for item in items],
            "pixels": [(item["observation.images.image"] * 255).round().int().tolist() for item in items],
        }
    )
print(json.dumps(found))
