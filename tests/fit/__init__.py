"""Fit tests: a toy of every method the library will carry, at most 40 lines each and through public parts only."""
