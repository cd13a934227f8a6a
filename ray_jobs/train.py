"""Train the segmenter on all archives.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.train --config RUN.toml [--set section.key=value ...]

Needs: `archive`, and `refined` unless experts.enabled is false, on storage that all machines can
access.
Writes to `run.out`: `segmenter/checkpoint.pt`.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("train"))
