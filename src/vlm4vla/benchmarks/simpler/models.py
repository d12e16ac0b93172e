"""SimplerEnv's models: where they lie in its repository, and the parts that SAPIEN 2 makes of a collision file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vlm4vla.benchmarks.published import published

_ROBOT = ("mani_skill2_real2sim/assets/descriptions/widowx_description", "data/robots/widowx")
_BRIDGE = "data/tasks/bridge_v2_real2sim_dataset"


def places() -> Mapping[str, str]:
    """Where in the simulator's folder each file of ManiSkill2_real2sim goes (its place there -> here)."""
    found = {}
    for path in published("simpler"):
        origin = path.replace(_ROBOT[1], _ROBOT[0])
        origin = origin.replace(f"{_BRIDGE}/stages", "data/hab2_bench_assets/stages").replace(_BRIDGE, "data")
        found[origin] = path
    return found


def separate_parts(path: Path) -> list[Float[np.ndarray, "points 3"]]:
    """The points of each part of a collision file (.obj): what shares no point with the rest, as SAPIEN 2 has it."""
    # Here, since every simulator's own Python reads this module, and not all of them have scipy.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    points = np.array([words[1:4] for words in lines if words[:1] == ["v"]], dtype=np.float64)
    kinds, kind = np.unique(points, axis=0, return_inverse=True)
    faces = [
        [int(kind.flat[int(word.split("/")[0]) - 1]) for word in words[1:]]
        for words in lines
        if words[:1] == ["f"]
    ]
    edges = np.array([(face[0], corner) for face in faces for corner in face]).T
    graph = coo_matrix((np.ones(edges.shape[1]), edges), shape=(len(kinds), len(kinds)))
    count, part = connected_components(graph, directed=False)
    return [kinds[part == number] for number in range(count)]
