"""Checkpoints of other projects: read without their code, converted to ours and back."""

from discdiff.checkpoints.convert import convert, load_foreign
from discdiff.checkpoints.formats import FORMATS
from discdiff.checkpoints.load import load

__all__ = ["FORMATS", "convert", "load", "load_foreign"]
