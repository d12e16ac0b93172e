"""Figures of lines, boxes, dots and words, drawn once and written as SVG or as PDF."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from vlm4vla.reports.markup import Html, element

Ink = Literal["ink", "muted", "line", "accent", "paper"]
_RGB: dict[Ink, tuple[float, float, float]] = {
    "ink": (0.11, 0.11, 0.10),
    "muted": (0.42, 0.41, 0.38),
    "line": (0.90, 0.89, 0.87),
    "accent": (0.17, 0.35, 0.76),
    "paper": (1.0, 1.0, 1.0),
}
_CIRCLE = 0.5523
"""Of the radius: where the handles of four Bezier curves make a circle."""


@dataclass(frozen=True, slots=True)
class _Shape:
    kind: Literal["line", "box", "dot", "text"]
    numbers: tuple[float, ...]
    ink: Ink
    fill: Ink | None = None
    text: str = ""
    dashed: bool = False


@dataclass(slots=True)
class Drawing:
    """A figure in points, y downwards. Words, placed by their left end, are Helvetica in PDF."""

    width: float
    height: float
    title: str
    """For those who cannot see it."""
    _shapes: list[_Shape] = field(default_factory=list)
    _told: list[tuple[int, int, str, str]] = field(default_factory=list)
    """From which shape to before which, what they tell, and of whom."""

    @contextmanager
    def telling(self, text: str, row: str) -> Iterator[None]:
        """What is drawn within says `text` under the pointer, and lights up with whatever else tells of `row`, in a
        page; files of their own are pictures.
        """
        first = len(self._shapes)
        yield
        self._told.append((first, len(self._shapes), text, row))

    def line(
        self, x1: float, y1: float, x2: float, y2: float, ink: Ink, *, width: float = 1, dashed: bool = False
    ) -> None:
        """A straight line."""
        self._shapes.append(_Shape("line", (x1, y1, x2, y2, width), ink, dashed=dashed))

    def box(
        self, x: float, y: float, width: float, height: float, ink: Ink, *, fill: Ink | None = None
    ) -> None:
        """A rectangle by its upper left corner."""
        self._shapes.append(_Shape("box", (x, y, width, height), ink, fill=fill))

    def dot(self, x: float, y: float, radius: float, ink: Ink, *, hollow: bool = False) -> None:
        """A filled or hollow circle."""
        self._shapes.append(_Shape("dot", (x, y, radius), ink, fill="paper" if hollow else ink))

    def text(self, x: float, y: float, text: str, ink: Ink = "ink", *, size: float = 9) -> None:
        """Words with their baseline's left end at (x, y)."""
        self._shapes.append(_Shape("text", (x, y, size), ink, text=text))

    def svg(self, *, alone: bool = False) -> Html:
        """For a page, whose colours it takes; `alone`: a file of its own."""
        style = None
        if alone:
            rules = "".join(f"--{name}:{_hex(rgb)};" for name, rgb in _RGB.items())
            style = element("style", Html(f"svg{{{rules}font-family:Helvetica,Arial,sans-serif}}"))
        return element(
            "svg",
            element("title", self.title),
            style,
            *(map(_svg, self._shapes) if alone else self._grouped()),
            xmlns="http://www.w3.org/2000/svg" if alone else None,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            width=f"{self.width:g}",
            height=f"{self.height:g}",
            class_="drawing",
            role="img",
        )

    def _grouped(self) -> Iterator[Html]:
        place = 0
        for first, end, text, row in self._told:
            yield from map(_svg, self._shapes[place:first])
            shapes = [*map(_svg, self._shapes[first:end]), *map(_near, self._shapes[first:end])]
            yield element("g", element("title", text), *shapes, data_row=row)
            place = end
        yield from map(_svg, self._shapes[place:])

    def pdf(self) -> bytes:
        """A one-page PDF 1.4 with vector shapes and Helvetica; letters outside Latin-1 become question marks."""
        content = zlib.compress(
            "\n".join(_pdf(shape, self.height) for shape in self._shapes).encode("latin-1", "replace")
        )
        objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {self.width:g} {self.height:g}] /Contents 4 0 R "
            "/Resources << /Font << /F 5 0 R >> >> >>".encode(),
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        ]
        out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
        places = []
        for number, body in enumerate(objects, start=1):
            places.append(len(out))
            out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
        start = len(out)
        out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
        out += b"".join(b"%010d 00000 n \n" % place for place in places)
        out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
        return bytes(out)


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _near(shape: _Shape) -> Html | None:
    """Room for a pointer around a thin line."""
    if shape.kind != "line":
        return None
    x1, y1, x2, y2, _ = (f"{number:.1f}" for number in shape.numbers)
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="near")


def _svg(shape: _Shape) -> Html:
    ink = f"var(--{shape.ink})"
    fill = "none" if shape.fill is None else f"var(--{shape.fill})"
    n = [f"{number:.2f}".rstrip("0").rstrip(".") for number in shape.numbers]
    match shape.kind:
        case "line":
            dashes = "3 3" if shape.dashed else None
            return element(
                "line",
                x1=n[0],
                y1=n[1],
                x2=n[2],
                y2=n[3],
                stroke=ink,
                stroke_width=n[4],
                stroke_dasharray=dashes,
            )
        case "box":
            return element("rect", x=n[0], y=n[1], width=n[2], height=n[3], stroke=ink, fill=fill)
        case "dot":
            return element("circle", cx=n[0], cy=n[1], r=n[2], stroke=ink, fill=fill)
        case "text":
            return element("text", shape.text, x=n[0], y=n[1], font_size=n[2], fill=ink)


def _pdf(shape: _Shape, height: float) -> str:
    stroke = "{:.3f} {:.3f} {:.3f} RG".format(*_RGB[shape.ink])
    fill = "" if shape.fill is None else "{:.3f} {:.3f} {:.3f} rg".format(*_RGB[shape.fill])
    paint = "S" if shape.fill is None else "B"
    n = shape.numbers
    match shape.kind:
        case "line":
            dashes = "[3 3] 0 d" if shape.dashed else "[] 0 d"
            return f"{stroke} {n[4]:.2f} w {dashes} {n[0]:.2f} {height - n[1]:.2f} m {n[2]:.2f} {height - n[3]:.2f} l S"
        case "box":
            return f"{stroke} {fill} 1 w [] 0 d {n[0]:.2f} {height - n[1] - n[3]:.2f} {n[2]:.2f} {n[3]:.2f} re {paint}"
        case "dot":
            x, y, r, k = n[0], height - n[1], n[2], _CIRCLE * n[2]
            arcs = (
                (x + r, y + k, x + k, y + r, x, y + r),
                (x - k, y + r, x - r, y + k, x - r, y),
                (x - r, y - k, x - k, y - r, x, y - r),
                (x + k, y - r, x + r, y - k, x + r, y),
            )
            curves = " ".join(" ".join(f"{value:.2f}" for value in arc) + " c" for arc in arcs)
            return f"{stroke} {fill} 1 w [] 0 d {x + r:.2f} {y:.2f} m {curves} {paint}"
        case "text":
            words = shape.text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
            colour = "{:.3f} {:.3f} {:.3f} rg".format(*_RGB[shape.ink])
            return f"{colour} BT /F {n[2]:.2f} Tf {n[0]:.2f} {height - n[1]:.2f} Td ({words}) Tj ET"
