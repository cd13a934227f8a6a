"""How long the way is from the command to the arithmetic: counted in a traceback."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

import namedmask
from namedmask.cli import main
from namedmask.config.run_file import to_toml
from namedmask.run.layout import error_log
from tests import toys
from tests.road import config_of

MOST_FRAMES = 9


class RaisingEmbedder(toys.ThumbnailEmbedder):
    """Raises inside the forward."""

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        raise FloatingPointError


def raising(config: Any) -> RaisingEmbedder:
    return RaisingEmbedder()


def test_command_is_few_frames_from_the_forward(source: str, tmp_path: Path) -> None:
    config = config_of(source, tmp_path / "run", 'embed.model="tests.engine.test_trips:raising"')
    run_file = tmp_path / "run.toml"
    run_file.write_text(to_toml(config))
    assert main(["embed", str(run_file), "--local", "--json"]) == 1
    package = Path(namedmask.__file__).parent
    text = (tmp_path / "run" / error_log(1)).read_text()
    assert "FloatingPointError" in text
    own = re.findall(rf'File "{package}/(.*)", line \d+, in (.*)', text)
    assert own[0] == ("cli/guard.py", "guarded")
    assert len(own) <= MOST_FRAMES, own
