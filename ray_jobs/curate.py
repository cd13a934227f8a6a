"""Make the archives from metadata: run ray_jobs.embed, then ray_jobs.build_archive.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.curate --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, the web, and the weights of all models before training.
Writes to `run.out`: all files of ray_jobs.embed and ray_jobs.build_archive.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("curate"))
