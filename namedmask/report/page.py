"""Build HTML pages from elements: text is always escaped, and only `Html` passes unescaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np

from namedmask import images
from namedmask.schema.status import OK

JPEG_QUALITY = 82
"""Quality of the JPEG images inside a page."""

VOID = ("img", "meta")
"""Elements without content and without an end tag."""

SHADES = 8
"""Number of colors for statuses other than ok: the classes s0 to s7 in report.css."""


class Html(str):
    """Markup: a string that is not escaped."""

    __slots__ = ()


def element(kind: str, /, *children: str, **attributes: str) -> Html:
    """Return an HTML or SVG element.

    `class_` sets the attribute class; other underscores in attribute names become hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    if kind in VOID:
        return Html(f"<{kind}{written}>")
    return Html(f"<{kind}{written}>{joined(children)}</{kind}>")


def joined(children: Sequence[str]) -> Html:
    """Return the concatenated children; children that are plain text are escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def page(title: str, *sections: Html) -> str:
    """Return a whole HTML document that contains its style sheet."""
    style = resources.files("namedmask").joinpath("data", "report.css").read_text("utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    body = element("body", element("main", *sections))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def section(title: str, *children: str) -> Html:
    """Return a section with a heading; its id is the title in lower case, with hyphens."""
    anchor = title.lower().replace(" ", "-")
    return element("section", element("h2", title), *children, id=anchor)


def note(*children: str) -> Html:
    """Return a paragraph in gray: an explanation, or a hint at a missing part."""
    return element("p", *children, class_="note")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> Html:
    """Return a table; the columns whose indices are in `numbers` are right-aligned."""

    def row(kind: str, cells: Sequence[str]) -> Html:
        return element("tr", *(
            element(kind, cell, class_="number" if column in numbers else "text")
            for column, cell in enumerate(cells)
        ))  # fmt: skip

    body = element("tbody", *(row("td", cells) for cells in rows))
    whole = element("table", element("thead", row("th", head)), body)
    return element("div", whole, class_="scroll")


def tile(label: str, value: str, *below: Html) -> Html:
    """Return a headline number with its label and further lines below it."""
    label_line = element("span", label, class_="label")
    return element("div", element("b", value), label_line, *below, class_="tile")


def stacked_bar(counts: Mapping[str, int], total: int = 0) -> Html:
    """Return one horizontal bar, divided by status in proportion to the counts.

    If `total` is above the sum of the counts, the rest of the bar stays empty.
    """
    whole = max(total, sum(counts.values()), 1)
    parts = [
        element("i", class_=shade, style=f"width:{100 * count / whole:.3f}%",
                title=f"{status}: {count:,} ({count / whole:.1%})")
        for (status, count), shade in zip(counts.items(), shades(counts), strict=True)
        if count
    ]  # fmt: skip
    label = ", ".join(f"{status} {count}" for status, count in counts.items())
    return element("div", *parts, class_="bar", role="img", aria_label=label)


def shades(counts: Mapping[str, int]) -> list[str]:
    """Return the style class of each status: `ok`, or one of s0 to s7 in turn."""
    others = [status for status in counts if status != OK]
    return [OK if s == OK else f"s{others.index(s) % SHADES}" for s in counts]


def chip(shade: str) -> Html:
    """Return a small square in a bar's color, for a legend."""
    return element("i", class_=f"chip {shade}")


def bar_chart(values: Mapping[str, float], mean: float | None = None) -> Html:
    """Return an SVG bar chart of values in [0, 1], with a dashed line at `mean`.

    The names stand left of the bars, the values right of them.
    """
    row, left, right, width = 22, 190, 60, 760
    span, height = width - left - right, row * len(values) + 6
    parts = []
    for line, (name, value) in enumerate(values.items()):
        y = line * row + 3
        shown = name if len(name) <= 26 else f"{name[:25]}…"
        parts += [
            element("text", element("title", name), shown, x=f"{left - 8}", y=f"{y + 15}",
                    text_anchor="end"),
            element("rect", x=f"{left}", y=f"{y}", width=f"{span}", height="18", class_="track",
                    rx="3"),
            element("rect", x=f"{left}", y=f"{y}", width=f"{max(1.0, span * value):.1f}",
                    height="18", class_="value", rx="3"),
            element("text", f"{value:.3f}", x=f"{width - right + 8}", y=f"{y + 15}"),
        ]  # fmt: skip
    if mean is not None:
        x = f"{left + span * mean:.1f}"
        parts.append(element("line", element("title", f"mean {mean:.3f}"), x1=x, x2=x, y1="0",
                             y2=f"{height}", class_="mean"))  # fmt: skip
    return element(
        "svg", *parts, viewBox=f"0 0 {width} {height}", role="img", class_="chart",
        aria_label="bar chart",
    )  # fmt: skip


def picture(image: np.ndarray, description: str) -> Html:
    """Return an `img` element that contains the (H, W, 3) uint8 RGB image as JPEG."""
    data = base64.b64encode(images.encode_jpeg(image, JPEG_QUALITY)).decode()
    height, width = image.shape[:2]
    return element(
        "img", src=f"data:image/jpeg;base64,{data}", alt=description, width=f"{width}",
        height=f"{height}", loading="lazy",
    )  # fmt: skip


def figure(caption: str, *pictures: Html) -> Html:
    """Return pictures side by side, with one caption below them."""
    return element(
        "figure",
        element("div", *pictures, class_="side"),
        element("figcaption", caption),
    )


def folded(title: str, *children: str) -> Html:
    """Return a part of the page that is hidden until the reader opens it by its title."""
    return element("details", element("summary", title), *children)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number as text, and a dash for None.

    Integers, and numbers from 1,000 on, have commas between the thousands and no decimals. Other
    numbers have `digits` significant digits.
    """
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
