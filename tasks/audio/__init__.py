"""Sound: a tokenizer trained on your own, and generation by class."""
