"""Robot actions as tokens."""
