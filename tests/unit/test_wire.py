from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vlm4vla.benchmarks.wire import (
    Reply,
    Request,
    pack,
    pack_reply,
    pack_request,
    take_replies,
    unpack,
    unpack_request,
)
from vlm4vla.core.types import EpisodeSpec, Goal, Observation

any_array = st.sampled_from([np.uint8, np.float32, np.int64]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), any_array, max_size=4), st.lists(st.integers(0, 400), max_size=5))
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    content: dict[str, np.ndarray], cuts: list[int]
) -> None:
    stream = pack({"a": [1, "x", None]}, content) + pack({"b": 2}, {})
    buffer, found = bytearray(), []
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(bounds):
        buffer += stream[start:end]
        while (message := unpack(buffer)) is not None:
            found.append(message)
    assert [header for header, _ in found] == [{"a": [1, "x", None]}, {"b": 2}]
    assert not buffer
    assert found[0][1].keys() == content.keys()
    for name, array in content.items():
        again = found[0][1][name]
        assert again.dtype == array.dtype and again.shape == array.shape
        assert again.tobytes() == array.tobytes()


def test_arrays_that_are_views_arrive_upright() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    message = unpack(bytearray(pack({}, {"image": image[::-1]})))
    assert message is not None
    assert np.array_equal(message[1]["image"], image[::-1])


def test_requests_and_replies() -> None:
    goal = Goal(task="push", instruction="push the blöck", tier="one")
    episode = EpisodeSpec(
        id="e/1", goals=(goal, goal), max_steps_per_goal=9, setup={"seed": 2**62, "x": [1.5]}
    )
    actions = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    message = unpack(bytearray(pack_request(Request(place=4, episode=episode, record=True))))
    assert message is not None
    assert unpack_request(*message) == Request(place=4, episode=episode, record=True)
    message = unpack(bytearray(pack_request(Request(place=4, actions=actions))))
    assert message is not None
    played = unpack_request(*message)
    assert played.actions is not None and np.array_equal(played.actions, actions) and played.episode is None

    image = np.zeros((4, 6, 3), np.uint8)
    seen = Observation(image, "go", wrist_image=image + 1, state=np.ones(3, np.float32))
    sent = Reply(place=1, observation=seen, goals_completed=2, steps=3, frames=image[None])
    failed = Reply(place=2, error="it broke")
    first, second = take_replies(bytearray(pack_reply(sent) + pack_reply(failed)))
    assert first.observation is not None and first.observation.state is not None and first.frames is not None
    assert np.array_equal(first.observation.wrist_image, image + 1)
    assert first.observation.state.tolist() == [1, 1, 1] and first.observation.instruction == "go"
    assert (first.place, first.goals_completed, first.steps, first.error) == (1, 2, 3, None)
    assert second == failed
