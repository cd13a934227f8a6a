"""Text files that other programs wrote: with a mark before the text, in UTF-16, or not text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from namedmask.categories import load_category_set
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.evaluate.benchmarks import folder, voc2012
from namedmask.storage.files import read_json
from namedmask.storage.texts import text_of
from tests.trees import folder_tree, voc_tree

MARKED = ("utf-8", "utf-8-sig", "utf-16")


def run_file(path: Path) -> Callable[[], Any]:
    file = path / "run.toml"
    file.write_text('[run]\nout = "é"\n', encoding="utf-8")
    return lambda: str(Config.load(file).run.out)


def category_set(path: Path) -> Callable[[], Any]:
    file = path / "set.toml"
    file.write_text('names = ["café", "猫"]\n', encoding="utf-8")
    return lambda: load_category_set(file).names


def benchmark_file(path: Path) -> Callable[[], Any]:
    root = folder_tree(path)
    return lambda: folder(root, "test").names


def voc_list(path: Path) -> Callable[[], Any]:
    root = voc_tree(path)
    return lambda: [sample.name for sample in voc2012(root, "val").samples]


def record(path: Path) -> Callable[[], Any]:
    file = path / "a.json"
    file.write_text(json.dumps({"name": "é"}, ensure_ascii=False), encoding="utf-8")
    return lambda: read_json(file)


READERS = {
    "run.toml": run_file,
    "set.toml": category_set,
    "benchmark.toml": benchmark_file,
    "val.txt": voc_list,
    "a.json": record,
}


@pytest.mark.parametrize("encoding", [*MARKED, "utf-16-be"])
@pytest.mark.parametrize("name", READERS)
def test_text_with_a_mark_is_the_text(tmp_path: Path, name: str, encoding: str) -> None:
    read = READERS[name](tmp_path)
    expected = read()
    file = next(tmp_path.rglob(name))
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file.write_text(mark + file.read_text(encoding="utf-8"), encoding=encoding)
    assert read() == expected


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff", b"names = ['caf\xe9']", b"\xff\xfea", b"\0" * 9, b"\xef\xbb\xbf\xff",
     "names = ['é']".encode("utf-32"), b"[" * 100_000],
)  # fmt: skip
@pytest.mark.parametrize("name", READERS)
def test_file_that_is_no_text_is_one_line_with_its_name(
    tmp_path: Path, name: str, data: bytes
) -> None:
    read = READERS[name](tmp_path)
    file = next(tmp_path.rglob(name))
    file.write_bytes(data)
    if name == "val.txt":
        try:
            read()  # the bytes may be text, and then name no photo
        except InputError as error:
            assert name in str(error)
        return
    with pytest.raises(InputError, match=name.replace(".toml", "")) as caught:
        read()
    assert len(str(caught.value).splitlines()) == 1


def test_generated_bytes_are_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    texts = refused = 0
    for number in range(2000):
        text = "".join(map(chr, rng.integers(1, 0x2000, rng.integers(0, 20))))
        encoding = ("utf-8-sig", "utf-16", "utf-8")[number % 3]
        data = bytearray(text.encode(encoding))
        assert text_of(bytes(data)) == text.removeprefix("\ufeff")
        texts += 1
        for place in rng.integers(0, max(1, len(data)), 2):
            data[place : place + 1] = rng.bytes(1)
        try:
            assert isinstance(text_of(bytes(data)), str)
        except UnicodeDecodeError:
            refused += 1
    assert min(texts, refused) > 300
