"""Thin names over scipy's Rotation; the order is stated in every name.

`euler_xyz` is extrinsic (rotate about the fixed x, then y, then z axis), scipy's lower-case "xyz".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


def euler_xyz_to_axis_angle(angles: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    """Extrinsic xyz Euler angles (radians) to rotation vectors (radians)."""
    flat = np.reshape(angles, (-1, 3))
    return np.asarray(Rotation.from_euler("xyz", flat).as_rotvec()).reshape(angles.shape)


def axis_angle_to_euler_xyz(vectors: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    """Rotation vectors (radians) to extrinsic xyz Euler angles (radians), y in [-pi/2, pi/2]."""
    flat = np.reshape(vectors, (-1, 3))
    return np.asarray(Rotation.from_rotvec(flat).as_euler("xyz")).reshape(vectors.shape)


def wxyz_to_xyzw(quaternions: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 4"]:
    """Scalar-first (MuJoCo) to scalar-last (scipy, PyBullet)."""
    return np.roll(quaternions, -1, axis=-1)


def xyzw_to_wxyz(quaternions: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch 4"]:
    """Scalar-last (scipy, PyBullet) to scalar-first (MuJoCo)."""
    return np.roll(quaternions, 1, axis=-1)
