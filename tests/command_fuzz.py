"""Random commands, run files and broken run folders, from one finished run of the toy web."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from namedmask.config import Config

NASTY_TEXTS = (
    "", " ", "x", "none", "nowhere.toml", "/dev/null", "/", ".", "..", "~", "$HOME", "a\tb", "Ü–雪",
    "s3://", "s3://bucket/a", "http://127.0.0.1:9/x.parquet", "x:y", "tests.toys:nothing",
    "tests.toys:embedder", "tests.toys:COLORS", "json:loads", "no.such.module:x", "miniworld",
    "open_clip:RN50", "[red]", "{}", "%s", "a" * 300, "-1", "1e999", "nan", "../run.toml",
    "cuda", "tpu", "\ud800", "namedmask", "--help", "-", "voc2012", "1,2,x",
)  # fmt: skip
NASTY_VALUES: tuple[Any, ...] = (
    *NASTY_TEXTS, 0, -1, 1, 2**31, 2**63, 2**70, 0.0, -0.5, 1e308, True, False, [], [1], [0, 0],
    [1, 1], ["x"], [[]], {}, {"a": 1}, ["red", "red"], ["red", ""], [2, 1],
)  # fmt: skip
NASTY_OF = {
    str: NASTY_TEXTS,
    bool: (True, False),
    int: (0, 1, 2, 3, 7, 40, 300, 100_000, 2**31),
    float: (0.0, 1e-12, 0.01, 0.5, 0.999, 1.0, 3.5, 1e6, 1e300),
    tuple: ([], ["x"], [1, 1], [0.5, 0.5], [1, 3], [0.0, 0.0], ["a {}"], ["{} {}"]),
}
"""Values of the right type, by type."""
SLOW_KEYS = (
    "iterations",
    "timeout_s",
    "max_pause_s",
    "retries",
    "cg_iterations",
    "stall_timeout_s",
)
"""Keys whose large values are kept out, because they only make a run long."""
WORDS = ("red", "green", "blue", "", "x", "red\n", "background", "Ü")
VERBS = ("fetch", "embed", "curate", "build", "refine", "train", "evaluate", "plan")
JSON_TEXTS = (
    "",
    "[]",
    "{}",
    "null",
    "1",
    '"x"',
    '{"format_version": 2}',
    "{",
    '{"a": NaN}',
    "\x00",
)


@dataclass(frozen=True)
class World:
    """What a random command may use: a finished run, its run file, pictures and a checkpoint."""

    run: Path
    run_file: Path
    pictures: Path
    source: Path


@dataclass(frozen=True)
class Command:
    """A random command and the folder that it runs in."""

    arguments: list[str]
    folder: Path


def random_command(rng: random.Random, world: World, folder: Path) -> Command:
    """Return a random command; what it needs is made in `folder`."""
    folder.mkdir()
    kind = rng.choices(
        (_of_words, _of_overrides, _of_run_file, _of_broken_run, _of_broken_store, _of_files),
        (2, 3, 3, 4, 5, 2),
    )[0]
    return Command(kind(rng, world, folder), folder)


def _of_words(rng: random.Random, world: World, folder: Path) -> list[str]:
    """Known commands and options in any order, with any values."""
    words = [
        *VERBS, "predict", "report", "search", "inspect", "ablate", "weights", "submit", "--set",
        "--json", "--out", "--device", "--k", "--retry", "--seeds", "--baseline", "--sweep",
        "--threshold", "--split", "verify", "copy-paste", "experts", "maskclip", "reco",
        str(world.run), str(world.run_file), str(world.pictures),
    ]  # fmt: skip
    first = rng.choice([w for w in words if w[0] != "-" and w not in ("submit",)])
    rest = rng.choices([*words, *NASTY_TEXTS], k=rng.randint(0, 5))
    return [first, *rest, *_local(first)]


def _of_overrides(rng: random.Random, world: World, folder: Path) -> list[str]:
    """A right run file with keys set to anything."""
    verb = rng.choice(VERBS)
    out = rng.choice((folder / "out", _copy(world.run, folder / "out")))
    words = [verb, str(world.run_file), "--set", f"run.out={out}"]
    for _ in range(rng.randint(1, 2)):
        key = _key(rng)
        words += ["--set", f"{key}={_value(rng, key)}"]
    return [*words, *_local(verb)]


def _of_run_file(rng: random.Random, world: World, folder: Path) -> list[str]:
    """A run file with lines lost, doubled, cut or changed, or with bytes of no text."""
    verb = rng.choice((*VERBS, "inspect"))
    lines = world.run_file.read_text().splitlines()
    for _ in range(rng.randint(1, 4)):
        number = rng.randrange(len(lines))
        change = rng.randrange(5)
        if change == 0:
            del lines[number]
        elif change == 1:
            lines.insert(rng.randrange(len(lines)), lines[number])
        elif change == 2:
            lines[number] = lines[number][: rng.randrange(len(lines[number]) + 1)]
        elif change == 3:
            key = lines[number].partition("=")[0]
            lines[number] = f"{key}= {json.dumps(rng.choice(NASTY_VALUES))}"
        else:
            lines.insert(number, rng.choice(("[x]", "x = 1", "[run]", "= 1", "a = [", "\ufeff")))
    data = "\n".join(lines).replace(str(world.run), str(folder / "out")).encode("utf-8", "replace")
    if rng.random() < 0.2:
        data = _flipped(rng, data)
    (folder / "run.toml").write_bytes(data)
    return [verb, str(folder / "run.toml"), *_local(verb)]


def _of_broken_run(rng: random.Random, world: World, folder: Path) -> list[str]:
    """A finished run with a file that is cut, changed or gone, and a verb that reads it."""
    out = _copy(world.run, folder / "out")
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    for _ in range(rng.randint(1, 2)):
        damage(rng, rng.choice(files))
    if rng.random() < 0.5:
        _unfinish(rng, out)
    settings = ["--set", f"run.out={out}"]
    changed = rng.choice(
        ((), ('categories.names=["red", "blue"]',), ("retrieve.archive_size=3",),
         ("train.iterations=3",), ("experts.iterations=3",), ("evaluate.max_side=20",))
    )  # fmt: skip
    for change in changed:
        settings += ["--set", change]
    verb = rng.choice((*VERBS, "report", "inspect", "search", "ablate", "predict", "retry"))
    if verb in ("report", "inspect"):
        return [verb, str(out if rng.random() < 0.5 else rng.choice(files))]
    if verb == "search":
        return [verb, str(out), "red"]
    if verb == "ablate":
        return [verb, str(world.run_file), "experts", "--seeds", "0", *settings, "--local"]
    if verb == "retry":
        return ["embed", str(world.run_file), "--retry", "dead", *settings, "--local"]
    if verb == "predict":
        checkpoint = out / "segmenter" / "checkpoint.pt"
        damage(rng, checkpoint) if checkpoint.is_file() else None
        picture = str(next(world.pictures.iterdir()))
        return [verb, str(checkpoint), picture, "--out", str(folder / "seen")]
    return [verb, str(world.run_file), *settings, *_local(verb)]


READERS = {
    "embeddings": ("build", "search", "embed"), "offers": ("build",), "images": ("build",),
    "archive": ("refine", "train", "report", "build"), "refined": ("train", "report", "ablate"),
    "experts": ("refine",), "segmenter": ("evaluate", "predict"), "index": ("search",),
    "evaluation": ("report",), ".": ("report", "build", "evaluate", "plan", "inspect"),
}  # fmt: skip
"""Verbs that read a store of a run folder, by its folder."""


def _of_broken_store(rng: random.Random, world: World, folder: Path) -> list[str]:
    """A run with one broken file, whose commit knows it so, and a verb that reads the file."""
    out = _copy(world.run, folder / "out")
    store = rng.choice([name for name in READERS if (out / name).is_dir()])
    path = rng.choice(sorted(p for p in (out / store).iterdir() if p.is_file() and p.suffix))
    damage(rng, path)
    for commit in (out / store).glob("commit-*.json") if path.is_file() else ():
        _resize(commit, f"{store}/{path.name}", path.stat().st_size)
    verb = rng.choice(READERS[store])
    _unfinish(rng, out, verb)
    settings = [str(world.run_file), "--set", f"run.out={out}", "--local"]
    if verb == "build":  # lists and images that are there are read again
        settings += ["--set", f"retrieve.archive_size={rng.choice((8, 4, 12))}"]
        settings += ["--set", f"categories.names={rng.choice(NAMES)}"]
    if verb == "embed":
        settings += ["--retry", "dead"]
    if verb == "search":
        return ["search", str(out), "red"]
    if verb in ("report", "inspect"):
        return [verb, str(out)]
    if verb == "predict":
        return [verb, str(path), str(next(world.pictures.iterdir())), "--out", str(folder / "seen")]
    if verb == "ablate":
        return ["ablate", settings[0], "experts", "--seeds", "0", *settings[1:]]
    return [verb, *settings[:3], *(settings[3:] if verb != "plan" else ())]


NAMES = ('["red", "green", "blue"]', '["red"]', '["red", "green", "blue", "white"]')


def _resize(commit: Path, name: str, size: int) -> None:
    try:
        record = json.loads(commit.read_bytes())
        record["files"][name]["size"] = size
    except (ValueError, KeyError, TypeError):
        return
    commit.write_text(json.dumps(record))


def _of_files(rng: random.Random, world: World, folder: Path) -> list[str]:
    """Broken pictures, tables, benchmarks and category sets."""
    kind = rng.choice(("picture", "table", "benchmark", "set", "example"))
    path = folder / "thing"
    words = [str(world.run_file), "--set", f"run.out={folder / 'out'}", "--local"]
    if kind == "picture":
        path = shutil.copy(rng.choice(sorted(world.pictures.iterdir())), folder / "a.jpg")
        damage(rng, path)
        return ["predict", str(world.run / "segmenter/checkpoint.pt"), str(path),
                "--out", str(folder / "seen")]  # fmt: skip
    if kind == "table":
        path = shutil.copy(world.source, folder / rng.choice(("a.parquet", "a.csv", "a.tsv.gz")))
        damage(rng, path)
        return ["embed", *words, "--set", f'metadata.source=["{path}"]']
    if kind == "benchmark":
        root = _copy(world.run.parent / "disks", folder / "disks")
        damage(rng, rng.choice(sorted(path for path in root.rglob("*") if path.is_file())))
        out = _copy(world.run, folder / "out")
        (out / "evaluation.json").unlink(missing_ok=True)
        return ["evaluate", *words, "--set", f"evaluate.root={root}", "--set", f"run.out={out}",
                "--set", f"evaluate.max_side={rng.choice((0, 40))}"]  # fmt: skip
    if kind == "set":
        path = folder / "set.toml"
        names = json.dumps(rng.choices(WORDS, k=rng.randint(0, 4)))
        key = rng.choice(("names", "imagenet_indices", "queries", "imagenet_absent", "x"))
        path.write_text(f"{key} = {names}\n")
        if rng.random() < 0.3:
            damage(rng, path)
        verb = rng.choice(("plan", "curate"))
        chosen = ["--set", f"categories.set={path}", "--set", "categories.names=[]"]
        return [verb, *words[:3], *chosen, *_local(verb)]
    path = shutil.copy(rng.choice(sorted(world.pictures.iterdir())), folder / "a.jpg")
    damage(rng, path)
    return ["curate", *words, "--set", f'categories.each={{red = {{examples = ["{path}"]}}}}']


def damage(rng: random.Random, path: Path) -> None:
    """Break a file in one of many ways."""
    if not path.is_file():
        return
    data = path.read_bytes()
    ways: list[Callable[[], object]] = [
        lambda: path.write_bytes(data[: rng.randrange(len(data) + 1)]),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(_flipped(rng, data)),
        lambda: path.write_bytes(rng.randbytes(200)),
        path.unlink,
        lambda: (path.unlink(), path.mkdir()),
    ]
    if path.suffix == ".json":
        ways += [
            lambda: path.write_text(rng.choice(JSON_TEXTS)),
            lambda: _change_json(rng, path),
        ] * 3
    if path.suffix == ".parquet":
        ways += [lambda: _change_table(rng, path)] * 5
    rng.choice(ways)()


def _unfinish(rng: random.Random, out: Path, verb: str = "") -> None:
    """Make verbs of a finished run unfinished ones, so that their stores are read again."""
    path = out / "run.json"
    if verb and path.is_file():
        try:
            record = json.loads(path.read_bytes())
            record["verbs"][verb]["finished"] = False
        except (ValueError, KeyError, TypeError):
            return
        path.write_text(json.dumps(record))
        return
    if path.is_file():
        text = path.read_text(errors="replace")
        places = [place for place in range(len(text)) if text.startswith('"finished": true', place)]
        for place in rng.sample(places, min(len(places), rng.randint(1, 3))):
            text = text[:place] + '"finished":false' + text[place + 16 :]
        path.write_text(text)


def _change_json(rng: random.Random, path: Path) -> None:
    """Drop or replace one value somewhere in a JSON file."""
    try:
        tree = inner = json.loads(path.read_bytes())
    except ValueError:
        return
    while isinstance(inner, dict | list) and inner:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = rng.choice(keys)
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.4:
            if rng.random() < 0.4:
                del inner[key]
            else:
                inner[key] = rng.choice((None, 1, "x", [], {}, -1, 2**70, ["x"], {"x": 1}))
            break
        inner = inner[key]
    path.write_text(json.dumps(tree))


def _change_table(rng: random.Random, path: Path) -> None:
    """Drop, rename, empty or retype a column, or the rows, of a parquet file."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return
    name = rng.choice(table.column_names)
    place, count = table.column_names.index(name), table.num_rows
    changed = rng.choice(
        (
            lambda: table.drop_columns(name),
            lambda: table.rename_columns([f"{n}2" if n == name else n for n in table.column_names]),
            lambda: table.set_column(place, name, pa.nulls(count, table.schema.field(name).type)),
            lambda: table.set_column(place, name, pa.array([7] * count)),
            lambda: table.set_column(place, name, pa.array(["x"] * count)),
            lambda: table.slice(0, 0),
            lambda: table.slice(0, max(0, count - 1)),
            lambda: pa.concat_tables([table, table]),
        )
    )()
    pq.write_table(changed, path)


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), rng.choice((1, 3, 30)))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _key(rng: random.Random) -> str:
    sections = Config.model_fields
    section = rng.choice([name for name in sections if name not in ("ray",)])
    keys = list(sections[section].annotation.model_fields)
    keys = [key for key in keys if not key.endswith(SLOW_KEYS)]
    key = rng.choice(keys)
    return rng.choice((f"{section}.{key}", f"{section}.{key}", f"{section}.{key}", f"{section}.x"))


def _value(rng: random.Random, key: str = "") -> str:
    default = _default(key)
    value = rng.choice(NASTY_VALUES)
    if type(default) in NASTY_OF and rng.random() < 0.7:
        value = rng.choice(NASTY_OF[type(default)])
    return json.dumps(value) if rng.random() < 0.8 else str(value)


def _default(key: str) -> object:
    section, _, name = key.partition(".")
    field = Config.model_fields[section].annotation.model_fields.get(name)
    return field and field.default


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def _local(verb: str) -> list[str]:
    return ["--local"] if verb in VERBS and verb != "plan" else []
