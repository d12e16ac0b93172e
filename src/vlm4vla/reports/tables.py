"""Tables for the terminal and for Markdown: rates as `62 % [48, 74]`, how many of how many, errors beside."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from vlm4vla.core.recipes import EvaluationRecipe
from vlm4vla.reports.estimates import Estimate
from vlm4vla.reports.records import EvaluationRecord, TrialRecord
from vlm4vla.reports.results import (
    ALL,
    Row,
    evaluation_rows,
    labels,
    setting_labels,
    settings,
    weights_comparisons,
)

GAP = "  "
DASH = "\N{EM DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text under a title; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self, width: int = 100) -> str:
        """Aligned columns; those that do not fit into `width` characters follow below, names repeated."""
        grid = [tuple(printable(cell) for cell in row) for row in (self.columns, *self.rows)]
        sizes = [max(len(cell) for cell in column) for column in zip(*grid, strict=True)]
        blocks: list[list[int]] = [[]]
        room = width - sizes[0]
        for index in range(1, len(sizes)):
            if blocks[-1] and room < sizes[index] + len(GAP):
                blocks.append([])
                room = width - sizes[0]
            blocks[-1].append(index)
            room -= sizes[index] + len(GAP)
        parts = [printable(self.title)]
        for block in blocks:
            lines = [GAP.join(row[i].ljust(sizes[i]) for i in (0, *block)).rstrip() for row in grid]
            rule = GAP.join("─" * sizes[i] for i in (0, *block))
            parts.append("\n".join([lines[0], rule, *lines[1:]]))
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """A GitHub table under its title."""
        grid = [[printable(cell).replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in grid]
        lines.insert(1, "|---" * len(self.columns) + "|")
        return f"**{printable(self.title)}**\n\n" + "\n".join(lines)

    def latex(self) -> str:
        """A `table` for the package booktabs."""
        head, *body = [
            " & ".join(printable(cell).translate(_LATEX) for cell in row) + r" \\"
            for row in (self.columns, *self.rows)
        ]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{printable(self.title).translate(_LATEX)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                head,
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        DASH: "---",
        MINUS: "$-$",
        "\N{MIDDLE DOT}": r"$\cdot$",
    }
)


def tables(records: Sequence[TrialRecord]) -> list[Table]:
    """Per evaluation setting success by tier, by task, and by weights; chains where there are any."""
    names = labels(records)
    titles = setting_labels(settings(records))
    found: list[Table] = []
    for recipe, entries in settings(records).items():
        by_policy = {
            record.fingerprint: evaluation_rows(record, evaluation) for record, evaluation in entries
        }
        if any(evaluation.is_chain for _, evaluation in entries):
            found.append(chain_table(f"Chains · {titles[recipe]}", entries, names))
            continue
        found.append(_by_tier(f"Success by tier · {titles[recipe]}", by_policy, names))
        found.append(_by_task(f"Success by task · {titles[recipe]}", by_policy, names))
        found.append(_noise(f"Repeats · {titles[recipe]}", by_policy, names))
        found.append(_differences(f"Pretrained against random weights · {titles[recipe]}", recipe, records))
    return [table for table in found if table.rows]


def incomplete(records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """What is missing, broken or damaged, as (policy, sentence); empty when the results are final."""
    names, titles = labels(records), setting_labels(settings(records))
    found: list[tuple[str, str]] = []
    for record in records:
        name = f"{names[record.fingerprint]} ({record.fingerprint})"
        found.extend((name, problem) for problem in record.problems)
        for evaluation in record.evaluations:
            where = titles[evaluation.recipe]
            found.extend((name, f"{where}: {problem}") for problem in evaluation.problems_and_errors)
    return found


def terminal(records: Sequence[TrialRecord], *, width: int = 100) -> str:
    """Every table as aligned text of at most `width` characters where a cell allows it, then what is incomplete."""
    parts = [table.text(width) for table in tables(records)]
    problems = [printable(f"- {name}: {problem}") for name, problem in incomplete(records)]
    if problems:
        wrapped = [textwrap.fill(line, width, subsequent_indent="  ") for line in problems]
        parts.append("\n".join(["Incomplete", *wrapped]))
    return "\n\n\n".join(parts) + "\n"


def markdown(records: Sequence[TrialRecord]) -> str:
    """Every table as Markdown, then what is incomplete."""
    parts = [table.markdown() for table in tables(records)]
    problems = [printable(f"- {name}: {problem}") for name, problem in incomplete(records)]
    if problems:
        parts.append("\n".join(["**Incomplete**", "", *problems]))
    return "\n\n".join(parts) + "\n"


def percent(estimate: Estimate | None) -> str:
    """`62 % [48, 74]`, or a dash for what was not scored."""
    if estimate is None:
        return DASH
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def points(estimate: Estimate) -> str:
    """A difference of rates in percentage points, signed: `+12 [−3, +27]`."""
    return f"{_signed(estimate.value)} [{_signed(estimate.low)}, {_signed(estimate.high)}]"


def p_text(p_value: float) -> str:
    """A p value; below 0.001 its size says nothing more."""
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def mean(estimate: Estimate | None) -> str:
    """A mean with its interval: `2.31 [2.05, 2.58]`."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate else DASH


def cell(row: Row | None) -> str:
    """A rate, its interval, how many of how many, and what broke."""
    if row is None or (row.episodes == 0 and row.errors == 0):
        return DASH
    broke = f" ({row.errors} broke)" if row.errors else ""
    return f"{percent(row.estimate)} {row.successes}/{row.episodes}{broke}"


def _by_tier(title: str, policies: dict[str, list[Row]], names: dict[str, str]) -> Table:
    tiers = sorted({row.tier for rows in policies.values() for row in rows if row.tier != ALL})
    rows = []
    for policy, of_policy in policies.items():
        found = {row.tier: row for row in of_policy if row.task == ALL}
        rows.append((names[policy], cell(found.get(ALL)), *(cell(found.get(tier)) for tier in tiers)))
    return Table(title, ("policy", "all", *tiers), tuple(rows))


def _noise(title: str, policies: dict[str, list[Row]], names: dict[str, str]) -> Table:
    """How much of the spread is the choice of episodes and how much the policy's noise."""
    rows = tuple(
        (
            names[policy],
            cell(whole),
            str(whole.repeats),
            f"{whole.episode_variance:.3f}",
            f"{whole.noise_variance:.3f}",
        )
        for policy, (whole, *_) in policies.items()
        if whole.episode_variance is not None and whole.noise_variance is not None
    )
    columns = (
        "policy",
        "success",
        "plays of each episode",
        "variance between episodes",
        "between plays of one",
    )
    return Table(title, columns, rows)


def _by_task(title: str, policies: dict[str, list[Row]], names: dict[str, str]) -> Table:
    tasks = sorted({(r.tier, r.task) for rows in policies.values() for r in rows if r.task != ALL})
    shown = [policy for policy, rows in policies.items() if any(row.task != ALL for row in rows)]
    found = {(policy, row.tier, row.task): row for policy in shown for row in policies[policy]}
    rows: list[tuple[str, ...]] = []
    for tier, of_tier in groupby(tasks, key=lambda pair: pair[0]):
        rows.append((f"{tier}:", *("" for _ in shown)))
        rows.extend((f"  {task}", *(cell(found.get((p, tier, task))) for p in shown)) for _, task in of_tier)
    return Table(title, ("task", *(names[policy] for policy in shown)), tuple(rows))


def chain_table(
    title: str, entries: Sequence[tuple[TrialRecord, EvaluationRecord]], names: dict[str, str]
) -> Table:
    """Chain length, and the share of episodes that reached at least 1, 2, ... goals, as CALVIN reports them."""
    goals = max((e.goals for _, evaluation in entries for e in evaluation.episodes), default=1)
    rows = []
    for record, evaluation in entries:
        whole = evaluation_rows(record, evaluation)[0]
        scored = [episode for episode in evaluation.episodes if episode.error is None]
        reached = [sum(e.goals_completed >= k for e in scored) for k in range(1, goals + 1)]
        shares = [f"{100 * count / len(scored):.0f} %" if scored else DASH for count in reached]
        rows.append(
            (names[record.fingerprint], mean(whole.chain), *shares, str(whole.episodes), str(whole.errors))
        )
    counts = tuple(f"{k} in a row" for k in range(1, goals + 1))
    return Table(title, ("policy", "chain length", *counts, "n", "errors"), tuple(rows))


def _differences(title: str, recipe: EvaluationRecipe, records: Sequence[TrialRecord]) -> Table:
    rows = tuple(
        (
            arms.pretrained.backbone,
            arms.tier,
            points(arms.comparison.difference),
            p_text(arms.comparison.p_value) + (", paired" if arms.comparison.paired else ""),
            "equal" if not arms.differing else "differ in " + ", ".join(arms.differing),
        )
        for arms in weights_comparisons(records)
        if arms.recipe == recipe
    )
    columns = ("backbone", "tier", "difference in points", "exact test", "recipes otherwise")
    return Table(title, columns, rows)


def _signed(share: float) -> str:
    rounded = round(100 * share)
    return f"{MINUS if rounded < 0 else '+' if rounded > 0 else ''}{abs(rounded)}"


def printable(text: str) -> str:
    """Files may hold anything; a terminal obeys control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
