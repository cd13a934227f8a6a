"""Read the metadata, fetch the images, and store them.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.fetch --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, and the web.
Writes to `run.out`: `fetched`.
A killed job resumes when it is submitted again. `--retry transient` also retries the rows that
ended with a transient failure.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("fetch"))
