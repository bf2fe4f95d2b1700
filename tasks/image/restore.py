"""Restore a picture of which something was measured, and edit a region of one, by posterior sampling; nothing is trained."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from discdiff.anchoring import Measured
from discdiff.cli import parse, take
from discdiff.config import checked
from discdiff.report.pictures import write_atomically
from discdiff.sampling.sampler import Common, knobs
from tasks.common.sections import Drawing
from tasks.image import generate, page, posterior, quality, restored_page
from tasks.image.fidelity import Trail, calibrated, figures, off
from tasks.image.generate import Trained, touched
from tasks.image.samplers import METHODS, plain
from tasks.image.settings import Guide, Hole, Restoration
from tasks.image.sources import load_said, read
from tasks.image.style import Style
from tasks.inverse import NOISES, PICTURES, Masked, Operator, check, measure
from tokenizers_vq.image import from_bytes, to_bytes

DATA = plain(Measured, without=("perceptual_weight",))


def restore(prog: str, argv: Sequence[str]) -> None:
    """Pictures that fit a measurement, beside it and the original; report.html, metrics.json and PNG files."""
    flags, rest = _sections(argv, ("operator", "noise", "method", "data", "sampler"))
    chosen = parse(prog, rest, {"restoration": Restoration, "drawing": Drawing}, ("folder",))
    wanted = chosen["restoration"]
    operator = _built(prog, "operator", wanted.operator, PICTURES, flags)
    noise = _built(prog, "noise", wanted.noise, NOISES, flags)
    how = _how(prog, wanted.method, flags, chosen["drawing"])
    # shot noise: its deviation at grey
    sigma = noise.sigma if hasattr(noise, "sigma") else math.sqrt(2 / noise.photons)
    term = _said(prog, "data", DATA, flags)
    ok = not wanted.calibrate or ("sigma" not in term and term.get("distance", "gaussian") == "gaussian")
    checked(
        "calibrate", wanted.calibrate, ok, "it finds the --data.sigma of the gaussian distance: leave those out, or it"
    )
    trained = _opened(chosen["folder"], wanted.method, wanted.condition)
    term = {**_sigma(trained, operator, noise, sigma, wanted.calibrate), **term}
    x, y = _measured(trained, operator, noise, wanted)
    measured, trail = Measured(operator, y.expand(wanted.count, *y.shape[1:]), **term), Trail()
    said, start = [wanted.condition] * wanted.count, time.perf_counter()
    made = posterior.restore(trained, measured, said, wanted.method, seen=trail.see, **how)
    cost = restored_page.spent(made.info, time.perf_counter() - start)
    pictures = {"restored": made.pictures}
    if wanted.count > 1:
        pictures["mean"] = made.pictures.mean(0, keepdim=True)
    if x is not None:
        codes, grid = quality.encode(trained.tokenizer, x)
        back = quality.decode(trained.tokenizer, codes, grid)
        pictures = {"original": from_bytes(x), "codes": back, **pictures}
    out, rows = Path(wanted.out), figures(operator, y, pictures)
    _save({**pictures, "measurement": y}, out, ("original", "measurement", "restored"))
    found = {"rows": rows, "sigma": sigma, "data_sigma": measured.sigma, **cost}
    write_atomically(out / "metrics.json", (json.dumps(found, indent=2) + "\n").encode())
    title = f"{wanted.operator.replace('_', ' ')}, restored by {wanted.method}"
    steps = trail.shown(trained, operator, y)
    print(restored_page.restored(out / "report.html", title, pictures, y, rows, sigma, cost, steps))


def edit(prog: str, argv: Sequence[str]) -> None:
    """A region of a picture made anew for a condition, and in the style of a reference where one is given."""
    flags, rest = _sections(argv, ("style", "method", "data", "sampler"))
    chosen = parse(prog, rest, {"hole": Hole, "guide": Guide, "drawing": Drawing}, ("folder",))
    wanted, guide = chosen["hole"], chosen["guide"]
    method = guide.method or ("aps" if guide.reference else "prior")
    checked("method", method, method in METHODS, f"choose from {', '.join(METHODS)}")
    checked("method", method, method == "prior" or guide.reference != "", "it is led by a picture: give --reference")
    said = [f"--{name}" for name in ("style", "data") if flags[name]]
    checked("flags", said, not said or guide.reference != "", "they go with --reference")
    style, term = Style(**_said(prog, "style", Style, flags)), _said(prog, "data", DATA, flags)
    how = _how(prog, method, flags, chosen["drawing"])
    trained = _opened(chosen["folder"], method, wanted.condition)
    x = _picture(trained, wanted.picture)
    hole, stride = touched(trained.grid, wanted.hole), trained.tokenizer.stride
    region = hole.view(trained.grid).repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    measured, reference = posterior.unmeasured(wanted.count), None
    if guide.reference:
        reference = from_bytes(_read(trained, guide.reference))
        check(style, reference)
        measured = style.near(reference, wanted.count, region, **term)
    codes, grid = quality.encode(trained.tokenizer, x)
    given: dict[str, Any] = {"codes": codes.expand(wanted.count, -1, -1), "known": ~hole.expand(wanted.count, -1)}
    trail, conditions, start = Trail(), [wanted.condition] * wanted.count, time.perf_counter()
    made = posterior.restore(trained, measured, conditions, method, seen=trail.see, **given, **how)
    cost = restored_page.spent(made.info, time.perf_counter() - start)
    back, out = quality.decode(trained.tokenizer, codes, grid), Path(wanted.out)
    _save({"edited": made.pictures}, out, ("edited",))
    errors, steps = {}, trail.shown(trained)
    if reference is not None:
        each = {"its codes": back, **{f"edited {n + 1}": z[None] for n, z in enumerate(made.pictures)}}
        errors = {name: float(off(measured.operator, z, measured.y[:1])) for name, z in each.items()}
        steps = trail.shown(trained, measured.operator, measured.y[:1])
    title = f"{wanted.condition or 'A region'} by {method}"
    file = out / "report.html"
    shown = (from_bytes(x), back, ~region, made.pictures, reference, errors)
    print(restored_page.edited(file, title, *shown, cost, steps))


def _sections(argv: Sequence[str], names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The flags --NAME.FIELD of a command line by name, and the rest."""
    flags: dict[str, list[str]] = {}
    rest = list(argv)
    for name in names:
        flags[name], rest = take(rest, name)
    return flags, rest


def _said(prog: str, name: str, kind: type, flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """Those fields of a section that its flags name."""
    given = parse(prog, flags[name], {name: kind}, prefix=f"{name}.")[name]
    words = {word.split("=")[0].removeprefix(f"--{name}.").replace("-", "_") for word in flags[name]}
    return {f.name: getattr(given, f.name) for f in dataclasses.fields(kind) if f.name in words}


def _built(prog: str, what: str, name: str, table: Mapping[str, Any], flags: Mapping[str, list[str]]) -> Any:
    """The part of a table that a command line names, with its fields."""
    checked(what, name, name in table, f"choose from {', '.join(table)}")
    return parse(f"{prog} --{what} {name}", flags[what], {what: table[name]}, prefix=f"{what}.")[what]


def _how(prog: str, method: str, flags: Mapping[str, list[str]], drawing: Drawing) -> dict[str, Any]:
    """Options of the method, the sampler with its knobs, and the seed, as `posterior.restore` takes them."""
    checked("method", method, method in METHODS, f"choose from {', '.join(METHODS)}")
    name = drawing.sampler
    checked("sampler", name, not name or not METHODS[method].own, f"{method} is a sampler of its own: leave it out")
    kind = knobs(name) if name else Common
    options = _said(f"{prog} --method {method}", "method", METHODS[method].options, flags)
    asked = {"sampler": name} if name else {}
    return {"options": options, "seed": drawing.sample_seed, **asked, **_said(prog, "sampler", kind, flags)}


def _opened(folder: str, method: str, condition: str) -> Trained:
    trained = generate.opened(Path(folder))
    posterior.method_for(trained, method)
    trained.lexicon.check(condition)
    return trained


def _measured(trained: Trained, operator: Operator, noise: Any, wanted: Restoration) -> tuple[Tensor | None, Tensor]:
    """The picture uint8, where it is known, and what was measured of it (1, ...)."""
    if not wanted.measured:
        x = _picture(trained, wanted.picture)
        return x, measure(operator, from_bytes(x), noise, wanted.noise_seed)
    y = from_bytes(_read(trained, wanted.measured))
    check(operator, torch.zeros(1, *_size(trained)), y)
    return None, operator(y) if isinstance(operator, Masked) else y  # what was not measured is 0


def _sigma(trained: Trained, operator: Operator, noise: Any, sigma: float, count: int) -> dict[str, float]:
    """The data term's, by the noise alone or by what the tokenizer loses of `count` training pictures, too."""
    if not count:
        return {"sigma": sigma} if sigma else {}
    train = load_said(trained.pictures, trained.tokenizer.config.channels)[0].x
    checked("calibrate", count, count <= len(train), f"there are {len(train)} training pictures")
    some = torch.linspace(0, len(train) - 1, count).long()
    return {"sigma": calibrated(trained, operator, noise, train[some])}


def _size(trained: Trained) -> tuple[int, int, int]:
    """(channels, height, width) of the model's pictures."""
    height, width = (n * trained.tokenizer.stride for n in trained.grid)
    return trained.tokenizer.config.channels, height, width


def _picture(trained: Trained, name: str) -> Tensor:
    x, size = generate.picture_of(trained, name), _size(trained)
    checked("picture", tuple(x.shape[1:]), tuple(x.shape[1:]) == size, f"the model makes pictures {size}")
    return x


def _read(trained: Trained, file: str) -> Tensor:
    """A picture file as it is, uint8 (1, channels, height, width)."""
    if not Path(file).is_file():
        raise ValueError(f"there is no file {file!r}: give a picture")
    return read(file, dataclasses.replace(trained.pictures, size=0), trained.tokenizer.config.channels).x[:1]


def _save(pictures: Mapping[str, Tensor], folder: Path, names: Sequence[str]) -> None:
    """PNG files of pictures in [-1, 1]: NAME.png of one, NAME_1.png and so on of restorations."""
    for name in names:
        x = pictures.get(name)
        if x is None or x.ndim != 4 or x.shape[1] not in (1, 3, 4):
            continue
        for n, array in enumerate(page.shown(to_bytes(x.cpu()))):
            data = io.BytesIO()
            Image.fromarray(array).save(data, "PNG")
            alone = name in ("original", "measurement")
            print(write_atomically(folder / (f"{name}.png" if alone else f"{name}_{n + 1}.png"), data.getvalue()))
