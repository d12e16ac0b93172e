"""What a study's scores let one conclude, in sentences: at the head of its page and tables, and when a run ends.

Only what tests say after correction is called a difference; what is not told apart is said beside it, never left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlm4vla.reports.asked import Answered, Success, successes
from vlm4vla.reports.estimates import CONFIDENCE, Estimate
from vlm4vla.reports.scores import NOT_STARTED, Cell, RowPair, StudyScores, unit
from vlm4vla.reports.study_figures import unit_name
from vlm4vla.reports.tables import p_text
from vlm4vla.studies.study import Column

_MOST_PAIRS = 3
"""Pairs that a sentence names."""


def findings(scores: StudyScores, answered: Sequence[Answered] = ()) -> list[str]:
    """A sentence for every column with two scored rows, for cells along a row, and for what VLMs were asked."""
    found = [_column(scores, column) for column in scores.study.columns]
    found.append(_within(scores.within))
    found += [_success(success) for success in successes(answered, scores) if success.every]
    return [sentence for sentence in found if sentence]


def incomplete(problems: Sequence[tuple[str, str]]) -> list[str]:
    """What to know before believing it, by row: records that are damaged, changed or missing; a count of what was never
    started.
    """
    waiting = sum(problem == NOT_STARTED for _, problem in problems)
    told = [f"Incomplete: {row}: {problem}" for row, problem in problems if problem != NOT_STARTED]
    return [*told, *([f"Incomplete: {waiting} trials have not been started"] if waiting else [])]


def number(estimate: Estimate, column: Column) -> str:
    """In the column's unit, with its interval where it has one."""
    digits = 1 if unit(column) == 100 else 2
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def difference(pair: RowPair) -> str:
    """First minus second, in the first column's unit."""
    estimate, factor = pair.comparison.difference, unit(pair.column)
    scaled = Estimate(factor * estimate.value, factor * estimate.low, factor * estimate.high)
    return number(scaled, pair.column)


def _value(cell: Cell) -> float:
    assert cell.estimate is not None
    return cell.estimate.value


def _told(cell: Cell) -> str:
    assert cell.estimate is not None
    return number(cell.estimate, cell.column)


def _column(scores: StudyScores, column: Column) -> str:
    cells = [
        cell
        for row in scores.study.rows
        if (cell := scores.cells.get((row.name, column.name))) is not None and cell.estimate is not None
    ]
    pairs = [pair for pair in scores.pairs if pair.column.name == column.name]
    if len(cells) < 2 or not pairs:
        return ""
    head = f"{column.name}{f', {unit_name(column)}' if unit_name(column) else ''}: "
    if len(cells) == 2:
        (pair,) = pairs
        return head + _pair(pair, f"{pair.first} against {pair.second}")
    best = max(cells, key=_value)
    equal = [cell.row for cell in cells if _value(cell) == _value(best)]
    apart = [pair for pair in pairs if pair.differs]
    if not apart:
        worst = min(cells, key=_value)
        spread = f"{_told(worst)} ({worst.row}) to {_told(best)} ({best.row})"
        return f"{head}no two of {len(cells)} rows are told apart; from {spread}"
    below = {
        name for pair in apart if best.row in (pair.first, pair.second) for name in (pair.first, pair.second)
    }
    below.discard(best.row)
    beside = [cell.row for cell in cells if cell.row not in equal and cell.row not in below]
    names = f"{' and '.join(equal)} {'is' if len(equal) == 1 else 'are'} highest"
    text = f"{names}, {_told(best)}, and told apart from {len(below)} of {len(cells) - len(equal)} others"
    if beside and len(beside) <= _MOST_PAIRS:
        text += f"; not from {', '.join(beside)}"
    return f"{head}{text}. {len(apart)} of {len(pairs)} pairs of rows differ"


def _within(pairs: Sequence[RowPair]) -> str:
    if not pairs:
        return ""
    apart = [pair for pair in pairs if pair.differs]
    if not apart:
        return f"along rows: none of {len(pairs)} pairs of cells is told apart"
    named = [
        f"{pair.first}, {pair.column.name} against {pair.against.name} {difference(pair)}"
        for pair in sorted(apart, key=lambda pair: pair.adjusted_p)[:_MOST_PAIRS]
    ]
    more = f"; {len(apart) - len(named)} more" if len(apart) > len(named) else ""
    return f"along rows: {len(apart)} of {len(pairs)} pairs of cells differ: {'; '.join(named)}{more}"


def _success(success: Success) -> str:
    r = success.correlation.r
    goes = "goes with success" if success.adjusted_p < 1 - CONFIDENCE else "is not shown to go with success"
    return (
        f"{success.column}: over {success.correlation.models} VLMs, what they score ({success.task}) {goes}: "
        f"r = {r.value:+.2f} [{r.low:+.2f}, {r.high:+.2f}], {p_text(success.adjusted_p)}"
    )


def _pair(pair: RowPair, names: str) -> str:
    verdict = "" if pair.differs else ", not told apart"
    if not pair.differs and pair.needed is not None:
        verdict += f" (a power of 80 % takes {pair.needed:,} episodes each)"
    return f"{names} {difference(pair)}, {p_text(pair.adjusted_p)}{verdict}"
