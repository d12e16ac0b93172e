"""FAST action tokens on Tabletop's demonstrations: tokens a chunk, what rounding costs, microseconds a chunk.

Fitted on what `tabletop(demonstrations=3000)` trains on, in chunks of 10 steps with at most 2048 tokens, and measured
on the demonstrations that it holds out: once as published (lowest frequencies of all dimensions first, scale 10), once
dimension after dimension at scale 8. Errors are absolute, of normalised actions in [-1, 1].

tokens           a held-out chunk of 70 numbers is written in, on average
error            mean over all numbers, there and back
error_most       the largest of any number
microseconds     a chunk there and back, all chunks in one call
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import support

from vlm4vla.benchmarks.tabletop.generate import generate_demonstrations
from vlm4vla.demonstrations.chunks import split_episodes
from vlm4vla.demonstrations.statistics import fit_normalization
from vlm4vla.policies.action_tokens import FastTokenizer
from vlm4vla.studies.presets import tabletop

HORIZON, VOCABULARY = 10, 2048


def windows(actions: list[np.ndarray]) -> np.ndarray:
    """Every step's chunk; past the end the last action is repeated, as in training."""
    filled = [np.concatenate([rows, np.repeat(rows[-1:], HORIZON - 1, axis=0)]) for rows in actions]
    each = [np.lib.stride_tricks.sliding_window_view(rows, HORIZON, axis=0).swapaxes(1, 2) for rows in filled]
    return np.concatenate(each)


def main() -> None:
    options = support.arguments(__doc__)
    trial = tabletop(demonstrations=3000)
    recipe = replace(trial.demonstrations, image_size=16)  # actions alone are used
    made = list(generate_demonstrations(recipe))
    learned, held = split_episodes([one.id for one in made], held_out=recipe.held_out, seed=recipe.seed)
    actions = [made[index].actions for index in learned]
    normalization = fit_normalization(trial.policy.normalization, np.concatenate(actions))
    known = normalization.normalize(windows(actions))
    chunks = normalization.normalize(windows([made[index].actions for index in held]))
    figures = {"chunks": float(len(chunks))}
    for order, scale in (("frequencies", 10.0), ("dimensions", 8.0)):
        tokenizer = FastTokenizer.fit(known, vocabulary=VOCABULARY, scale=scale, order=order)  # type: ignore[arg-type]
        tokens = tokenizer.encode(chunks)
        error = np.abs(tokenizer.decode(tokens) - chunks)
        (taken,) = support.seconds(lambda: tokenizer.decode(tokenizer.encode(chunks)))  # noqa: B023
        figures |= {
            f"{order}/tokens": float(np.mean([len(row) for row in tokens])),
            f"{order}/error": float(error.mean()),
            f"{order}/error_most": float(error.max()),
            f"{order}/microseconds": 1e6 * taken / len(chunks),
        }
    support.publish("fast", figures, options.json)


if __name__ == "__main__":
    main()
