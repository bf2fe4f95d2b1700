"""The progress bar of a run that ends by the clock."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback


class TimedProgress(ProgressCallback):
    """Trainer's bar in seconds of `max_seconds`, resumed parts included, or in the share of the steps if that is more.

    A bar of steps says nothing of a run whose steps are but an upper limit.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.trainer, self.limit = trainer, trainer.knobs.max_seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            shape = "{l_bar}{bar}| {n:.0f}/{total:.0f} s, {postfix}"
            self.training_bar = tqdm(total=self.limit, dynamic_ncols=True, bar_format=shape, postfix="step 0")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        bar = self.training_bar
        if bar is not None:
            spent = max(self.trainer.seconds, self.limit * state.global_step / state.max_steps)
            bar.set_postfix_str(f"step {state.global_step}", refresh=False)
            bar.update(min(spent, self.limit) - bar.n)
