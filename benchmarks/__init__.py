"""Measurements against a stated goal; each module runs as `python -m benchmarks.NAME` and records what it found."""
