"""The unified token interface: one vocabulary, one flat sequence, and what is known of each of its positions."""

from discdiff.layout.attention import attention_rule, dense_mask
from discdiff.layout.batch import TokenBatch, make_batch, pack
from discdiff.layout.layout import ATTENTION, Layout, Segment, Tables
from discdiff.layout.vocab import Modality, VocabLayout

LAYOUTS: dict[str, type] = {kind.__name__: kind for kind in (Layout, Modality, Segment, VocabLayout)}
"""What `discdiff.config.from_dict` needs to rebuild a saved layout."""

__all__ = [
    "ATTENTION",
    "LAYOUTS",
    "Layout",
    "Modality",
    "Segment",
    "Tables",
    "TokenBatch",
    "VocabLayout",
    "attention_rule",
    "dense_mask",
    "make_batch",
    "pack",
]
