"""Measures the segmenter on the run's benchmark.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.evaluate --config RUN.toml [--set section.key=value ...]

Needs: `segmenter/checkpoint.pt` of ray_jobs.train, and the benchmark's files at `evaluate.root`.
Leaves in `run.out`: `evaluation.json`, and label maps in `evaluation`.
Killed and submitted again, it goes on where it was.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
