"""Fill each category's archive from the stored vectors: retrieve, check, mask.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.build_archive --config RUN.toml [--set section.key=value ...]

Needs: `embeddings` of ray_jobs.embed, the web, the weights of the face and saliency detectors.
Writes to `run.out`: `archive`, `images`, `candidates.parquet` and `funnels.json`.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("build"))
