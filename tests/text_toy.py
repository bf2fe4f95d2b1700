"""Texts and tokenizers that the tests of the text data path share."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.text import tokenizer

HARD = ["", "\n", " two  spaces \n\n\ttab\r\nline", "don 't , do n't .", "é中🙂 ▁Ġ\u00a0\u2028", "\x00\x7f", "ab" * 300]
TRAIN = [*HARD, "the cat sat on the mat, the dog ran to the cat. " * 20]
PROSE = ["to be or not to be", "that is the question", "", "whether tis nobler"]
MASKED = "[MASK]"


def make(kind: str) -> PreTrainedTokenizerFast:
    return tokenizer.build(kind, TRAIN, 300 if kind == "bpe" else None)


def words() -> PreTrainedTokenizerFast:
    """A foreign tokenizer: words, with an end and a mask token of its own."""
    vocab = {word: rank for rank, word in enumerate(["[UNK]", "a", "b", "c"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]", mask_token=MASKED, pad_token="[PAD]"
    )
