"""Train one expert per category or per cluster, and redraw the archives' masks with the experts.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.refine --config RUN.toml [--set section.key=value ...]

Needs: `archive` of ray_jobs.build_archive, on storage that all machines can access.
Writes to `run.out`: `refined` and `experts`, and with `experts.clusters` `clusters.json`.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("refine"))
