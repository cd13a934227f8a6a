"""The mini world: a small drawn web whose ground truth is known, and tiny models trained for it."""
