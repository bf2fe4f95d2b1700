"""Training objectives: losses that never build a vocabulary-wide tensor for every position."""
