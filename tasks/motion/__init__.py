"""Motion: tokenizers of skeletons' movements, and movements generated from captions."""
