"""Reads the metadata, fetches the images, and stores them.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.fetch --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, the web.
Leaves in `run.out`: `fetched`.
Killed and submitted again, it goes on where it was. `--retry transient` tries rows again that
failed so.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("fetch"))
