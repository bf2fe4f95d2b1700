"""The unified token interface: one vocabulary, one flat sequence, and what is known of each of its positions."""

from discdiff.layout.attention import attention_rule, dense_mask
from discdiff.layout.batch import TokenBatch, make_batch, pack
from discdiff.layout.layout import ATTENTION, Layout, Segment, Tables
from discdiff.layout.vocab import Modality, VocabLayout

__all__ = [
    "ATTENTION",
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
