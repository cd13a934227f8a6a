"""The sections of the report that are numbers: headline, funnels, categories, IoU, timings."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.compute as pc

import namedmask
from namedmask.report.page import (
    Html,
    bar_chart,
    chip,
    element,
    folded,
    joined,
    note,
    number,
    section,
    shades,
    stacked_bar,
    table,
    tile,
)
from namedmask.report.run_folder import Run
from namedmask.report.scorecard import Line, scorecard
from namedmask.run.verb_table import steps_of_road
from namedmask.schema.status import DNS, DNS_FAILED, OK, failure_class_of

OPEN_ROWS = 60
"""Lines of a table or chart that are shown without asking."""

NO_ADDRESS = (DNS, DNS_FAILED)
MANY_URLS = 20
"""From so many urls on, more than half without an address are worth a line."""

TILES = {
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "retrieval_precision": "retrieval precision",
    "pseudo_mask_iou": "IoU of pseudo-masks",
    "expert_mask_iou": "IoU of experts' masks",
    "archive_fill": "fill of the smallest archive",
    "images_kept": "images kept",
    "mean_per_category": "images a category",
    "mean_height": "mean height, pixels",
    "mean_width": "mean width, pixels",
}
"""Headline numbers in their order, and what they are called."""


def header(run: Run) -> Html:
    """Return the title and how far the run has come."""
    verbs = [verb.name for verb in steps_of_road()]
    done = [verb for verb in verbs if run.verbs.get(verb, {}).get("finished")]
    items = (
        element("li", f"{verb} {'done' if verb in done else 'not yet'}",
                class_="done" if verb in done else "open")
        for verb in verbs
    )  # fmt: skip
    return element(
        "header",
        element("h1", f"NamedMask: {run.name}"),
        element("p", "From category names to a segmenter, without a labeled pixel.", class_="note"),
        element("ul", *items, class_="verbs"),
    )


def headline(run: Run) -> Html:
    """Return the tiles of the main numbers, and the demo's scorecard where there is one."""
    lines = {line.key: line for line in scorecard(headline_numbers(run), is_full(run))}
    shown = [_tile(lines[key], label) for key, label in TILES.items() if key in lines]
    if not shown:
        return section("Numbers", note("No numbers yet: nothing is finished."))
    tiles = element("div", *shown, class_="tiles")
    return section("Numbers", tiles, _scorecard_table(lines) if run.summary else Html())


def headline_numbers(run: Run) -> dict[str, float]:
    """Return what the demo summed up, or as much of it as the run folder tells."""
    if run.summary:
        return run.summary
    numbers: dict[str, float] = {}
    if run.evaluation:
        keys = ("miou", "pixel_accuracy")
        numbers |= {key: run.evaluation[key] for key in keys if run.evaluation[key] is not None}
    if run.archive and run.sizes is not None and run.sizes.num_rows:
        kept = run.archive.categories
        numbers |= {
            "archive_fill": min(one.count / one.wanted for one in kept),
            "images_kept": run.sizes.num_rows,
            "mean_per_category": run.sizes.num_rows / len(kept),
            "mean_height": pc.mean(run.sizes["image_height"]).as_py(),
            "mean_width": pc.mean(run.sizes["image_width"]).as_py(),
        }
    return numbers


def is_full(run: Run) -> bool:
    """Return whether the longer demo made this run, whose bars are higher."""
    return bool(run.summary and run.summary.get("full"))


def _tile(line: Line, label: str) -> Html:
    below = []
    if line.seed is not None:
        below.append(element("span", f"paper, LAION: {number(line.seed)}", class_="below"))
    if line.met is not None:
        style = "met" if line.met else "missed"
        below.append(element("span", f"bar {line.bars}: {style}", class_=f"below {style}"))
    return tile(label, number(line.value), *below)


def _scorecard_table(lines: Mapping[str, Line]) -> Html:
    words = {True: ("met", "met"), False: ("missed", "missed"), None: ("", "none")}
    rows = []
    for line in lines.values():
        word, style = words[line.met]
        seed = number(line.seed) if line.seed is not None else ""
        verdict = element("span", word, class_=style)
        rows.append((line.key, number(line.value), line.bars, verdict, seed))
    head = ("measured", "value", "bar", "", "paper, LAION")
    return joined(
        (element("h3", "All numbers beside their bars"), table(head, rows, numbers=(1, 4)))
    )


def funnels(run: Run) -> Html:
    """Return what became of every row and every candidate."""
    if not run.funnels:
        return section(
            "Funnels", note("Nothing was read yet. Run ", element("code", "namedmask embed"), ".")
        )
    parts = []
    titles = {"rows": "Rows of the metadata", "candidates": "Candidates of the categories"}
    for key, title in titles.items():
        if f"{key}_in" in run.funnels:
            counts = run.funnels[f"{key}_by_status"]
            parts.append(_funnel(title, run.funnels[f"{key}_in"], counts))
    if "candidates_in" not in run.funnels:
        parts.append(note("No candidates yet. Run ", element("code", "namedmask build"), "."))
    return section("Funnels", *parts)


def _funnel(title: str, came_in: int, counts: Mapping[str, int]) -> Html:
    total, counts = sum(counts.values()), in_order(counts)
    rows = [
        (element("span", chip(shade), status), number(count), f"{count / max(1, total):.1%}")
        for (status, count), shade in zip(counts.items(), shades(counts), strict=True)
    ]
    verdict = (
        note(f"{number(came_in)} came in, and every one is counted below.")
        if total == came_in
        else element("p", f"{came_in:,} came in, {total:,} are counted.", class_="missed")
    )
    head = ("status", "count", "share")
    return element(
        "div", element("h3", title), verdict, *_name_server(counts), stacked_bar(counts),
        table(head, rows, numbers=(1, 2)),
    )  # fmt: skip


def _name_server(counts: Mapping[str, int]) -> list[Html]:
    lost = sum(counts.get(status, 0) for status in NO_ADDRESS)
    tried = sum(
        count for status, count in counts.items() if status == OK or failure_class_of(status)
    )
    if lost < MANY_URLS or lost * 2 <= tried:
        return []
    text = (
        f"{lost:,} of {tried:,} urls that were asked for have a host without an address: more than "
        "the web loses. The name server of the machine may have failed; look at its log."
    )
    return [element("p", text, class_="missed")]


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the same counts, `ok` first, then falling; the file keeps them by name."""
    order = sorted(counts, key=lambda status: (status != OK, -counts[status], status))
    return {status: counts[status] for status in order}


def categories(run: Run) -> Html:
    """Return how full each archive is, and why candidates were turned away."""
    if run.archive is None:
        return section(
            "Archives", note("No archive yet. Run ", element("code", "namedmask build"), ".")
        )
    by_category = (run.funnels or {}).get("by_category", {})
    rows = []
    for one in run.archive.categories:
        counts = in_order(by_category.get(one.name, {}))
        reasons = {status: count for status, count in counts.items() if status != OK and count}
        asked = f" ← “{one.query}”" if one.query != one.name else ""
        told = ", ".join(f"{status} {count:,}" for status, count in reasons.items())
        fill = stacked_bar({OK: one.count}, one.wanted)
        rows.append((f"{one.name}{asked}", f"{one.count:,} of {one.wanted:,}", fill, told))
    head = ("category", "images", "fill", "other candidates")
    full = sum(one.count >= one.wanted for one in run.archive.categories)
    return section(
        "Archives",
        note(f"{full} of {len(rows)} archives are full."),
        table(head, rows[:OPEN_ROWS], numbers=(1,)),
        *_rest(len(rows), table(head, rows[OPEN_ROWS:], numbers=(1,))),
    )


def iou_by_label(run: Run) -> Html:
    """Return the segmenter's IoU by label, best first."""
    if not run.evaluation:
        return section(
            "IoU by category",
            note("No evaluation yet. Run ", element("code", "namedmask evaluate"), "."),
        )
    result = run.evaluation
    known = {name: iou for name, iou in result["iou"].items() if iou is not None}
    absent = [name for name, iou in result["iou"].items() if iou is None]
    ranked = sorted(known, key=lambda name: -known[name])
    charts = [
        bar_chart({name: known[name] for name in part}, result["miou"])
        for part in (ranked[:OPEN_ROWS], ranked[OPEN_ROWS:])
    ]
    lines = [
        note(
            f"{result['num_scenes']:,} pictures of {result['benchmark']}, split {result['split']}: "
            f"mean IoU {number(result['miou'], 3)} (the dashed line), pixel accuracy "
            f"{number(result['pixel_accuracy'], 3)}."
        )
    ]
    if absent:
        lines.append(note(f"In neither truth nor prediction: {', '.join(absent)}."))
    return section("IoU by category", *lines, charts[0], *_rest(len(ranked), charts[1]))


def timings(run: Run) -> Html:
    """Return the seconds of each stage."""
    seconds = run.timings or (run.summary or {}).get("seconds")
    if not seconds:
        return section("Timings", note("No stage has ended yet."))
    longest = max(seconds.values()) or 1.0
    rows = [
        (stage, f"{spent:,.1f} s", stacked_bar({OK: round(1000 * spent)}, round(1000 * longest)))
        for stage, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    told = (
        "Fetching runs beside the stages after it, so the seconds may add up to more than passed."
    )
    head = ("stage", "time", "")
    return section("Timings", note(told), table(head, rows, numbers=(1,)))


def configuration(run: Run) -> Html:
    """Return the resolved run file."""
    text = run.config_text
    if text is None:
        return section("Configuration", note("The run folder has no run.toml."))
    return section(
        "Configuration",
        folded("run.toml, with every default spelled out", element("pre", text)),
        element("footer", f"Written by namedmask {namedmask.__version__}."),
    )


def _rest(count: int, shown: Html) -> list[Html]:
    return [folded(f"The other {count - OPEN_ROWS}", shown)] if count > OPEN_ROWS else []
