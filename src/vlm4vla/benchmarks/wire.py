"""Messages between the rollout engine and the processes that step its environments.

A message is two lengths, a JSON header and raw array bytes: nothing is pickled, so the two sides may run different
versions of Python and numpy.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vlm4vla.core.types import EpisodeSpec, Goal, Observation

START = -1
"""Place of the first reply: the worker has built its benchmark."""
_LENGTHS = struct.Struct("<II")
_OBSERVED = ("image", "wrist_image", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Either begin an episode or carry out actions, in the environment of one place."""

    place: int
    episode: EpisodeSpec | None = None
    record: bool = False
    """Send every frame of this episode, for a video."""
    actions: Float32[np.ndarray, "steps 7"] | None = None
    """Carried out until they end or a goal completes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a request."""

    place: int
    observation: Observation | None = None
    goals_completed: int = 0
    steps: int = 0
    """Actions carried out."""
    frames: UInt8[np.ndarray, "steps height width 3"] | None = None
    """What was seen after each of them, if the episode is recorded."""
    benchmark: str = ""
    """Name of the worker's benchmark, in its first reply."""
    software: Mapping[str, str] = field(default_factory=dict)
    """What plays there, likewise."""
    error: str | None = None


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message; the arrays' names, types and shapes go into the header."""
    layout = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": layout}, separators=(",", ":")).encode()
    body = [array.tobytes() for array in arrays.values()]
    return b"".join([_LENGTHS.pack(len(text), sum(map(len, body))), text, *body])


def unpack(buffer: bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Take the first message off the buffer; None while it is incomplete. The arrays are read-only."""
    if len(buffer) < _LENGTHS.size:
        return None
    header_size, body_size = _LENGTHS.unpack_from(buffer)
    start = _LENGTHS.size + header_size
    if len(buffer) < start + body_size:
        return None
    header: dict[str, Any] = json.loads(buffer[_LENGTHS.size : start])
    body = bytes(memoryview(buffer)[start : start + body_size])
    del buffer[: start + body_size]
    arrays, offset = {}, 0
    for name, dtype, shape in header.pop("arrays"):
        array = np.frombuffer(body, dtype, count=int(np.prod(shape)), offset=offset).reshape(shape)
        arrays[name] = array
        offset += array.nbytes
    return header, arrays


def receive(connection: socket.socket, buffer: bytearray) -> bool:
    """Wait for more bytes; False at the end of the stream."""
    data = connection.recv(1 << 18)
    buffer += data
    return bool(data)


def pack_request(request: Request) -> bytes:
    """A request as a message."""
    header: dict[str, Any] = {"place": request.place}
    if request.episode is not None:
        header |= {"episode": episode_to_json(request.episode), "record": request.record}
    return pack(header, {} if request.actions is None else {"actions": request.actions})


def unpack_request(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Request:
    """The inverse of `pack_request`, after `unpack`."""
    episode = header.get("episode")
    return Request(
        place=header["place"],
        episode=None if episode is None else episode_from_json(episode),
        record=header.get("record", False),
        actions=arrays.get("actions"),
    )


def pack_reply(reply: Reply) -> bytes:
    """A reply as a message."""
    header: dict[str, Any] = {
        "place": reply.place,
        "goals_completed": reply.goals_completed,
        "steps": reply.steps,
        "benchmark": reply.benchmark,
        "error": reply.error,
        **({"software": dict(reply.software)} if reply.software else {}),
    }
    arrays = {} if reply.frames is None else {"frames": reply.frames}
    if reply.observation is not None:
        header["instruction"] = reply.observation.instruction
        observed = {name: getattr(reply.observation, name) for name in _OBSERVED}
        arrays |= {name: array for name, array in observed.items() if array is not None}
    return pack(header, arrays)


def take_replies(buffer: bytearray) -> Iterator[Reply]:
    """Take every complete reply off the buffer."""
    while (message := unpack(buffer)) is not None:
        header, arrays = message
        frames = arrays.pop("frames", None)
        instruction = header.pop("instruction", None)
        seen: Any = {"instruction": instruction, **arrays}
        observation = None if instruction is None else Observation(**seen)
        yield Reply(observation=observation, frames=frames, **header)


def episode_to_json(episode: EpisodeSpec) -> dict[str, Any]:
    """An episode as a JSON object."""
    return {
        "id": episode.id,
        "goals": [asdict(goal) for goal in episode.goals],
        "max_steps_per_goal": episode.max_steps_per_goal,
        "setup": dict(episode.setup),
    }


def episode_from_json(data: Mapping[str, Any]) -> EpisodeSpec:
    """The inverse of `episode_to_json`."""
    return EpisodeSpec(
        id=data["id"],
        goals=tuple(Goal(**goal) for goal in data["goals"]),
        max_steps_per_goal=data["max_steps_per_goal"],
        setup=data["setup"],
    )
