"""An environment stepped with nothing around it, by the Python that has its simulator: seconds of CPU time a step.

python bare.py DESCRIPTOR JSON: the benchmark's recipe, where the package is. Answers go to the descriptor.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    asked = json.loads(sys.argv[2])
    sys.path += asked["path"]
    import numpy as np

    from vlm4vla.benchmarks.registry import load

    benchmark = load(asked["factory"])(**asked["arguments"])
    environment = benchmark.make_environment()
    environment.reset(benchmark.episodes()[0])
    rng = np.random.default_rng(0)
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            steps, chunk, measured = map(int, line.split())
            actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
            start = time.process_time()
            for number, action in enumerate(actions[:measured], 1):
                environment.advance(action)
                if number % chunk == 0:
                    environment.observe()
            taken = time.process_time() - start
            for action in actions[measured:]:
                environment.advance(action)
            print(taken / measured, file=answers, flush=True)
        os._exit(0)  # not through the destructors of OpenGL contexts


if __name__ == "__main__":
    main()
