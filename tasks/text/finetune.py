"""The command `finetune`: any checkpoint goes on, as a diffusion model, on a text or on conversations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerFast, TrainerCallback

from discdiff.cli import parse
from discdiff.config import checked, to_dict
from discdiff.denoisers import process_of
from discdiff.layout import Layout, Segment
from discdiff.models import Network
from discdiff.training import DiffusionTrainer, TrainingSettings
from discdiff.training.lora import Lora, add_lora, merge_lora, save_lora
from tasks.text import evaluate as quality
from tasks.text import rows as text_rows
from tasks.text.base import Base, load_base
from tasks.text.chat import ANSWERS, PADDINGS, Chat, ChatRows, load_chats
from tasks.text.folder import is_first, save_task
from tasks.text.settings import Chosen, Corpus, Output
from tasks.text.stream import StreamRows
from tasks.text.training import objective_for

DATA = ("text", "chat")
ADAPTER = "adapter"


@dataclass(frozen=True)
class Tuning:
    """data: "text" (continued pre-training on the corpus' rows) or "chat" (conversations of JSON lines in --source: prompts
    given, answers noised; answers, padding, pack, truncate as `ChatRows`). stream: read the text as it is trained on.

    lora_rank: 0 trains every weight, else adapters of that rank (lora_alpha 0 is twice it) at modules whose names end in
    lora_targets, with commas between, "" is all; the saved model has them merged, `adapter/` holds them alone.
    gradient_checkpointing: less memory for a third more time. anneal_steps: steps over which the attention of a decoder
    opens from causal to full. show: samples printed at every evaluation (--eval_every).
    """

    data: str = "text"
    answers: str = "last"
    padding: str = "learned"
    pack: bool = False
    truncate: bool = False
    stream: bool = False
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_targets: str = ""
    gradient_checkpointing: bool = False
    anneal_steps: int = 0
    show: int = 2

    def __post_init__(self) -> None:
        checked("data", self.data, self.data in DATA, f"choose from {', '.join(DATA)}")
        checked("answers", self.answers, self.answers in ANSWERS, f"choose from {', '.join(ANSWERS)}")
        checked("padding", self.padding, self.padding in PADDINGS, f"choose from {', '.join(PADDINGS)}")
        checked("stream", self.stream, not self.stream or self.data == "text", "conversations are read whole")
        checked("lora_rank", self.lora_rank, self.lora_rank >= 0, "0 (none) or more")
        checked("anneal_steps", self.anneal_steps, self.anneal_steps >= 0, "0 (open at once) or more")
        checked("show", self.show, self.show >= 0, "0 or more samples")

    @property
    def lora(self) -> Lora | None:
        """The adapters, None where every weight is trained."""
        targets = tuple(self.lora_targets.split(",")) if self.lora_targets else ()
        return Lora(self.lora_rank, self.lora_alpha, 0.0, targets) if self.lora_rank else None


def finetune(prog: str, argv: Sequence[str]) -> None:
    """Load a checkpoint, train it on, save it. An interrupted run goes on when the command is repeated.

    Under torchrun the ranks share the rows, the first one writes.
    """
    sections = {"corpus": Corpus, "base": Base, "tuning": Tuning, "training": TrainingSettings, "output": Output}
    chosen = parse(prog, argv, sections, ("checkpoint",))
    base, tuning, training = (chosen[name] for name in ("base", "tuning", "training"))
    corpus, folder = replace(chosen["corpus"], tokenizer=chosen["checkpoint"]), Path(chosen["output"].out)
    checked("rows", corpus.rows, tuning.data == "text" or corpus.rows == "packed", "it is a setting of --data text")
    check_sharding(tuning, training)
    model, tokenizer = load_base(chosen["checkpoint"], base)
    layout = rows_layout(model, corpus.length)
    check_model(model, layout, tuning)
    train, valid = load_rows(corpus, tuning, tokenizer, layout)
    size = f"{len(train):,} rows" if hasattr(train, "__len__") else "a stream"
    if is_first():
        print(
            f"{size} of {corpus.length} tokens, {len(valid):,} validation rows; {model.num_parameters():,} parameters"
        )
    ended = replace(corpus, rows="padded") if tuning.data == "chat" else corpus
    save_task(folder, {"corpus": ended, "base": base, "tuning": tuning}, tokenizer)
    model.config.layout, model.config.process = to_dict(layout), to_dict(process_of(model))
    tuned = tune(model, layout, tuning, training, train, valid, folder / "model", tokenizer)
    found = tuned.evaluate()
    if is_first():
        print(f"bound on the validation rows: {found['eval_loss']:.4f} nats per position; saved to {folder}")
        (folder / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    PartialState().wait_for_everyone()  # so that whoever called it on several ranks finds all files


def check_sharding(tuning: Tuning, training: TrainingSettings) -> None:
    """Raise ValueError for what reads or changes the weights outside of the forward pass, which shards do not allow."""
    if training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        checked("show", tuning.show, not tuning.show, "one rank cannot sample from weights that fsdp shards: --show 0")
        remedy = "adapters cannot be merged into weights that fsdp shards: leave out one of the two"
        checked("lora_rank", tuning.lora_rank, not tuning.lora_rank, remedy)


def check_model(model: Network, layout: Layout, tuning: Tuning) -> None:
    """Raise ValueError for a network that cannot be tuned, or not so."""
    config = model.config
    objective_for(process_of(model), config.prediction, layout.block)
    shifted = bool(layout.block and config.shift)
    checked("shift", config.shift, not shifted, "a model of blocks predicts in place: --shift false")
    family = getattr(model, "family", None)
    decoder = family is not None and family.decoder
    kind = type(model).__name__ if family is None else family.model
    remedy = f"it opens the causal mask of a decoder, which a {kind} does not have: leave it out"
    checked("anneal_steps", tuning.anneal_steps, decoder or not tuning.anneal_steps, remedy)


def rows_layout(model: Network, length: int) -> Layout:
    """[BOS | text of `length` tokens] over the model's own vocabulary, in blocks where its attention is.

    Raises ValueError where it is too long for the model, which sees rows of blocks twice, noised and clean, and where it
    makes no whole blocks.
    """
    stored = model.config.layout or {}
    block = stored.get("block", 0)
    most = model.config.max_length // (2 if block else 1) - 1
    if block:
        whole = [n for n in range(block - 1, most + 1, block) if n >= 4]
        near = f"--length {min(whole, key=lambda n: abs(n - length))}" if whole else "a model with more slots"
        room = f"rows, seen twice in {model.config.max_length} slots, are blocks of {block}, the first with BOS"
        checked("length", length, length in whole, f"{room}: give {near}")
    checked("length", length, length <= most, f"the model takes rows of at most {most} tokens behind BOS")
    segments = (Segment("bos", "special", (1,), noised=False), Segment("text", "text", (length,), extras=("EOS",)))
    attention = {name: stored[name] for name in ("attention", "block") if name in stored}
    return Layout(model.vocab, segments, **attention)


def load_rows(corpus: Corpus, tuning: Tuning, tokenizer: PreTrainedTokenizerFast, layout: Layout) -> tuple[Any, Any]:
    """Training and validation rows of the corpus."""
    if tuning.data == "text":
        if not tuning.stream:
            return text_rows.load_rows(corpus, tokenizer, layout)
        source = corpus.valid_source
        checked("stream", True, source is not None, "a stream cannot be split: give --valid or --valid_split")
        held = text_rows.load_rows(replace(corpus, source=corpus.valid or corpus.source, valid=None), tokenizer, layout)
        return StreamRows(corpus.train_source, tokenizer, layout), held[1]
    chats = load_chats(corpus.source)
    held_chats: list[Chat] = load_chats(corpus.valid) if corpus.valid else []
    if not held_chats:
        count = max(1, round(corpus.valid_fraction * len(chats)))
        checked("conversations", len(chats), len(chats) > count, "too few to keep some back for validation")
        chats, held_chats = chats[:-count], chats[-count:]
    options: dict[str, Any] = {"answers": tuning.answers, "padding": tuning.padding, "truncate": tuning.truncate}
    train = ChatRows(chats, tokenizer, layout, pack=tuning.pack, **options)
    return train, ChatRows(held_chats, tokenizer, layout, **options)


def tune(
    model: Any,
    layout: Layout,
    tuning: Tuning,
    training: TrainingSettings,
    train: Any,
    valid: Any,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> DiffusionTrainer:
    """Train a network on, in place, and save it to `folder`; its trainer.

    Raises KeyboardInterrupt where Ctrl-C or SIGTERM ended the training, whose checkpoint the next call goes on from;
    ValueError, before anything is done, for settings and networks that do not go together.
    """
    check_sharding(tuning, training)
    check_model(model, layout, tuning)
    lora, objective = tuning.lora, objective_for(process_of(model), model.config.prediction, layout.block)
    if lora is not None:
        add_lora(model, lora, training.seed)
    if tuning.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    callbacks: list[TrainerCallback] = []
    if tuning.anneal_steps:
        callbacks.append(Opening(model, tuning.anneal_steps))
    if tuning.show and tokenizer is not None:
        callbacks.append(Shown(model, layout, tokenizer, tuning.show))
    trainer = DiffusionTrainer(
        model,
        training,
        objective,
        layout,
        train,
        valid,
        output_dir=folder.with_name(f"{folder.name}_training"),
        callbacks=callbacks,
    )
    trainer.train("auto")
    if trainer.stopped_by == "signal":
        raise KeyboardInterrupt
    if lora is not None:
        with trainer.averaged():
            if trainer.args.should_save:
                save_lora(model, lora, folder.parent / ADAPTER)
            merge_lora(model)
    trainer.save_model(folder)
    return trainer


class Opening(TrainerCallback):
    """Opens a decoder's attention from causal to full over `steps` (DiffuLLaMA arXiv 2410.17891, section 3.2)."""

    def __init__(self, model: Any, steps: int) -> None:
        self.model, self.steps = model, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.openness = min(1.0, (state.global_step + 1) / self.steps)
        self.model.openness_seed = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.openness = 1.0  # evaluation and samples see everything


class Shown(TrainerCallback):
    """Prints a few samples of the model as it is, at every evaluation."""

    def __init__(self, model: Any, layout: Layout, tokenizer: PreTrainedTokenizerFast, count: int) -> None:
        self.model, self.layout, self.tokenizer, self.count = model, layout, tokenizer, count

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        training = self.model.training
        batch = text_rows.blank(self.layout, self.count, self.model.device)
        tokens = quality.generate(self.model.eval(), process_of(self.model), batch, Chosen())
        self.model.train(training)
        for text in text_rows.to_text(self.tokenizer, self.layout, tokens):
            print(f"[step {state.global_step}] {text!r}", flush=True)
