"""The report's sections of numbers: headline, funnels, archives, IoU, timings, configuration."""

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
"""Number of lines of a table or chart that are shown unfolded."""

UNRESOLVED = (DNS, DNS_FAILED)
"""Statuses of a url whose host name could not be resolved."""

MANY_URLS = 20
"""Smallest number of urls with unresolved hosts at which the report doubts the name server."""

TILES = {
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "retrieval_precision": "retrieval precision",
    "pseudo_mask_iou": "IoU of pseudo-masks",
    "expert_mask_iou": "IoU of experts' masks",
    "archive_fill": "fill of the smallest archive",
    "images_kept": "images kept",
    "mean_per_category": "images per category",
    "mean_height": "mean height, pixels",
    "mean_width": "mean width, pixels",
}
"""Key and label of each headline number, in the order of the tiles."""


def header(run: Run) -> Html:
    """Return the page's title and a list of the verbs, each finished or not finished."""
    verbs = [verb.name for verb in steps_of_road()]
    done = [verb for verb in verbs if run.verbs.get(verb, {}).get("finished")]
    items = (
        element("li", f"{verb}: {'finished' if verb in done else 'not finished'}",
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
    """Return the tiles of the main numbers and, for a demo run, the table of all numbers."""
    lines = {line.key: line for line in scorecard(headline_numbers(run), is_full(run))}
    shown = [_tile(lines[key], label) for key, label in TILES.items() if key in lines]
    if not shown:
        return section("Numbers", note("There are no numbers yet, because no verb has finished."))
    tiles = element("div", *shown, class_="tiles")
    return section("Numbers", tiles, _scorecard_table(lines) if run.summary else Html())


def headline_numbers(run: Run) -> dict[str, float]:
    """Return the summary of a demo run; for any other run, the numbers its folder allows."""
    if run.summary:
        return run.summary
    numbers: dict[str, float] = {}
    if run.evaluation:
        keys = ("miou", "pixel_accuracy")
        numbers |= {key: run.evaluation[key] for key in keys if run.evaluation[key] is not None}
    if run.archive and run.sizes is not None and run.sizes.num_rows:
        kept = run.archive.categories
        numbers |= {
            "archive_fill": min(category.count / category.wanted for category in kept),
            "images_kept": run.sizes.num_rows,
            "mean_per_category": run.sizes.num_rows / len(kept),
            "mean_height": pc.mean(run.sizes["image_height"]).as_py(),
            "mean_width": pc.mean(run.sizes["image_width"]).as_py(),
        }
    return numbers


def is_full(run: Run) -> bool:
    """Return whether this run is the full demo (`--full`), whose bars are higher."""
    return bool(run.summary and run.summary.get("full"))


def _tile(line: Line, label: str) -> Html:
    below = []
    if line.paper is not None:
        below.append(element("span", f"paper on LAION: {number(line.paper)}", class_="below"))
    if line.met is not None:
        style = "met" if line.met else "missed"
        below.append(element("span", f"bar {line.bars}: {style}", class_=f"below {style}"))
    return tile(label, number(line.value), *below)


def _scorecard_table(lines: Mapping[str, Line]) -> Html:
    words = {True: ("met", "met"), False: ("missed", "missed"), None: ("", "none")}
    rows = []
    for line in lines.values():
        word, style = words[line.met]
        paper = number(line.paper) if line.paper is not None else ""
        result = element("span", word, class_=style)
        rows.append((line.key, number(line.value), line.bars, result, paper))
    head = ("number", "value", "bar", "", "paper on LAION")
    title = element("h3", "All numbers, and the bars that they must clear")
    return joined((title, table(head, rows, numbers=(1, 4))))


def funnels(run: Run) -> Html:
    """Return the number of metadata rows and of candidates per status."""
    if not run.funnels:
        command = element("code", "namedmask embed")
        return section("Funnels", note("No metadata has been read yet. Run ", command, "."))
    parts = []
    titles = {"rows": "Rows of the metadata", "candidates": "Candidates of the categories"}
    for key, title in titles.items():
        if f"{key}_in" in run.funnels:
            counts = run.funnels[f"{key}_by_status"]
            parts.append(_funnel(title, key, run.funnels[f"{key}_in"], counts))
    if "candidates_in" not in run.funnels:
        command = element("code", "namedmask build")
        parts.append(note("No candidates have been retrieved yet. Run ", command, "."))
    return section("Funnels", *parts)


def _funnel(title: str, noun: str, came_in: int, counts: Mapping[str, int]) -> Html:
    total, counts = sum(counts.values()), in_order(counts)
    rows = [
        (element("span", chip(shade), status), number(count), f"{count / max(1, total):.1%}")
        for (status, count), shade in zip(counts.items(), shades(counts), strict=True)
    ]
    balance = (
        note(f"All {came_in:,} {noun} are counted below, each under its status.")
        if total == came_in
        else element(
            "p", f"There are {came_in:,} {noun}, but the counts below add up to {total:,}.",
            class_="missed",
        )
    )  # fmt: skip
    head = ("status", "count", "share")
    return element(
        "div", element("h3", title), balance, *_name_server(counts), stacked_bar(counts),
        table(head, rows, numbers=(1, 2)),
    )  # fmt: skip


def _name_server(counts: Mapping[str, int]) -> list[Html]:
    """Return a warning if so many host names are unresolved that the name server is suspect."""
    unresolved = sum(counts.get(status, 0) for status in UNRESOLVED)
    tried = sum(
        count for status, count in counts.items() if status == OK or failure_class_of(status)
    )
    if unresolved < MANY_URLS or unresolved * 2 <= tried:
        return []
    text = (
        f"The host names of {unresolved:,} of {tried:,} requested urls could not be resolved. The "
        "web alone does not lose that many, so the run's name server may have failed. See its log."
    )
    return [element("p", text, class_="missed")]


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the same counts with `ok` first and the others in descending order.

    funnels.json lists the statuses in alphabetical order.
    """
    order = sorted(counts, key=lambda status: (status != OK, -counts[status], status))
    return {status: counts[status] for status in order}


def categories(run: Run) -> Html:
    """Return how full each archive is, and the statuses of the candidates that were not kept."""
    if run.archive is None:
        command = element("code", "namedmask build")
        return section("Archives", note("The archives have not been built yet. Run ", command, "."))
    by_category = (run.funnels or {}).get("by_category", {})
    rows = []
    for category in run.archive.categories:
        name, count, wanted = category.name, category.count, category.wanted
        query = f" ← “{category.query}”" if category.query != name else ""
        counts = in_order(by_category.get(name, {}))
        rejected = ", ".join(
            f"{status} {n:,}" for status, n in counts.items() if status != OK and n
        )
        fill = stacked_bar({OK: count}, wanted)
        rows.append((f"{name}{query}", f"{count:,} of {wanted:,}", fill, rejected))
    head = ("category", "images", "fill", "candidates not kept")
    full = sum(category.count >= category.wanted for category in run.archive.categories)
    return section(
        "Archives",
        note(f"{full} of {len(rows)} archives are full."),
        table(head, rows[:OPEN_ROWS], numbers=(1,)),
        *_rest(len(rows), table(head, rows[OPEN_ROWS:], numbers=(1,))),
    )


def iou_by_label(run: Run) -> Html:
    """Return the segmenter's IoU per label, highest first."""
    if not run.evaluation:
        command = element("code", "namedmask evaluate")
        text = "The segmenter has not been evaluated yet. Run "
        return section("IoU by category", note(text, command, "."))
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
            f"On {result['num_scenes']:,} images of {result['benchmark']} (split "
            f"{result['split']}), the mean IoU is {number(result['miou'], 3)} (the dashed line), "
            f"and the pixel accuracy is {number(result['pixel_accuracy'], 3)}."
        )
    ]
    if absent:
        names = ", ".join(absent)
        lines.append(note(f"These labels occur in neither the truth nor a prediction: {names}."))
    return section("IoU by category", *lines, charts[0], *_rest(len(ranked), charts[1]))


def timings(run: Run) -> Html:
    """Return the seconds that each stage has taken, longest first."""
    seconds = run.timings or (run.summary or {}).get("seconds")
    if not seconds:
        return section("Timings", note("No stage has finished yet."))
    longest = max(seconds.values()) or 1.0
    rows = [
        (stage, f"{spent:,.1f} s", stacked_bar({OK: round(1000 * spent)}, round(1000 * longest)))
        for stage, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    overlap = (
        "Fetching overlaps with the stages after it, so the times may add up to more than the "
        "duration of the run."
    )
    head = ("stage", "time", "")
    return section("Timings", note(overlap), table(head, rows, numbers=(1,)))


def configuration(run: Run) -> Html:
    """Return the resolved run file, and the version that wrote the report."""
    text = run.config_text
    if text is None:
        return section("Configuration", note("The run folder has no run.toml."))
    return section(
        "Configuration",
        folded("run.toml, with every default spelled out", element("pre", text)),
        element("footer", f"Written by namedmask {namedmask.__version__}."),
    )


def _rest(count: int, hidden: Html) -> list[Html]:
    return [folded(f"Show {count - OPEN_ROWS} more", hidden)] if count > OPEN_ROWS else []
