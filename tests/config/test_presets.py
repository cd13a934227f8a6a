"""Presets: whose value holds, that a run is complete without them, and our departures from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from namedmask.config.presets import PRESETS, departures, preset_values
from namedmask.config.run_file import SPEED_ONLY, Config, to_toml
from namedmask.errors import ConfigError
from namedmask.verbs.plan import plan_of

RECIPE = (
    "categories", "metadata", "fetch", "embed", "retrieve", "faces", "saliency", "bilateral",
    "augment", "segmenter", "experts", "train", "evaluate",
)  # fmt: skip
"""Sections whose every key a recipe gives, but for those below."""

NOT_A_RECIPES = {
    "categories": {"set", "names", "each"},  # what is asked for
    "metadata": {"source", "max_rows"},
    "fetch": {  # how bytes come, and what is refused for safety
        "timeout_s", "max_bytes", "max_pixels", "max_redirects", "retries", "max_pause_s",
        "user_agent", "allow_loopback", "file_root", "proxy", "opt_out_tags",
    },
    "embed": {"batch_size"},  # results do not vary with it
    "retrieve": {"overfetch", "index", "nprobe"},  # how many at once; of another backend
    "saliency": {"batch_size"},
    "experts": {"clusters"},  # 0: the method's
    "evaluate": {"benchmark", "root", "split", "export"},
}  # fmt: skip

DEPARTURES = {
    "embed.precision": ("auto", "float32"),
    "fetch.honor_opt_out": (True, False),
    "retrieve.near_duplicates": ("greedy", "components"),
    "retrieve.replenish_faces": (True, False),
    "retrieve.top_up_rounds": (2, 100),
    "faces.scales": ([1.0, 0.5], [1.0]),
    "saliency.min_share": (0.005, 0.0),
    "saliency.max_share": (0.98, 1.0),
    "experts.keep_unseen": (True, False),
}
"""Our default, and the paper's value. Whoever adds one says so in docs/fidelity.md too."""

FILES = {
    "embed.model", "embed.weights", "retrieve.violence_prompts", "retrieve.safety_head",
    "faces.detector", "faces.weights", "saliency.detector", "saliency.weights",
    "segmenter.backbone_weights",
}  # fmt: skip
"""Networks that are not shipped: ours are those of the mini world, or none."""


def of_preset(name: str, tree: dict[str, Any] | None = None, *overrides: str) -> Config:
    tree = {"run": {"out": "x", "preset": name}} | (tree or {})
    return Config.of(tree, overrides)


def flat(tree: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{section}.{key}": one for section, keys in tree.items() for key, one in keys.items()}


def defaults() -> dict[str, dict[str, Any]]:
    return Config.of({"run": {"out": "."}}).tree()


def test_preset_paper_gives_every_key_that_shapes_a_result() -> None:
    values, ours = preset_values("paper"), defaults()
    for section in RECIPE:
        left_out = {*SPEED_ONLY, *NOT_A_RECIPES.get(section, ())}
        assert set(values[section]) == set(ours[section]) - left_out, section
    others = set(ours) - set(RECIPE)
    assert others <= {"run", "ray", "search", "vectors", "baselines"}, "is it part of a recipe?"


def test_preset_paper_departs_from_our_defaults_in_these_keys_and_no_other() -> None:
    ours, paper = flat(defaults()), flat(preset_values("paper"))
    differ = {key: (ours[key], paper[key]) for key in paper if ours[key] != paper[key]}
    assert {key: two for key, two in differ.items() if key not in FILES} == DEPARTURES
    page = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text(encoding="utf-8")
    assert not [key for key in DEPARTURES if f"`{key}`" not in page]


def test_preset_paper_holds_the_numbers_of_the_method() -> None:
    config = of_preset("paper")
    assert (config.retrieve.archive_size, config.retrieve.near_duplicate_cosine) == (500, 0.94)
    assert (config.experts.iterations, config.experts.batch_size) == (5000, 8)
    assert (config.train.iterations, config.train.batch_size) == (20_000, 16)
    assert (config.augment.n_max, config.augment.crop, config.augment.scale) == (2, 384, (0.1, 1))
    assert (config.train.lr_head, config.train.lr_backbone) == (5e-4, 5e-5)
    assert config.faces.enabled and not config.retrieve.replenish_faces


def test_preset_voc_released_is_the_paper_without_faces_and_the_pages_filters() -> None:
    paper, released = flat(preset_values("paper")), flat(preset_values("voc_released"))
    assert {key: released[key] for key in paper if released[key] != paper[key]} == {
        "metadata.max_punsafe": 1.0,
        "embed.model": "open_clip:ViT-L-14-336",
        "retrieve.near_duplicates": "greedy",
        "retrieve.near_duplicate_cosine": 1.0,
        "retrieve.violence_prompts": "",
        "retrieve.safety_head": "",
        "faces.enabled": False,
    }


def test_preset_is_beaten_by_the_run_file_and_that_by_an_override() -> None:
    tree = {"retrieve": {"archive_size": 40, "candidates": 99}}
    config = of_preset("paper", tree, "retrieve.candidates=77", "train.iterations=5")
    assert (config.retrieve.archive_size, config.retrieve.candidates) == (40, 77)
    assert (config.train.iterations, config.retrieve.near_duplicates) == (5, "components")
    assert departures(config.tree()) == [
        "retrieve.archive_size: 500, here 40",
        "retrieve.candidates: 3000, here 77",
        "train.iterations: 20000, here 5",
    ]
    assert departures(Config.of({"run": {"out": "x"}}).tree()) == []


def test_preset_as_an_override_alone_is_enough() -> None:
    config = Config.of({"run": {"out": "x"}}, ["run.preset=voc_released"])
    assert not config.faces.enabled
    assert config.retrieve.candidates == 3000


@pytest.mark.parametrize("name", PRESETS)
def test_preset_saved_with_a_run_is_complete(name: str, tmp_path: Path) -> None:
    config = of_preset(name, None, "faces.scales=[0.25]", "retrieve.hash_distance=6")
    saved = tmp_path / "run.toml"
    saved.write_text(to_toml(config), encoding="utf-8")
    assert Config.load(saved) == config
    saved.write_text(to_toml(config).replace(f'preset = "{name}"', 'preset = ""'), encoding="utf-8")
    without = Config.load(saved)
    assert without.tree() | {"run": None} == config.tree() | {"run": None}


def test_preset_unknown_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"run\.preset 'papr' is unknown.*Did you mean 'paper'"):
        of_preset("papr")
    with pytest.raises(ConfigError, match=r"run\.preset"):
        Config.of({"run": {"out": "x", "preset": 3}})


def test_plan_shows_the_preset_and_what_beats_it() -> None:
    tree = {"categories": {"names": ["a kite"]}, "retrieve": {"archive_size": 40}}
    planned = plan_of(of_preset("paper", tree))
    assert planned["preset"] == {
        "name": "paper",
        "departures": ["retrieve.archive_size: 500, here 40"],
    }


@pytest.mark.parametrize("name", ["voc2012", "coco2017", "cityscapes_object"])
def test_plan_of_people_with_the_face_filter_warns(name: str) -> None:
    tree = {"categories": {"set": name}}
    notes = " ".join(plan_of(of_preset("paper", tree))["notes"])
    assert "faces.enabled drops every image with a face" in notes
    assert "person" in notes
    assert "faces.enabled" not in " ".join(plan_of(of_preset("voc_released", tree))["notes"])


def test_plan_without_the_face_filter_asks_for_no_weights_of_it() -> None:
    tree = {"categories": {"set": "voc2012"}}
    assert "faces.weights" in " ".join(plan_of(of_preset("paper", tree))["notes"])
    planned = plan_of(of_preset("voc_released", tree))
    assert "faces.weights" not in " ".join(planned["notes"])
    assert "duplicates kept" in " ".join(stage["choice"] for stage in planned["stages"])


def test_plan_of_no_people_does_not_warn() -> None:
    tree = {"categories": {"set": "coca"}}
    assert "faces.enabled" not in " ".join(plan_of(of_preset("paper", tree))["notes"])
