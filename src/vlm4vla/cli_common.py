"""What commands share: kinds of options, how work is spread, the report at the end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm4vla.core.errors import RecipeError

if TYPE_CHECKING:
    from vlm4vla.studies.checks import Resources


def show_report(out: Path, *, title: str, as_json: bool) -> None:
    """Write a run folder's report and print its tables, or its results as JSON."""
    from vlm4vla.reports.page import write_report
    from vlm4vla.reports.records import collect
    from vlm4vla.reports.tables import terminal

    page = write_report(out, title=title)
    if as_json:
        print((out / "results.json").read_text(encoding="utf-8"), end="")
        return
    width = max(60, os.get_terminal_size().columns if sys.stdout.isatty() else 110)
    print(terminal(collect(out), width=width))
    print(f"Report:  {page}\nResults: {out / 'results.json'}")


def resources_of(options: argparse.Namespace, **more: Any) -> Resources:
    """How the work is spread, as the options say."""
    from vlm4vla.studies.checks import Resources
    from vlm4vla.studies.choices import given

    return Resources(progress=not options.quiet, **given(options, "workers", "videos", "device"), **more)


def workers(text: str) -> int:
    """`--workers`: a number, or `auto`."""
    from vlm4vla.studies.checks import AUTO

    return AUTO if text == "auto" else not_negative(text)


def settings(given: Sequence[str], option: str) -> dict[str, str]:
    """`FIELD=VALUE` texts by field. Raises: RecipeError for one without a sign."""
    for text in given:
        if "=" not in text:
            raise RecipeError(f"{option} {text!r}: write FIELD=VALUE")
    return dict(text.partition("=")[::2] for text in given)


def positive(text: str) -> int:
    """An option that is at least 1."""
    value = not_negative(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def not_negative(text: str) -> int:
    """An option that is at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value
