"""Pictures as codes: `python -m tasks.image tokenizer train|evaluate|refit`."""
