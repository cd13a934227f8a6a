"""Reads the metadata, fetches the images, and stores one vector for each.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.embed --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, the web, the weights of `embed.weights`.
Leaves in `run.out`: `embeddings` and `funnels.json`.
Killed and submitted again, it goes on where it was. `--retry transient` tries rows again that
failed so.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("embed"))
