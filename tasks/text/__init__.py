"""Text: tokenizers, a memory-mapped corpus packed into rows, and measures of sample quality."""
