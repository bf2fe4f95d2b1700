"""Settings of the demo; the command line derives its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass

from discdiff.config import checked

TOKENIZERS = ("pixels", "learned")
PACE = 11.0  # training steps a second on two idle cores, by which the README's figures were reached


@dataclass(frozen=True)
class Demo:
    """seed: of data order, noise and samples; seconds of training, or a number of steps instead; count: images per
    figure; warped: altered copies of every training image; conditional: share of rows with one part given; part: judge on
    the "test" or, to choose settings, on a "validation" part of the training images; out: folder.

    tokenizer: "pixels", or "learned" to train a tokenizer of `codes` codes first, for `tokenizer_steps` steps.
    """

    seed: int = 0
    seconds: float = 258.0
    steps: int = 0
    count: int = 500
    warped: int = 2
    conditional: float = 0.7
    batch_size: int = 64
    learning_rate: float = 4e-3
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    tokenizer: str = "pixels"
    codes: int = 128
    tokenizer_steps: int = 400
    part: str = "test"
    out: str = "runs/demo"

    def __post_init__(self) -> None:
        checked("steps", self.steps, self.steps >= 0, "0 (train for `seconds`) or more")
        checked("seconds", self.seconds, self.seconds > 0 or self.steps > 0, "give seconds of training, or steps")
        checked("count", self.count, self.count >= 20, "at least 20 images, two per digit")
        checked("warped", self.warped, self.warped >= 0, "0 or more")
        checked("tokenizer", self.tokenizer, self.tokenizer in TOKENIZERS, 'choose "pixels" or "learned"')
        checked("codes", self.codes, self.codes >= 2, "at least 2 codes")
        checked("tokenizer_steps", self.tokenizer_steps, self.tokenizer_steps >= 1, "at least 1")
        checked("part", self.part, self.part in ("test", "validation"), 'choose "test" or "validation"')
        checked("conditional", self.conditional, 0 <= self.conditional <= 1, "a share in [0, 1]")

    def hurried(self, steps: int) -> str:
        """What to say of so many training steps: nothing, or that a busy machine left too few of them."""
        wanted = 0 if self.steps else self.seconds * PACE
        if steps >= wanted / 2:
            return ""
        return (
            f"only {steps} training steps in {self.seconds:.0f} s, of about {wanted:.0f} on two idle cores: expect worse "
            "figures than the README's; free the machine, or give it longer (--seconds)"
        )
