"""Make the archives from metadata: run ray_jobs.embed, then ray_jobs.build_archive.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.curate --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, the web, the weights that the run file names.
Writes to `run.out`: all files of these two.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("curate"))
