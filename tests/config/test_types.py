"""Paths in run files: expanded by one reader, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from namedmask.cli.options import path_of
from namedmask.config import Config
from namedmask.config.sections import Sections
from namedmask.config.types import expanded
from namedmask.errors import ConfigError, InputError

PATHS = {
    "categories.set", "embed.weights", "evaluate.export", "evaluate.root", "faces.weights",
    "fetch.file_root", "metadata.source", "retrieve.index", "retrieve.safety_head",
    "retrieve.violence_prompts", "run.out", "saliency.weights", "segmenter.backbone_weights",
    "train.start", "vectors.source", "baselines.weights", "baselines.encoder_weights",
    "baselines.context",
}  # fmt: skip
"""All keys that hold paths."""


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOPE", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~", "/home/me"), ("~/x", "/home/me/x"), ("~root/x", os.path.expanduser("~root/x")),
        ("$DATA/x", "/data/x"), ("${DATA}/x", "/data/x"), ("a/$DATA", "a//data"),
        ("x${DATA}y", "x/datay"), ("a~b", "a~b"), ("a/~", "a/~"), ("x.parquet~", "x.parquet~"),
        ("price$5.csv", "price$5.csv"), ("a$", "a$"), ("$", "$"), ("$$", "$$"), ("${", "${"),
        ("s3://bucket/~/$NOPE", "s3://bucket/~/$NOPE"), (".", "."), ("..", ".."),
        ("a/../b", "a/../b"), ("", ""),
        ("https://x.org/a?$NOPE=~", "https://x.org/a?$NOPE=~"), ("a b", "a b"), ("./~", "./~"),
    ],
)  # fmt: skip
def test_path_is_expanded_as_by_a_shell_and_a_url_is_not(text: str, expected: str) -> None:
    assert expanded(text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [("$NOPE", "'NOPE' is not set"), ("a/${NOPE}/b", "'NOPE' is not set"), ("${}", "'' is not set"),
     ("~nobody-here/x", "'~nobody-here' is not known"), ("a\0b", "NUL")],
)  # fmt: skip
def test_path_that_cannot_be_expanded_is_refused_for_every_key(text: str, word: str) -> None:
    for key in PATHS:
        section, _, name = key.partition(".")
        value: Any = [text] if key == "metadata.source" else text
        tree = {"run": {"out": "x"}}
        tree.setdefault(section, {})[name] = value
        with pytest.raises(ConfigError, match=word) as caught:
            Config.of(tree)
        assert key in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=word):
        path_of(text)


@pytest.mark.parametrize("key", sorted(PATHS))
def test_every_path_of_a_run_file_is_expanded(key: str) -> None:
    section, _, name = key.partition(".")
    value: Any = ["~/$DATA"] if key == "metadata.source" else "~/$DATA"
    tree: dict[str, Any] = {"run": {"out": "x"}}
    tree.setdefault(section, {})[name] = value
    found = Config.of(tree).tree()[section][name]
    assert str(found[0] if key == "metadata.source" else found) in (
        "/home/me//data",
        "/home/me/data",
    )


def test_examples_of_a_category_are_expanded() -> None:
    tree = {"run": {"out": "x"}, "categories": {"each": {"cat": {"examples": ["~/cat.jpg"]}}}}
    assert Config.of(tree).categories.each["cat"].examples == ("/home/me/cat.jpg",)


def test_keys_whose_description_speaks_of_files_are_paths() -> None:
    words = ("file", "folder", "path of a TOML", "Checkpoint")
    plain = {"path `pkg.mod:name`", "FAISS"}
    for section, field in Sections.model_fields.items():
        for key, value in field.annotation.model_fields.items():  # type: ignore[union-attr]
            text = value.description or ""
            is_text = value.annotation is str or str in get_args(value.annotation)
            is_path = is_text and any(word in text for word in words)
            if is_path and not any(word in text for word in plain):
                assert f"{section}.{key}" in PATHS, text


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_empty_run_folder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.out.*'\.' is this folder"):
        Config.of({"run": {"out": text}})
    with pytest.raises(InputError, match="is empty"):
        path_of(text)


def test_override_of_an_unset_variable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[run]\nout = "runs/x"\n')
    with pytest.raises(ConfigError, match=r"run\.out"):
        Config.load(path, ["run.out="])
    assert Config.load(path, ["run.out=$DATA/x"]).run.out == Path("/data/x")


@pytest.mark.parametrize("out", ["~/x", "./~", "./~/x", ".", "a b", "$DATA/x"])
def test_saved_config_of_expanded_paths_is_read_as_the_same(out: str) -> None:
    config = Config.of({"run": {"out": out}, "fetch": {"file_root": "$DATA"}})
    assert Config.of(config.tree()) == config


def test_generated_paths_are_expanded_or_refused_in_one_line() -> None:
    rng = np.random.default_rng(0)
    parts = ("~", "$", "{", "}", "/", "DATA", "NOPE", "EMPTY", "HOME", "a", " ", ".", "..", "\0",
             "s3://", "é", "\n", "root", "${DATA}", "$DATA", "~/")  # fmt: skip
    done = refused = 0
    for _ in range(3000):
        text = "".join(parts[n] for n in rng.integers(0, len(parts), rng.integers(0, 6)))
        try:
            out = Config.of({"run": {"out": text}}).run.out
        except ConfigError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, text
            continue
        done += 1
        assert "\0" not in str(out) and text.strip()
        assert not str(out).startswith("~") or text.startswith("."), text
    assert min(done, refused) > 300
