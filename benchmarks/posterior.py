"""Pictures of which something was measured: APS and its rivals on one base model, one data term and the same seeds.

    python -m benchmarks.posterior [--data mnist28|tiles32] [--tasks sr,inpaint] [--methods aps_own,sgdd] [--part table]

The base model is the VQ-Diffusion network of `benchmarks.image_generation` (digits) or `benchmarks.image_captions` (tiles), its
folder in `models`; it is told nothing. A row is a step of the ablation of APS or a rival, at settings chosen on other
pictures. Beside them: what the model makes of nothing measured (prior), what the true codes give (ceiling), and a small network
trained to undo this one measurement by squared error (regression), which no sampler has: its PSNR says how much of the
picture a measurement holds. In `out` one JSON per (data, task, method); what is there, of the same models and the same
settings of the method, is not made again, and nothing else is tabled: all such cells of all tasks. Memory is counted by
`benchmarks.posterior_cost`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import image_captions, image_generation
from benchmarks.posterior_table import current, written_table
from benchmarks.results import same_run
from discdiff.anchoring import Measured
from discdiff.cli import guarded, parse
from discdiff.config import build, checked
from discdiff.metrics import feature_distance, psnr, ssim
from discdiff.report.pictures import write_atomically
from discdiff.types import Info
from tasks.image import quality
from tasks.image.fidelity import calibrated, off
from tasks.image.generate import Trained
from tasks.image.matching import fit_matcher
from tasks.image.posterior import restore
from tasks.image.samplers import METHODS as SAMPLERS
from tasks.image.sources import Read
from tasks.inverse import (
    Gaussian,
    GaussianBlur,
    HighDynamicRange,
    MotionBlur,
    Operator,
    RandomInpainting,
    SuperResolution,
    measure,
)
from tokenizers_vq.image import from_bytes

TASKS: dict[str, Operator] = {
    "sr": SuperResolution(4),
    "gaussian": GaussianBlur(),
    "motion": MotionBlur(seed=1),
    "inpaint": RandomInpainting(0.7),
    "hdr": HighDynamicRange(),
}
LINEAR = tuple(name for name, operator in TASKS.items() if operator.linear)
BESIDE = ("ceiling", "regression")
PARTS = ("all", "table")
FREE = ("tasks", "methods", "part", "save", "out", "models", "tokenizer")  # settings that say nothing of a cell


@dataclass(frozen=True)
class Tried:
    """A method of `tasks.image.samplers` and how it is set; distance, weight: of the data term, "gaussian" for all methods, in
    the unit that a method's rates are for, but where a row says otherwise; calibrated: what the tokenizer loses of training
    pictures is noise to it (`tasks.image.fidelity.calibrated`).
    """

    method: str
    steps: int
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    distance: str = "gaussian"
    weight: float = 1.0
    calibrated: bool = False


_COLD: dict[str, Any] = {"steps": 30, "beta": 0.0, "warm": False}
_OWN = {"sampler": "ancestral"}
_SPEC = {"sampler": "maskgit", "noise": 0.0}  # the paper's order: by p of the code that is committed, a cosine quota
_ANEW: dict[str, Any] = {"steps": 15, "beta": 1.0, "warm": True}
_REMASKED = {
    "sampler": "remdm_rescale",
    "eta": 0.5,
}  # in the model's own process: no code is final before the last step
_DEBLUR = {"rate": 15.0, "rate_span": 1.0}
METHODS: dict[str, Tried] = {
    "prior": Tried("prior", 32, knobs=_OWN),
    "aps": Tried("aps", 15, {**_COLD, "rank": "prior"}, _SPEC),
    "aps_anchored": Tried("aps", 15, _COLD, _SPEC),
    "aps_anchored_kl": Tried("aps", 15, {**_COLD, "beta": 1.0}, _SPEC),
    "aps_warm": Tried("aps", 15, {**_COLD, "beta": 1.0, "warm": True}, _SPEC),
    "aps_sure": Tried("aps", 15, {**_COLD, "beta": 1.0, "warm": True}, {"sampler": "confidence"}),
    "aps_own": Tried("aps", 15, {**_COLD, "beta": 1.0, "warm": True}, _OWN),
    "aps_again": Tried("aps", 30, {**_COLD, "beta": 1.0, "warm": True}, {"sampler": "remdm_cap"}),
    "aps_calibrated": Tried(
        "aps", 15, {**_COLD, "beta": 1.0, "warm": True}, {"sampler": "confidence"}, calibrated=True
    ),
    "aps_anew": Tried("aps", 60, _ANEW, _REMASKED, calibrated=True),
    "aps_averaged": Tried("aps", 60, {**_ANEW, "average": 0.5}, _REMASKED, calibrated=True),
    "g2d2": Tried("g2d2", 30, {"steps": 30, **_DEBLUR, "kl": 1e-4}, weight=1e-3),
    "g2d2_l2": Tried("g2d2", 30, {"steps": 30}, distance="l2"),  # as released for super-resolution
    "g2d2_l2_deblur": Tried("g2d2", 30, {"steps": 30, **_DEBLUR}, distance="l2"),  # and for blurs
    "g2d2_calibrated": Tried("g2d2", 30, {"steps": 30, **_DEBLUR, "kl": 1e-4}, weight=1e-3, calibrated=True),
    "sgdd": Tried("sgdd", 30, {"steps": 8, "moves": 150}),
    "svdd": Tried("svdd", 32, {"count": 10, "alpha": 1.0}, _OWN),
    "svdd_best": Tried("svdd", 32, {"count": 10, "alpha": 0.0}, _OWN),
    "gradient": Tried("gradient", 32, {"scale": 0.1}, _OWN),
    "gradient_weak": Tried("gradient", 32, {"scale": 0.01}, _OWN),
    "best_of": Tried("best_of", 32, {"count": 20}, _OWN),
}
SIGMA = 0.05


@dataclass(frozen=True)
class Run:
    """data: which pictures; models: the folder of the benchmark that trained the base model; tokenizer: of tiles32, as it was
    said to that benchmark; count: test pictures per task; regression: training steps of the network that undoes a measurement,
    0 for none.
    """

    data: str = "mnist28"
    models: str = ""
    tokenizer: str = ""
    tasks: tuple[str, ...] = tuple(TASKS)
    methods: tuple[str, ...] = tuple(METHODS)
    count: int = 100
    regression: int = 400
    seed: int = 0
    part: str = "all"
    out: str = "runs/posterior"
    save: bool = True

    def __post_init__(self) -> None:
        checked("data", self.data, self.data in BASES, f"choose from {', '.join(BASES)}")
        checked("part", self.part, self.part in PARTS, f"choose from {', '.join(PARTS)}")
        checked("count", self.count, self.count >= 2, "at least 2 pictures")
        checked("regression", self.regression, self.regression >= 0, "training steps, 0 for none")
        for name, known in (("tasks", TASKS), ("methods", METHODS)):
            given = getattr(self, name)
            ok = 0 < len(set(given)) == len(given) and set(given) <= set(known)
            checked(name, ",".join(given), ok, f"choose from {', '.join(known)}, each once")


class Base(NamedTuple):
    """A model, training and test pictures, and a judge of such pictures with the features that it has learned."""

    trained: Trained
    train: Read
    held: Read
    judge: nn.Module
    features: Callable[[Tensor], Tensor]


def digits_base(run: Run) -> Base:
    """Of digits."""
    bench = image_generation.Bench(image_generation.Run(out=run.models or "runs/image_generation"))
    return Base(bench.model("vq_diffusion")[0], bench.train, bench.valid, bench.judge, bench.judge.features)


def tiles_base(run: Run) -> Base:
    """Of tiles."""
    given: dict[str, Any] = {"tokenizer": run.tokenizer, "out": run.models or "runs/image_captions"}
    bench = image_captions.Bench(image_captions.Run(**given))
    judge = fit_matcher(bench.train, bench.lexicon, bench.folder / "matcher", bench.run.judge_steps, bench.run.seed)
    return Base(bench.model()[0], bench.train, bench.held, judge, judge.pictures)


def data_term(trained: Trained, train: Tensor, operator: Operator, y: Tensor, how: Tried) -> Measured:
    """Of a method; train: training pictures, uint8."""
    some = train[torch.linspace(0, len(train) - 1, 256).long()]
    sigma = calibrated(trained, operator, Gaussian(SIGMA), some) if how.calibrated else SIGMA
    return Measured(operator, y, how.distance, sigma, how.weight)


def digest(module: nn.Module) -> str:
    """Of a module's weights."""
    return hashlib.sha256(
        b"".join(x.detach().cpu().numpy().tobytes() for x in module.state_dict().values())
    ).hexdigest()


def noted(task: str, name: str) -> dict[str, Any]:
    """What a cell holds of how it was made, beside the digests of the models."""
    how = METHODS.get(name, Tried(name, 0))
    settings = asdict(how)
    if how.method in SAMPLERS:  # with what is not said
        settings["options"] = asdict(build(SAMPLERS[how.method].options, how.options))
    if not how.calibrated:  # which cells that are older than it do not say
        del settings["calibrated"]
    return json.loads(json.dumps({"operator": repr(TASKS[task]), "sigma": SIGMA, "settings": settings}))


BASES = {"mnist28": digits_base, "tiles32": tiles_base}


class Bench:
    """Base model, pictures, judge and cells."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, Path(run.out) / run.data
        self.trained, self.train, held, judge, self.features = BASES[run.data](run)
        checked("count", run.count, run.count <= len(held.x), f"there are {len(held.x)} test pictures")
        same_run(self.folder, asdict(run), FREE)
        parts = {"weights": self.trained.model, "tokenizer": self.trained.tokenizer, "judge": judge}
        self.models = {name: digest(part) for name, part in parts.items()}
        some = torch.linspace(0, len(held.x) - 1, run.count).long()
        self.x = from_bytes(held.x[some])
        self.codes, self.grid = quality.encode(self.trained.tokenizer, held.x[some])

    def figures(self, operator: Operator, y: Tensor, made: Tensor) -> dict[str, list[float]]:
        """Of each picture."""
        found = {"psnr": psnr(made, self.x), "ssim": ssim(made, self.x)}
        with torch.no_grad():
            found["features"] = feature_distance(made, self.x, self.features)
        found["measurement"] = off(operator, made, y)
        return {name: value.double().tolist() for name, value in found.items()}

    def cell(self, task: str, name: str) -> dict[str, Any]:
        """A method's figures on a task and how it was made; made unless it is there."""
        file, operator = self.folder / "cells" / task / f"{name}.json", TASKS[task]
        how = METHODS.get(name, Tried(name, 0))
        note = {**self.models, **noted(task, name)}
        if file.is_file() and note.items() <= (there := json.loads(file.read_text(encoding="utf-8"))).items():
            return there
        y, each = measure(operator, self.x, Gaussian(SIGMA), self.run.seed), len(self.x)
        start, wall, info = time.process_time(), time.perf_counter(), Info()
        if name == "ceiling":
            made = quality.decode(self.trained.tokenizer, self.codes, self.grid)
        elif name == "regression":
            made = regressed(operator, self.train.x, y, self.run)
        else:
            measured = data_term(self.trained, self.train.x, operator, y, how)
            more = {"options": how.options, "batch": 50, **how.knobs}
            made, _, info = restore(self.trained, measured, [""] * each, how.method, how.steps, self.run.seed, **more)
        cost = {"processor s": time.process_time() - start, "wall s": time.perf_counter() - wall}
        cost |= {"network rows": float(info.network_rows), "decoded rows": float(info.decoded)}
        cost = {key: value / each for key, value in cost.items()}
        found: dict[str, Any] = {**note, "figures": self.figures(operator, y, made.clamp(-1, 1)), "cost": cost}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(found) + "\n").encode())
        mean = sum(found["figures"]["psnr"]) / each
        print(f"{self.run.data}, {task}, {name}: {mean:.2f} dB, {cost['processor s']:.2f} processor s each", flush=True)
        return found


def regressed(operator: Operator, train: Tensor, y: Tensor, run: Run) -> Tensor:
    """Pictures (n, ...) by a network trained to undo this measurement, from its pseudo inverse where there is one."""
    channels = train.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        layers: list[nn.Module] = [nn.Conv2d(channels, 48, 3, padding=1)]
        for dilation in (1, 2, 4, 2, 1):
            layers += [nn.GELU(), nn.Conv2d(48, 48, 3, padding=dilation, dilation=dilation)]
        network = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(48, channels, 3, padding=1))
    back = partial(_back, operator)
    mover = torch.optim.AdamW(network.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(mover, 4e-3, total_steps=run.regression)
    pick = torch.Generator().manual_seed(run.seed)
    for number in range(run.regression):
        x = from_bytes(train[torch.randint(len(train), (64,), generator=pick)])
        loss = (network(back(measure(operator, x, Gaussian(SIGMA), 1_000_000 + number * 64))) - x).square().mean()
        mover.zero_grad()
        loss.backward()
        mover.step()
        rate.step()
    with torch.no_grad():
        return network(back(y))


def _back(operator: Operator, y: Tensor) -> Tensor:
    try:
        return operator.pinv(y)
    except ValueError:  # it has none: of the same size as the picture
        return y


def main(argv: Sequence[str]) -> None:
    run: Run = parse("python -m benchmarks.posterior", argv, {"": Run})[""]
    folder = Path(run.out) / run.data
    if run.part == "table":
        checked("out", run.out, (folder / "run.json").is_file(), f"it has no cells of {run.data}: make them first")
        same_run(folder, asdict(run), FREE)
    else:
        bench = Bench(run)
        beside = BESIDE if run.regression else BESIDE[:1]
        for task in run.tasks:
            for name in (*beside, *run.methods):
                bench.cell(task, name)
    cells, stale = current(folder / "cells", TASKS, (*BESIDE, *METHODS), noted)
    for each in stale:
        print(f"left out, made otherwise: {each}")
    written_table(cells, run, LINEAR)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(guarded(main))
