"""The ray renderer: pictures a second, and against casting the same rays without shading (the physical limit)."""

from __future__ import annotations

import mujoco
import numpy as np
import support

from vlm4vla.benchmarks.tabletop.benchmark import Tabletop, TabletopEnvironment

SIZE = 64


def main() -> None:
    options = support.arguments(__doc__)
    environment = TabletopEnvironment(SIZE)
    environment.reset(Tabletop(look="A", tasks=["stack"], episodes_per_task=1, image_size=SIZE).episodes()[0])
    scene, renderer = environment.scene, environment.renderer
    count = SIZE * SIZE
    rays = np.random.default_rng(0).normal(size=(count, 3)) * [0.3, 0.3, 0.1] + [0, 0.6, -0.7]
    rays = np.ascontiguousarray(rays / np.linalg.norm(rays, axis=1, keepdims=True)).reshape(-1)
    groups = np.array([1, 1, 1, 1, 0, 0], dtype=np.uint8)
    ids, distances, normals = np.empty(count, np.int32), np.empty(count), np.zeros(count * 3)
    eye = np.array([0.0, -0.42, 0.56])
    still = np.zeros(7, np.float32)

    def bare() -> None:
        for _ in range(20):
            mujoco.mj_multiRay(
                scene.model, scene.data, eye, rays, groups, True, -1, ids, distances, normals, count, 1e10
            )

    def pictures() -> None:
        for _ in range(20):
            renderer.image()

    def steps() -> None:
        for _ in range(20):
            scene.step(still)

    limit, picture, step = support.seconds(bare, pictures, steps)
    figures = {
        "pictures_per_second": 20 / picture,
        "steps_per_second_without_picture": 20 / step,
        "picture_time_over_one_ray_per_pixel": picture / limit,
    }
    support.publish("render", figures, options.json)


if __name__ == "__main__":
    main()
