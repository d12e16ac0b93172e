"""HTML and SVG built from values: every string is escaped unless this module made it."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "img", "link", "meta"})


class Html(str):
    """Markup that may stand in a page as it is; any other string is text."""

    __slots__ = ()


Child = str | Iterable["str | Html"] | None


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Html:
    """`<tag attributes>children</tag>`. Strings are text and are escaped; None is left out.

    Attribute names: a trailing underscore is dropped (`class_`), others become hyphens; True has no value.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(_text(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other, text escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child))
        elif child is not None:
            parts.append(join(child))
    return Html("".join(parts))


def section(identity: str, title: str, note: str, *children: Child) -> Html:
    """A section with its heading and a muted line below it."""
    return element(
        "section",
        element("h2", title),
        element("p", note.replace(" %", "\N{NO-BREAK SPACE}%"), class_="note"),
        *children,
        id=identity,
    )


def _text(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
