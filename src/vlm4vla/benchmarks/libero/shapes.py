"""What a scripted expert sees of a LIBERO scene: the boxes that things collide with, and where to take hold of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

_BOX = 6
"""MuJoCo's number for geometries that are boxes; LIBERO's objects and fixtures are made of them."""
WIDEST = 0.074
"""Metres between the open fingers, with a little room."""
_DEEPEST = 0.032
"""Metres from the point between the fingertips up to where the hand would touch."""
_TIP = 0.012
"""Metres that the fingers reach below the point between them."""
_FINGERS = ((-0.06, -0.052, -0.045, 0.045, 0.052, 0.06), (0.0,), (-0.012, 0.002, 0.016, 0.03))
_HAND = ((-0.1, -0.07, -0.035, 0.0, 0.035, 0.07, 0.1), (-0.03, 0.0, 0.03), (0.05, 0.08, 0.11))
"""Points of the open fingers and of the hand: along the line from finger to finger, beside it, above it; metres."""
_SLICE = 0.012
_RIM = 0.006
"""Metres from a rim's outside to the middle of it."""


@dataclass(frozen=True, slots=True)
class Grasp:
    """Where the point between the fingertips goes, and the angle of the line from finger to finger in the plane."""

    place: Float[np.ndarray, "3"]
    yaw: float


class Boxes:
    """Every box of the scene as it is now, but the robot's."""

    def __init__(self, env: Any) -> None:
        """`env`: LIBERO's environment."""
        model, data = env.sim.model, env.sim.data
        roots = model.body_rootid[model.geom_bodyid]
        robot = {model.body_name2id(name) for name in model.body_names if name.startswith("robot0_")}
        chosen = (model.geom_type == _BOX) & (model.geom_contype > 0) & ~np.isin(roots, list(robot))
        self._bodies = env.env.obj_body_id
        self.roots = roots[chosen]
        self.centers = data.geom_xpos[chosen].copy()
        self.turns = data.geom_xmat[chosen].reshape(-1, 3, 3).copy()
        self.halves = model.geom_size[chosen].copy()

    def corners(self, name: str) -> Float[np.ndarray, "boxes 8 3"]:
        """Of every box of an object or a fixture, in metres."""
        own = self.roots == self._bodies[name]
        return self._corners(own)

    def hit(self, points: Float[np.ndarray, "points 3"], *, but: str) -> int:
        """How many of these points lie in something else than the named object."""
        others = self.roots != self._bodies[but]
        away = points[None] - self.centers[others][:, None]
        inside = np.abs(np.einsum("bij,bpi->bpj", self.turns[others], away)) < self.halves[others][:, None]
        return int(inside.all(axis=2).any(axis=0).sum())

    def highest_between(
        self, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], *, but: str, room: float = 0.12
    ) -> float:
        """Metres above the floor of the highest corner near the line from start to end, seen from above."""
        points = self._corners(self.roots != self._bodies[but]).reshape(-1, 3)
        along = end - start
        share = np.clip((points[:, :2] - start) @ along / max(along @ along, 1e-9), 0, 1)
        near = np.linalg.norm(points[:, :2] - start - share[:, None] * along, axis=1) < room
        return float(points[near, 2].max(initial=0))

    def grasp(self, name: str, facing: float, *, turn: int = 0) -> Grasp:
        """Across the narrowest side if the fingers reach around it, else at the rim. `facing`: the fingers' angle now;
        `turn` 1, 2, ... are others, the next best."""
        corners = self.corners(name).reshape(-1, 3)
        top, bottom = corners[:, 2].max(), corners[:, 2].min()
        height = max(top - _DEEPEST, bottom + _TIP + 0.003)
        across = self._across(name, corners, height, facing)
        found = across or self._at_rim(name, corners, max(top - 0.018, bottom + _TIP + 0.003), facing)
        return sorted(found, key=lambda cost_and_grasp: cost_and_grasp[0])[3 * turn % len(found)][1]

    def _across(
        self, name: str, corners: Float[np.ndarray, "n 3"], height: float, facing: float
    ) -> list[tuple[float, Grasp]]:
        boxes = self.corners(name)
        held = (boxes[:, :, 2].min(axis=1) < height + _SLICE) & (boxes[:, :, 2].max(axis=1) > height - _SLICE)
        slice_ = boxes[held].reshape(-1, 3)[:, :2]
        found = []
        for yaw in np.radians(np.arange(0, 180, 5)):
            line, side = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
            reach, depth = slice_ @ line, slice_ @ side
            width = float(np.ptp(reach))
            if width > WIDEST:
                continue
            middle = (reach.max() + reach.min()) / 2 * line + (depth.max() + depth.min()) / 2 * side
            grasp = Grasp(np.array([*middle, height]), float(yaw))
            found.append((width + self._cost(name, grasp, facing), grasp))
        return found

    def _at_rim(
        self, name: str, corners: Float[np.ndarray, "n 3"], height: float, facing: float
    ) -> list[tuple[float, Grasp]]:
        rim = corners[corners[:, 2] > corners[:, 2].max() - 0.02][:, :2]
        middle = (rim.max(axis=0) + rim.min(axis=0)) / 2
        found = []
        for yaw in np.radians(np.arange(0, 360, 10)):
            line = np.array([np.cos(yaw), np.sin(yaw)])
            radius = float(((rim - middle) @ line).max())
            grasp = Grasp(np.array([*(middle + (radius - _RIM) * line), height]), float(yaw))
            found.append((radius + self._cost(name, grasp, facing), grasp))
        return found

    def _cost(self, name: str, grasp: Grasp, facing: float) -> float:
        """Metres that turning the hand, and points of it that would lie in something else, are worth."""
        line, up = np.array([np.cos(grasp.yaw), np.sin(grasp.yaw), 0]), np.array([0, 0, 1])
        side = np.cross(up, line)
        hits = 0
        for along, beside, above in (_FINGERS, _HAND):
            at = np.stack(np.meshgrid(along, beside, above, indexing="ij"), axis=-1).reshape(-1, 3)
            hits += self.hit(grasp.place + at @ np.stack([line, side, up]), but=name)
        return 0.01 * abs(shortest(grasp.yaw - facing)) + 0.02 * hits

    def _corners(self, chosen: Bool[np.ndarray, " all"]) -> Float[np.ndarray, "boxes 8 3"]:
        signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(8, 3)
        local = self.halves[chosen][:, None] * signs
        return self.centers[chosen][:, None] + np.einsum("bij,bpj->bpi", self.turns[chosen], local)


def shortest(angle: float) -> float:
    """The smallest turn to an angle, between -90 and 90 degrees, since both fingers are alike."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2
