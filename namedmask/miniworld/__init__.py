"""The embedded default: a small drawn web with known truth, and its tiny models."""
