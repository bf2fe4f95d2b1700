"""Tokenizers of pictures, sound, motion and actions behind one contract; independent of discdiff."""

from tokenizers_vq.base import ModalityTokenizer
from tokenizers_vq.pixels import PixelTokenizer

__all__ = ["ModalityTokenizer", "PixelTokenizer"]
