"""Trains the segmenter on all archives.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.train --config RUN.toml [--set section.key=value ...]

Needs: `archive`, and `refined` unless experts.enabled is false, in storage that all machines see.
Leaves in `run.out`: `segmenter/checkpoint.pt`.
Killed and submitted again, it goes on where it was.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("train"))
