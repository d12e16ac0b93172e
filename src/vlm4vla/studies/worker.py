"""One trial as a program, for `studies.parallel`: python -m vlm4vla.studies.worker STORE TRIAL_FOLDER RESOURCES_JSON"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vlm4vla.benchmarks.workers import die_with_parent
from vlm4vla.core.errors import VLAError
from vlm4vla.core.recipes import from_json
from vlm4vla.studies.checks import Resources
from vlm4vla.studies.execute import run_trial
from vlm4vla.studies.runs import RunStore, read_trial


def main() -> int:
    """Carry the trial out; an error meant for users is the last line of the output."""
    die_with_parent()
    root, folder, resources = sys.argv[1:]
    try:
        run_trial(
            read_trial(Path(folder)),
            RunStore(Path(root)),
            resources=from_json(Resources, json.loads(resources), where="resources"),
        )
    except VLAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
