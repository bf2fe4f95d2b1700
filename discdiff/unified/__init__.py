"""The unified token interface: typed records of text, pictures, sound, motion, actions and states as one sequence."""

from discdiff.unified.legacy import LEGACY, LegacyMap, emu3_fast, mmada, openvla, showo
from discdiff.unified.parts import Codes
from discdiff.unified.store import FILE, Reference
from discdiff.unified.template import Part, Template
from discdiff.unified.tokenizer import UnifiedTokenizer

__all__ = [
    "FILE",
    "LEGACY",
    "Codes",
    "LegacyMap",
    "Part",
    "Reference",
    "Template",
    "UnifiedTokenizer",
    "emu3_fast",
    "mmada",
    "openvla",
    "showo",
]
