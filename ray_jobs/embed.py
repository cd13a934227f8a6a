"""Read the metadata, fetch the images, and store one vector per image.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.embed --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, the web, and the weights of `embed.weights`.
Writes to `run.out`: `embeddings` and `funnels.json`.
A killed job resumes when it is submitted again. `--retry transient` also retries the rows that
ended with a transient failure.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("embed"))
