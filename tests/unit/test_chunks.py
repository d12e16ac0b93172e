from dataclasses import dataclass

import numpy as np
import pytest

from vlm4vla.core.actions import ActionSpec
from vlm4vla.core.errors import DataError
from vlm4vla.core.types import Demonstration
from vlm4vla.demonstrations.chunks import ChunkDataset, split_episodes


@dataclass
class Listed:
    """Demonstrations whose frames and actions carry 10 * episode + step."""

    lengths: tuple[int, ...]
    name: str = "listed"
    fingerprint: str = "listed"
    action_spec: ActionSpec = ActionSpec(rotation="euler_xyz", gripper="open_positive", unit="controller")  # noqa: RUF009

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Demonstration:
        values = 10 * index + np.arange(self.lengths[index])
        return Demonstration(
            id=str(index),
            instruction=f"do {index}",
            task="do",
            images=[np.full((2, 2, 3), value, np.uint8) for value in values],
            actions=np.repeat(values[:, None], 7, axis=1).astype(np.float32),
        )


def test_samples_are_steps_with_their_chunks() -> None:
    dataset = ChunkDataset(Listed((3, 1, 2)), [0, 2], horizon=3)
    assert len(dataset) == 5
    batch = dataset.fetch([0, 2, 3, 4])
    assert [int(o.image[0, 0, 0]) for o in batch.observations] == [0, 2, 20, 21]
    assert [o.instruction for o in batch.observations] == ["do 0", "do 0", "do 2", "do 2"]
    assert batch.actions.shape == (4, 3, 7)
    assert batch.actions[:, :, 0].tolist() == [[0, 1, 2], [2, 2, 2], [20, 21, 21], [21, 21, 21]]
    assert batch.valid.astype(int).tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert dataset.valid_steps([0, 2, 3, 4]) == 7
    assert dataset.all_actions()[:, 0].tolist() == [0, 1, 2, 20, 21]


def test_no_episodes_is_an_error() -> None:
    with pytest.raises(DataError, match="no episodes"):
        ChunkDataset(Listed((3,)), [], horizon=3)


def test_the_split_depends_on_the_id_alone() -> None:
    ids = [f"episode-{i}" for i in range(2000)]
    train, held_out = split_episodes(ids, held_out=0.1, seed=0)
    assert sorted(train + held_out) == list(range(2000))
    assert 150 < len(held_out) < 250
    fewer = split_episodes(ids[500:], held_out=0.1, seed=0)[1]
    assert [i + 500 for i in fewer] == [i for i in held_out if i >= 500]
    assert split_episodes(ids, held_out=0.1, seed=1)[1] != held_out
    assert split_episodes(ids, held_out=0.0, seed=0) == (list(range(2000)), [])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_side_of_the_split_is_empty(share: float) -> None:
    train, held_out = split_episodes(["a", "b", "c"], held_out=share, seed=0)
    assert train
    assert held_out
