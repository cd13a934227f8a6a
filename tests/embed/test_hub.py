"""A hub that cannot be reached: told in one line within seconds, and the cache is used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from namedmask.embed import hub as hub_module
from namedmask.embed.hub import hub, why_unreachable
from namedmask.errors import CheckpointError

ROOT = Path(__file__).parents[2]
RUN = """
[run]
out = "{out}"
[categories]
names = ["red"]
[metadata]
source = ["{folder}"]
[embed]
model = "open_clip:RN50"
weights = "openai"
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "closed", "no such host"])
def test_hub_that_does_not_answer_is_told_in_one_line_within_seconds(
    silent: str, tmp_path: Path, kind: str
) -> None:
    endpoint = {"silent": silent, "closed": closed()}.get(kind, "http://hub.invalid")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    (tmp_path / "run.toml").write_text(RUN.format(out=tmp_path / "run", folder=folder))
    done = subprocess.run(
        [sys.executable, "-m", "namedmask", "embed", str(tmp_path / "run.toml"), "--local"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,  # the hub's own client takes as long
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"),
                          "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: embed.weights 'openai' of RN50: not in the cache"), done.stderr
    assert f"{endpoint} does not answer" in error and "Traceback" not in done.stderr


def test_hub_is_offline_only_inside_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    monkeypatch.setattr(hub_module, "why_unreachable", lambda: "no network")
    with hub("the weights"):
        assert constants.HF_HUB_OFFLINE is True
    message = r"the weights: not in the cache.*no network"
    with pytest.raises(CheckpointError, match=message), hub("the weights"):
        raise OSError("not found")
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("kind", "reason"), [("closed", "refused"), ("silent", "")])
def test_hub_reason_comes_within_its_time(
    silent: str, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", {"closed": closed(), "silent": silent}[kind])
    monkeypatch.setattr(hub_module, "ANSWER_S", 1.0)
    began = time.monotonic()
    told = why_unreachable()
    assert told and reason in told
    assert time.monotonic() - began < 5
