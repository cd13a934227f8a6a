"""Weights by name: a real server, broken downloads, wrong hashes, licenses, a folder offline."""

from __future__ import annotations

import hashlib
import json
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from namedmask.cli.app import main
from namedmask.config import (
    Config,
    EmbedConfig,
    FacesConfig,
    SaliencyConfig,
    SegmenterConfig,
)
from namedmask.embed.clip_weights import create_open_clip
from namedmask.embed.stage import Embed
from namedmask.errors import CheckpointError, ConfigError, InputError, NamedMaskError
from namedmask.faces.stage import Faces
from namedmask.images.codec import encode_png
from namedmask.retrieve.safety import load_safety_head
from namedmask.saliency.detectors import DETECTORS
from namedmask.segmenter.checkpoint import build_segmenter
from namedmask.verbs.plan import plan_of
from namedmask.weights import catalog, download
from namedmask.weights.catalog import Weights, cache_folder, known_weights, listed, path_of
from namedmask.weights.download import fetch_weights, verify_weights

CONTENT = b"weights of some network " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `files` by name; `short` bytes are held back of each."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.short = 0
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                outer.asked.append(name)
                body = outer.files.get(name)
                self.send_response(200 if body is not None else 404)
                body = body or b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - outer.short])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/files"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NAMEDMASK_CACHE", str(folder))
    return folder


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put other values into an entry of the list."""
    known = dict(known_weights())

    def change(name: str, **values: object) -> None:
        known[name] = replace(known[name], **values)
        for module in (catalog, download):
            monkeypatch.setattr(module, "known_weights", lambda: known)

    return change


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_list_entries_are_whole_and_their_settings_exist() -> None:
    tree = Config.of({"run": {"out": "."}}).tree()
    entries = list(known_weights().values())
    assert {
        "clip-vit-l-14",
        "retinaface-r50",
        "selfmask",
        "dino-resnet50",
        "namedmask-voc2012",
    } <= {entry.name for entry in entries}
    assert len({entry.file for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.url.startswith("https://") and entry.license and entry.note, entry.name
        assert len(entry.sha256) in (0, 64) and set(entry.sha256) <= set("0123456789abcdef")
        assert entry.member or entry.name.startswith("clip-") or entry.url.endswith(entry.file)
        for key in ([entry.key] if entry.when else []) + list(entry.when):
            section, name = key.split(".")
            assert name in tree[section], key
        for key, models in entry.when.items():
            if key.endswith(".model"):
                assert {model.partition(":")[2] for model in models} <= set(open_clip.list_models())
    assert not known_weights()["scrfd-10g"].free


def test_fetch_published_hash_is_compared_and_the_file_kept(
    server: Server, cache: Path, published: Callable[..., None]
) -> None:
    published("selfmask", sha256=SHA256)
    server.files["selfmask_nq20.pt"] = CONTENT
    said: list[str] = []
    (row,) = fetch_weights(["selfmask"], mirror=server.url, say=said.append)
    assert row["checked"] == "the published hash" and row["bytes"] == len(CONTENT)
    assert Path(row["path"]).read_bytes() == CONTENT
    assert files_of(cache) == ["selfmask_nq20.pt", "weights.lock.json"]
    assert said == [f"fetching selfmask from {server.url}/selfmask_nq20.pt"]
    assert path_of("selfmask") == cache / "selfmask_nq20.pt"
    (again,) = fetch_weights(["selfmask"], mirror=server.url)
    assert again["checked"] == "already there" and len(server.asked) == 1


def test_fetch_wrong_hash_keeps_nothing(server: Server, cache: Path) -> None:
    server.files["detection_Resnet50_Final.pth"] = CONTENT
    with pytest.raises(CheckpointError, match=rf"sha256 {SHA256}, expected 6d1de9c2.*published"):
        fetch_weights(["retinaface-r50"], mirror=server.url)
    assert files_of(cache) == []


def test_fetch_unpublished_hash_is_trusted_once_and_compared_ever_after(
    server: Server, cache: Path
) -> None:
    server.files["selfmask_nq20.pt"] = CONTENT
    (row,) = fetch_weights(["selfmask"], mirror=server.url)
    assert row["checked"] == "trusted: no hash is published"
    assert json.loads((cache / "weights.lock.json").read_text())["selfmask"]["sha256"] == SHA256
    (cache / "selfmask_nq20.pt").unlink()
    server.files["selfmask_nq20.pt"] = CONTENT[:-1] + b"!"
    with pytest.raises(CheckpointError, match=rf"expected {SHA256}.*remove its entry"):
        fetch_weights(["selfmask"], mirror=server.url)
    assert files_of(cache) == ["weights.lock.json"]
    server.files["selfmask_nq20.pt"] = CONTENT
    (row,) = fetch_weights(["selfmask"], mirror=server.url)
    assert row["checked"] == "the hash of the first fetch"


@pytest.mark.parametrize("short", [1, len(CONTENT) // 2, len(CONTENT)])
def test_fetch_that_breaks_off_keeps_nothing(server: Server, cache: Path, short: int) -> None:
    server.files["selfmask_nq20.pt"], server.short = CONTENT, short
    with pytest.raises(
        NamedMaskError, match=r"selfmask_nq20\.pt(: the .* broke off| cannot be fetched)"
    ):
        fetch_weights(["selfmask"], mirror=server.url)
    assert files_of(cache) == []


@pytest.mark.parametrize("body", [b"  <!DOCTYPE html><p>please log in", b""])
def test_fetch_page_in_place_of_the_file_is_refused(
    server: Server, cache: Path, body: bytes
) -> None:
    server.files["selfmask_nq20.pt"] = body
    with pytest.raises(CheckpointError, match=r"a web page|an empty file"):
        fetch_weights(["selfmask"], mirror=server.url)
    assert files_of(cache) == []


def test_fetch_without_an_answer_says_how_to_do_without_a_network(server: Server) -> None:
    with pytest.raises(NamedMaskError, match=r"cannot be fetched: HTTP Error 404.*--from"):
        fetch_weights(["selfmask"], mirror=server.url)
    server.close()
    with pytest.raises(NamedMaskError, match=r"cannot be fetched.*--from"):
        fetch_weights(["selfmask"], mirror=server.url)
    for nonsense in ("mirror.example", "http://[::1"):
        with pytest.raises(NamedMaskError, match=r"cannot be fetched.*--from"):
            fetch_weights(["selfmask"], mirror=nonsense)


def test_fetch_unfree_license_is_asked_for_before_any_request(server: Server) -> None:
    server.files["namedmask_voc2012.pt"] = server.files["selfmask_nq20.pt"] = CONTENT
    for accepted in ((), ("MIT",)):
        with pytest.raises(InputError, match=r"'not-stated'.*--accept-license not-stated"):
            fetch_weights(["selfmask", "namedmask-voc2012"], accepted=accepted, mirror=server.url)
    assert server.asked == []
    assert fetch_weights(["namedmask-voc2012"], accepted=["not-stated"], mirror=server.url)


def test_fetch_member_of_an_archive_is_taken_out_of_it(
    server: Server, cache: Path, tmp_path: Path, published: Callable[..., None]
) -> None:
    published("scrfd-10g", sha256=SHA256, bytes=len(CONTENT))
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("buffalo_l/other.onnx", b"other")
        file.writestr("buffalo_l/det_10g.onnx", CONTENT)
    server.files["buffalo_l.zip"] = archive.getvalue()
    agreed = {"accepted": ["insightface-research"]}
    fetch_weights(["scrfd-10g"], mirror=server.url, **agreed)
    assert (cache / "det_10g.onnx").read_bytes() == CONTENT
    (cache / "det_10g.onnx").unlink()
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "buffalo_l.zip").write_bytes(archive.getvalue())
    fetch_weights(["scrfd-10g"], folder=tmp_path / "usb", **agreed)
    assert path_of("scrfd-10g").read_bytes() == CONTENT
    (cache / "det_10g.onnx").unlink()
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("det_10g.onnx", CONTENT)
    start = len("det_10g.onnx") + 30  # of what is packed, behind its header
    damaged = packed.getvalue()[:start] + b"\xff" * 30 + packed.getvalue()[start + 30 :]
    for broken in (b"no zip at all", archive.getvalue()[:-30], damaged):
        server.files["buffalo_l.zip"] = broken
        with pytest.raises(CheckpointError, match=r"archive of weights 'scrfd-10g'"):
            fetch_weights(["scrfd-10g"], mirror=server.url, **agreed)


def test_fetch_from_a_folder_needs_no_network(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    folder.mkdir()
    with pytest.raises(InputError, match=r"no selfmask_nq20\.pt, which weights 'selfmask'.*https:"):
        fetch_weights(["selfmask"], folder=folder)
    (folder / "selfmask_nq20.pt").write_bytes(CONTENT)
    (row,) = fetch_weights(["selfmask"], folder=folder)
    assert row["sha256"] == SHA256 and path_of("selfmask").read_bytes() == CONTENT


def test_verify_tells_what_changed_and_what_is_gone(server: Server, cache: Path) -> None:
    names = ["selfmask", "dino-vits16", "dino-vits8"]
    for name in names:
        server.files[known_weights()[name].file] = CONTENT
    fetch_weights(names, mirror=server.url)
    assert {row["state"] for row in verify_weights()} == {"ok"}
    path_of("dino-vits8").unlink()
    path_of("dino-vits16").write_bytes(CONTENT[:-1] + b"!")
    states = {row["name"]: row["state"] for row in verify_weights()}
    assert states == {"selfmask": "ok", "dino-vits16": "changed", "dino-vits8": "missing"}


def test_path_of_a_name_is_its_file_and_of_else_a_path(cache: Path) -> None:
    assert path_of("some/file.pt") == Path("some/file.pt")
    with pytest.raises(CheckpointError, match="Run: namedmask weights fetch selfmask; on a clus"):
        path_of("selfmask")
    with pytest.raises(CheckpointError, match="fetch scrfd-10g --accept-license insightface-res"):
        path_of("scrfd-10g")
    cache.mkdir()
    (cache / "detection_Resnet50_Final.pth").write_bytes(CONTENT)
    with pytest.raises(CheckpointError, match=r"24,000 bytes, expected 109,497,761\. Remove"):
        path_of("retinaface-r50")
    (cache / "weights.lock.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"weights\.lock\.json cannot be read as JSON"):
        path_of("retinaface-r50")


def test_every_setting_of_weights_takes_a_name(tmp_path: Path) -> None:
    message = "Run: namedmask weights fetch"
    with pytest.raises(CheckpointError, match=f"{message} selfmask"):
        DETECTORS["selfmask"](SaliencyConfig(detector="selfmask", weights="selfmask"))
    with pytest.raises(CheckpointError, match=f"{message} scrfd-10g"):
        Faces(FacesConfig(detector="scrfd", weights="scrfd-10g"))
    with pytest.raises(CheckpointError, match=f"{message} safety-h-14"):
        load_safety_head("safety-h-14")
    config = SegmenterConfig(name="deeplabv3plus_tiny", backbone_weights="dino-resnet50")
    with pytest.raises(CheckpointError, match=f"{message} dino-resnet50"):
        build_segmenter(config, 2)
    state = build_segmenter(SegmenterConfig(name="deeplabv3plus_tiny"), 2).backbone.state_dict()
    torch.save(state, tmp_path / "dino_resnet50_pretrain.pth")
    fetch_weights(["dino-resnet50"], folder=tmp_path)
    filled = build_segmenter(config, 2, seed=9).backbone.state_dict()
    assert all(torch.equal(filled[key], state[key]) for key in state)


def test_named_clip_weights_bring_their_activation_and_refuse_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EmbedConfig(model="open_clip:ViT-B-32", weights="clip-vit-l-14")
    with pytest.raises(ConfigError, match=r"'clip-vit-l-14' are not those of .*ViT-B-32'"):
        Embed(config)
    with pytest.raises(ConfigError, match="'selfmask' are not those of"):
        Embed(config.model_copy(update={"weights": "selfmask"}))
    config = EmbedConfig(model="open_clip:ViT-S-32-alt", weights="clip-vit-b-32")
    models = ["open_clip:ViT-S-32-alt", "open_clip:ViT-S-32-alt-quickgelu"]
    monkeypatch.setitem(known_weights()["clip-vit-b-32"].when, "embed.model", models)
    with pytest.raises(CheckpointError, match="namedmask weights fetch clip-vit-b-32"):
        Embed(config)
    model = open_clip.create_model("ViT-S-32-alt")
    (tmp_path / "usb").mkdir()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "usb" / "clip_vit_b_32.safetensors")
    fetch_weights(["clip-vit-b-32"], folder=tmp_path / "usb")
    block = create_open_clip(config).visual.transformer.resblocks[0]
    assert type(block.mlp.gelu).__name__ == "QuickGELU"


def test_listed_of_a_run_are_what_its_settings_need(tmp_path: Path) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(b"x")
    tree = {
        "run": {"out": "."},
        "embed": {"model": "open_clip:ViT-L-14", "weights": "openai"},
        "faces": {"detector": "scrfd", "weights": str(own)},
        "saliency": {"detector": "selfmask", "weights": "selfmask"},
    }
    rows = {row["setting"]: (row["name"], row["state"]) for row in listed(Config.of(tree))}
    assert rows == {
        "embed.weights = openai": ("", "a tag of open_clip"),
        f"faces.weights = {own}": ("", "file"),
        "saliency.weights = selfmask": ("selfmask", "not fetched"),
        "segmenter.backbone_weights is empty": ("dino-resnet50", "not fetched"),
    }
    own.unlink()
    states = {row["file"]: row["state"] for row in listed(Config.of(tree))}
    assert states[str(own)] == "missing"
    tree["saliency"] = {"detector": "tokencut"}
    tree["faces"] = {"detector": "scrfd", "enabled": False}
    names = [row["name"] for row in listed(Config.of(tree))]
    assert names == ["", "dino-vits16", "dino-vits8", "dino-resnet50"]


def test_plan_tells_which_weights_are_not_here(tmp_path: Path) -> None:
    tree = {
        "run": {"out": str(tmp_path / "out")},
        "categories": {"names": ["gull"]},
        "saliency": {"detector": "selfmask", "weights": "selfmask"},
        "segmenter": {"backbone_weights": str(tmp_path / "none.pth")},
    }
    notes = plan_of(Config.of(tree))["notes"]
    assert "saliency.weights = selfmask: run 'namedmask weights fetch selfmask' first." in notes
    backbone = f"segmenter.backbone_weights = {tmp_path / 'none.pth'}: there is no such file"
    assert any(note.startswith(backbone) for note in notes)
    (tmp_path / "selfmask_nq20.pt").write_bytes(CONTENT)
    fetch_weights(["selfmask"], folder=tmp_path)
    assert not any("saliency" in note for note in plan_of(Config.of(tree))["notes"])


def test_commands_take_a_name_in_place_of_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["evaluate", "namedmask-voc2012"], ["predict", "namedmask-voc2012", "x.jpg"],
        ["export-faces", "retinaface-r50", "x.onnx"],
    ):  # fmt: skip
        assert main(command) == 2
        assert f"namedmask weights fetch {command[1]}" in capsys.readouterr().err
    (tmp_path / "namedmask_voc2012.pt").write_bytes(CONTENT)
    fetch_weights(["namedmask-voc2012"], folder=tmp_path, accepted=["not-stated"])
    picture = tmp_path / "x.png"
    picture.write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    asked = ["predict", "namedmask-voc2012", str(picture), "--out", str(tmp_path / "out")]
    assert main(asked) == 2
    assert "namedmask_voc2012.pt: expected tensors and plain values" in capsys.readouterr().err


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'selfmask'"):
        fetch_weights(["selfmsk"])


def test_cache_folder_is_below_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAMEDMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert cache_folder() == Path("/some/where/namedmask")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "namedmask"


def test_command_lists_fetches_and_verifies(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["weights", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    server.files["selfmask_nq20.pt"] = CONTENT
    code, out, _ = run("--json")
    assert code == 0 and {row["name"] for row in json.loads(out)} == set(known_weights())
    code, out, _ = run()
    assert "insightface-research" in out and "no published hash" in out
    code, out, err = run("fetch", "selfmask", "--mirror", server.url)
    assert code == 0 and "trusted: no hash is published" in out and "fetching selfmask" in err
    run_file = tmp_path / "run.toml"
    run_file.write_text(
        '[run]\nout = "."\n[saliency]\ndetector = "selfmask"\nweights = "selfmask"\n'
    )
    code, out, _ = run(str(run_file))
    assert "saliency.weights = selfmask  selfmask  cached" in out
    assert run("verify")[0] == 0
    path_of("selfmask").write_bytes(CONTENT[:-1] + b"!")
    code, out, _ = run("verify", "--json")
    assert code == 1 and json.loads(out)[0]["state"] == "changed"
    assert run("fetch")[0] == 2
    assert run("verify", "selfmask")[0] == 2
    assert run("fetch", "scrfd-10g", "--mirror", server.url)[0] == 2
    assert run("nowhere.toml")[0] == 2


def test_list_file_holds_nothing_that_the_class_does_not_know() -> None:
    path = Path(str(resources.files("namedmask") / "data" / "weights.toml"))
    tree = tomllib.loads(path.read_text())
    assert [Weights(name, **entry) for name, entry in tree.items()] == list(
        known_weights().values()
    )
    for entry in known_weights().values():
        assert bool(entry.member) == urlsplit(entry.url).path.endswith(".zip")
