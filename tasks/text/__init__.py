"""Text: a corpus as rows of tokens, diffusion beside an autoregressive twin, evaluation, samples and infilling."""
