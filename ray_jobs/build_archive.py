"""Fill each category's archive from the stored vectors: retrieve, check, mask.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.build_archive --config RUN.toml [--set section.key=value ...]

Needs: `embeddings` of ray_jobs.embed (or published vectors), the web, and the weights of the
embedder and of the face and saliency detectors.
Writes to `run.out`: `archive`, `images`, `offers` (candidate lists), `candidates.parquet`,
`funnels.json`, `labels.json`, and with published vectors `proof.json`.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("build"))
