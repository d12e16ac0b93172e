"""The exceptions users meet.

    VLAError
    ├── RecipeError            a recipe, name or flag is wrong
    ├── ActionSpecMismatch     two sides disagree about what an action means
    ├── DataError              demonstrations or a cache are damaged, incomplete or of another kind
    ├── BackboneError          a VLM cannot be loaded or does not honour the backbone contract
    ├── SimulatorError         a benchmark or its simulator broke (the policy did not)
    ├── ContractError          something that was plugged in does not keep its promise
    └── RunError               a run directory, checkpoint or training went wrong

Every message says what happened, where (file, episode, field) and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VLAError(Exception):
    """Base of all errors raised for users; the command line prints it without a traceback."""


class RecipeError(VLAError, ValueError):
    """A recipe, a name or a flag is wrong."""


class ActionSpecMismatch(VLAError, ValueError):
    """Producer and consumer of actions declare different conventions."""


class DataError(VLAError, ValueError):
    """Demonstrations, or a cache made from them, are damaged, incomplete or of another kind."""


class BackboneError(VLAError, ValueError):
    """A VLM cannot be loaded, or does not honour the backbone contract."""


class SimulatorError(VLAError, RuntimeError):
    """A simulator broke. This is an error of the program, never a failure of the policy."""


class RunError(VLAError, RuntimeError):
    """A run directory, a checkpoint or the training itself went wrong."""


class ContractError(VLAError, AssertionError):
    """Something that was plugged in does not keep its promise."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RecipeError:
    """The error for a name nobody knows: lists the nearest ones, or all when few.

    >>> str(unknown_name("benchmark", "tabeltop", ["tabletop", "calvin"]))
    "unknown benchmark 'tabeltop': did you mean 'tabletop'? Known: calvin, tabletop."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
    listing = f" Known: {', '.join(names)}." if len(names) <= 40 else f" {len(names)} names are known."
    return RecipeError(f"unknown {kind} {name!r}:{hint}{listing}")
