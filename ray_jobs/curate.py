"""Makes the archives from metadata: ray_jobs.embed, then ray_jobs.build_archive.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.curate --config RUN.toml [--set section.key=value ...]

Needs: the metadata of `metadata.source`, the web, the weights that the run file names.
Leaves in `run.out`: all that those two leave.
Killed and submitted again, it goes on where it was.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("curate"))
