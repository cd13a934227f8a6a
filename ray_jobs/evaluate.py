"""Score the segmenter of a run on the benchmark `evaluate.benchmark`.

    ray job submit --address http://head:8265 --working-dir . -- \
        python -m ray_jobs.evaluate --config RUN.toml [--set section.key=value ...]

Needs: `segmenter/checkpoint.pt` of ray_jobs.train, and the benchmark's files at `evaluate.root`.
Writes to `run.out`: `evaluation.json`, and label maps of the best and worst scenes in `evaluation`.
A killed job resumes when it is submitted again.
"""

import sys

from ray_jobs import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
