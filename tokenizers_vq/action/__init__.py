"""Tokenizers of robot actions: bins, frequency bins, FAST and learned chunks, over one normalisation."""
