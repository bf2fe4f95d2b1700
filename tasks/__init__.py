"""Worked tasks on top of discdiff, run from the repository: `python -m tasks.NAME train|sample|evaluate`."""
