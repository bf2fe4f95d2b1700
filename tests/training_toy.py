"""A model, an objective and rows small enough for a training run in milliseconds; and, run as a script, two-rank checks."""

import hashlib
import json
import os
import sys
from pathlib import Path

import hosted_toy
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from discdiff.layout import Layout, Segment, VocabLayout
from discdiff.noise import MASK
from discdiff.training import EMA, DiffusionTrainer, NonFiniteError, TrainingSettings, states

LAYOUT = Layout(VocabLayout(text_size=16), (Segment("text", "text", (12,)),))


class Toy(nn.Module):
    """Embedding, one mixing layer, dropout, head; `main` and `tied` share the head's weight."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(LAYOUT.vocab.total, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 16)
        self.tied = self.head
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=draw))

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.dropout(x + torch.tanh(self.mix(x + x.mean(1, keepdim=True)))))


def objective(model, batch, noise, time):
    """Cross-entropy at positions masked with probability `time`, mean over rows and positions."""
    masked = (noise.uniform(MASK) < time[:, None]) & batch.free
    logits = model(torch.where(masked, batch.layout.vocab.mask, batch.tokens))
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens, reduction="none")
    rows = (loss * masked).mean(1)
    return rows.mean(), {"masked": masked.float().mean(), "row_loss": rows.detach()}


def rows(count: int = 40) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [{"tokens": torch.randint(0, 16, (12,), generator=draw)} for _ in range(count)]


def trainer(
    folder, model=None, data=None, evaluation=None, goal=objective, callbacks=(), **settings
) -> DiffusionTrainer:
    """A toy run of 8 rows per step; an epoch has 5 steps."""
    chosen = TrainingSettings(**{"steps": 17, "batch_size": 8, "learning_rate": 1e-2, "progress": False, **settings})
    model, data = Toy() if model is None else model, rows() if data is None else data
    return DiffusionTrainer(model, chosen, goal, LAYOUT, data, evaluation, output_dir=folder, callbacks=list(callbacks))


def digest(run: DiffusionTrainer) -> str:
    """SHA-256 of all weights, averages and optimizer tensors."""
    state = run.bare_optimizer.state_dict()["state"]
    optimizer = [state[number][key] for number in sorted(state) for key in sorted(state[number])]
    averages = [] if run.ema is None else list(run.ema.mean.values())
    found = hashlib.sha256()
    for x in [*run.model.state_dict().values(), *averages, *optimizer]:
        found.update(x.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


class StopAt(TrainerCallback):
    """Ends a run after a step, with or without a checkpoint."""

    def __init__(self, step: int, save: bool = True) -> None:
        self.step, self.save = step, save

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            control.should_training_stop = True
            control.should_save = self.save


class Gradients(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append([p.grad.clone() for p in model.parameters()])


def spy(seen: list):
    """The objective, noting row noise and time of every call."""

    def goal(model, batch, noise, time):
        seen.append((noise.key.tolist(), noise.uniform(MASK).tolist(), time.tolist()))
        return objective(model, batch, noise, time)

    return goal


def sharded_states(folder: Path, rank: int) -> bool:
    """Weights, optimizer and average of a model sharded by FSDP2 equal those of a whole one, and come back."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))

    def start(shard: bool):
        model = Toy(0.0)
        if shard:
            fully_shard(model, mesh=mesh)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True), EMA(model, 0.5)

    def step(model, optimizer, ema, number):
        optimizer.zero_grad()
        model(torch.arange(12)[None]).square().sum().backward()
        optimizer.step()
        ema.update(number)

    def everything(model, optimizer, ema):
        tensors, _ = states.optimizer_state(optimizer, model)
        return {**states.weights(model), **tensors, **{f"mean {k}": states.whole(x) for k, x in ema.mean.items()}}

    one, two = start(False), start(True)
    for number in range(3):
        step(*one, number)
        step(*two, number)
    stored = everything(*two)
    tensors, rest = states.optimizer_state(two[1], two[0])
    if rank == 0:
        folder.mkdir()
        states.save_weights(two[0], {k: stored[k] for k in two[0].state_dict()}, folder, True)
        mean = {name: stored[f"mean {name}"] for name in two[2].mean}
        states.save_states(folder, {"optimizer": tensors, "ema": mean}, {"optimizer": rest})
    dist.barrier()
    three = start(True)
    states.load_weights(three[0], folder)
    states.load_optimizer_state(three[1], three[0], folder)
    three[2].load(load_file(folder / "ema.safetensors"))
    step(*one, 3)
    step(*three, 3)
    mine, theirs = everything(*one), everything(*three)
    return mine.keys() == theirs.keys() and all(torch.allclose(mine[k], theirs[k], atol=1e-6) for k in mine)


def two_ranks(folder: Path, families: list[str]) -> None:
    """Run by torchrun: gradients of two ranks, a stop and resumption, and a NaN that only one rank sees."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    seen: list = []
    gradients = Gradients()
    plain = {"clip": 0.0, "expected_world_size": 2}
    run = trainer(folder / "a", Toy(0.0), goal=spy(seen), callbacks=[gradients], steps=3, **plain)
    run.train()
    rank = run.args.process_index
    torch.save(gradients.steps, folder / f"gradients-{rank}.pt")
    full = trainer(folder / "b", Toy(), ema=0.9, evaluation=rows(7), eval_draws=2, steps=9, **plain)
    full.train()
    trainer(folder / "c", Toy(), ema=0.9, callbacks=[StopAt(4)], steps=9, **plain).train()
    resumed = trainer(folder / "c", Toy(), ema=0.9, steps=9, **plain)
    resumed.train("auto")

    def broken(model, batch, noise, time):
        loss, metrics = objective(model, batch, noise, time)
        return loss * (float("nan") if rank == 1 and len(seen) else 1.0), metrics

    caught, hurt = "", Toy()
    try:
        trainer(folder / "d", hurt, goal=broken, **plain).train()
    except NonFiniteError as error:
        caught = str(error)
    untouched = all(torch.equal(a, b) for a, b in zip(hurt.parameters(), Toy().parameters(), strict=True))
    for name in families:
        found = hosted_toy.trained_a_step(name, folder / f"hosted-{name}", expected_world_size=2)
        torch.save(found, folder / f"hosted-{name}-{rank}.pt")
    trainer(folder / "e", Toy(0.0), callbacks=[StopAt(4)], **plain).train()  # one rank will go on from here
    result = {
        "sharded": sharded_states(folder / "sharded", rank),
        "seen": seen,
        "digests": [digest(full), digest(resumed)],
        "evaluation": full.evaluate(),
        "nan": caught,
        "untouched": untouched,
        "size": dist.get_world_size(),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # everything is written: gloo's threads now and then abort while the interpreter shuts down
