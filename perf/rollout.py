"""Rollouts: steps a second with a policy that costs nothing, against stepping the environments alone.

What is above 1 is the price of processes, sockets and batching; two workers on two cores come below it.
"""

from __future__ import annotations

import numpy as np
import support

from vlm4vla.benchmarks.rollout import RandomPredictor, evaluate
from vlm4vla.benchmarks.tabletop.benchmark import Tabletop

EXECUTE = 3


def main() -> None:
    options = support.arguments(__doc__)
    benchmark = Tabletop(look="A", tasks=["stack", "lift"], episodes_per_task=3)
    episodes = benchmark.episodes()
    predictor = RandomPredictor(benchmark.action_spec, horizon=EXECUTE)
    environment = benchmark.make_environment()
    counted: list[int] = []

    def alone() -> None:
        rng = np.random.default_rng(0)
        taken = 0
        for episode in episodes:
            environment.reset(episode)
            for step in range(episode.max_steps_per_goal):
                action = rng.uniform(-1, 1, 7).astype(np.float32)
                done = environment.advance(action)
                taken += 1
                if done:
                    break
                if step % EXECUTE == EXECUTE - 1:
                    environment.renderer.image()
        counted.append(taken)

    def rolled(workers: int) -> int:
        results = evaluate(
            predictor,
            benchmark,
            execute=EXECUTE,
            folder=None,
            workers=workers,
            environments=8,
            progress=False,
        )
        return sum(result.steps for result in results)

    steps = rolled(0)
    bare, inside, two = support.seconds(alone, lambda: rolled(0), lambda: rolled(2), rounds=3)
    figures = {
        "steps_per_second_alone": counted[-1] / bare,
        "steps_per_second_here": steps / inside,
        "steps_per_second_two_workers": steps / two,
        "time_per_step_here_over_alone": (inside / steps) / (bare / counted[-1]),
    }
    support.publish("rollout", figures, options.json)


if __name__ == "__main__":
    main()
