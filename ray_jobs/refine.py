"""Trains one expert a category and lets it redraw the masks of its archive.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.refine --config RUN.toml [--set section.key=value ...]

Needs: `archive` of ray_jobs.build_archive, in storage that all machines see.
Leaves in `run.out`: `refined` and `experts`.
Killed and submitted again, it goes on where it was.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("refine"))
