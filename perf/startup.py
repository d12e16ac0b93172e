"""How long a command takes to say anything, against an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys

import support


def main() -> None:
    options = support.arguments(__doc__)

    def start(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    nothing, listing, helping = support.seconds(
        lambda: start("-c", ""),
        lambda: start("-m", "vlm4vla.cli", "models"),
        lambda: start("-m", "vlm4vla.cli", "--help"),
    )
    figures = {
        "help_seconds": helping,
        "models_seconds": listing,
        "help_over_bare_python": helping / nothing,
    }
    support.publish("startup", figures, options.json)


if __name__ == "__main__":
    main()
