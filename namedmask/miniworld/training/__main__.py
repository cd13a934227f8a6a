"""Train all tiny models, each after the models that it depends on.

Usage: `python -m namedmask.miniworld.training FOLDER`
"""

from __future__ import annotations

import subprocess
import sys

STEPS = ("collect", "clip", "faces", "saliency", "backbone")


def main() -> None:
    """Run each step in a process of its own, with the same folder."""
    for step in STEPS:
        module = f"namedmask.miniworld.training.{step}"
        subprocess.run([sys.executable, "-m", module, *sys.argv[1:2]], check=True)


if __name__ == "__main__":
    main()
