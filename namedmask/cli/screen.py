"""The output of commands: results on stdout, as tables or JSON, and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from namedmask.config import Config
from namedmask.storage import Place


def show(tree: Mapping[str, Any]) -> None:
    """Write a nested tree of values as a table of two columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, text in _rows(tree):
        table.add_row(key, text)
    Console(soft_wrap=True).print(table)


def show_settings(config: Config) -> None:
    """Write to stderr each key whose value differs from its default."""
    defaults = Config.of({"run": {"out": "."}}).tree()
    for section, values in config.tree().items():
        for key, value in values.items():
            if value != defaults[section][key]:
                sys.stderr.write(f"{section}.{key} = {json.dumps(value, ensure_ascii=False)}\n")


def show_job_line(line: str) -> None:
    """Write a line of a Ray job's log: a verb's result (see ray_jobs) to stdout, else to stderr."""
    stream = sys.stdout if line.startswith('{"verb": ') else sys.stderr
    stream.write(f"{line}\n")
    stream.flush()


def say_already_done(out: Place) -> None:
    """Write that a verb has nothing to do, because the run folder has its results."""
    write(f"already done: {out}; nothing to do")


def show_plan(planned: Mapping[str, Any]) -> None:
    """Write the plan of a run: its stages and how many images it needs."""
    from rich.console import Console
    from rich.table import Table

    table = Table("verb", "stage", "reads", "adds", "with", box=None, pad_edge=False)
    for stage in planned["stages"]:
        reads, adds = ", ".join(stage["reads"]), ", ".join(stage["adds"])
        table.add_row(stage["verb"], stage["name"], reads, adds, stage["choice"])
    categories = dict(planned["categories"], names=", ".join(planned["categories"]["names"][:8]))
    preset = planned["preset"] if planned["preset"]["name"] else "none"
    show({"run": planned["run"], "preset": preset, "categories": categories})
    Console().print(table)
    show(planned["images"] | ({"changes": planned["changes"]} if planned["changes"] else {}))
    for note in planned["notes"]:
        write(f"note: {note}")
    write("nothing was started")


def show_baseline(result: Mapping[str, Any]) -> None:
    """Write a baseline's threshold sweep, if any, and all scores on the same split."""
    from rich.console import Console
    from rich.table import Table

    from namedmask.evaluate.thresholds import standings
    from namedmask.report.curves import called, threshold_of
    from namedmask.storage import place_of

    folder = place_of(result["file"]).parent.parent
    columns = ("background below", "mean IoU", "pixel accuracy")
    if "curve" in result:
        sweep = Table(*columns, box=None, pad_edge=False)
        for point in result["curve"]:
            style = "bold" if point["threshold"] == result["threshold"] else None
            scores = (_score(point[key]) for key in ("miou", "pixel_accuracy"))
            sweep.add_row(f"{point['threshold']:.2f}", *scores, style=style)
        Console().print(sweep)
    table = Table(f"{result['benchmark']} {result['split']}", *columns, box=None, pad_edge=False)
    for row in standings(folder, result["benchmark"], result["split"]):
        scores = (_score(row[key]) for key in ("miou", "pixel_accuracy"))
        table.add_row(called(row), threshold_of(row), *scores)
    Console().print(table)
    if result["chosen_here"]:
        write(
            f"note: threshold {result['threshold']:.2f} was chosen on this very split, so its "
            "score is optimistic; use it on another split with --threshold-from"
        )
    write(f"written: {result['file']}")


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def show_hits(result: Mapping[str, Any]) -> None:
    """Write the hits of a search, the recall of its index, and the seconds that it took."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("rank", "score", "url", "caption", box=None, pad_edge=False)
    for hit in result["hits"]:
        url, caption = (
            Text(_printable(hit[key] or ""), overflow="fold") for key in ("url", "caption")
        )
        table.add_row(f"{hit['rank']}", f"{hit['score']:.4f}", url, caption)
    Console().print(table)
    made = f"made now ({result['made_because']}): " if result["made_because"] else ""
    write(
        f"index {made}{result['index']} of {result['vectors']:,} vectors, recall@50 "
        f"{result['recall_at_50']:.3f} on {result['measured_on']}"
    )
    times = ", ".join(f"{name} {1000 * value:,.0f} ms" for name, value in result["seconds"].items())
    write(f"{times}; {result['prompts']} prompt{'s' if result['prompts'] > 1 else ', as typed'}")


def show_weights(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write one line per row with the row's values in these columns, without empty values."""
    for row in rows:
        write("  ".join(_text(row[column]) for column in columns if row.get(column)))


def _printable(text: str) -> str:
    """Return a text from the web in which spaces replace characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def show_scorecard(summary: Mapping[str, Any], full: bool) -> None:
    """Write the scores of a demo with their bars and the paper's numbers."""
    from rich.console import Console
    from rich.table import Table

    from namedmask.report.scorecard import scorecard

    table = Table("measured", "value", "bar", "", "paper", box=None, pad_edge=False)
    words = {True: "[green]met[/green]", False: "[red]missed[/red]", None: ""}
    lines = scorecard(summary, full)
    for line in lines:
        paper = _text(line.paper) if line.paper is not None else ""
        table.add_row(line.key, _text(line.value), line.bars, words[line.met], paper)
    Console().print(table)
    missed = [line.key for line in lines if line.met is False]
    if missed:
        write(f"missed: {', '.join(missed)}")


def _rows(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) per value of a nested tree, escaped for rich."""
    from rich.markup import escape

    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield escape(f"{prefix}{key}"), escape(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(_text(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def write(line: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{line}\n")


def write_json(value: Any) -> None:
    """Write a JSON document to stdout, with escapes if its encoding lacks characters."""
    is_unicode = "utf" in (sys.stdout.encoding or "utf-8").lower()
    write(json.dumps(value, indent=2, ensure_ascii=not is_unicode))


def complain(message: str) -> None:
    """Write an error to stderr as one line, without wrapping."""
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("error: ", "bold red"), message)
    Console(stderr=True, soft_wrap=True).print(line)
