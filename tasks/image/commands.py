"""python -m tasks.image train|sample|inpaint: the commands of a model of a tokenizer's codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from discdiff.cli import parse, take
from discdiff.config import checked, from_dict, read_json, to_dict
from tasks.common.sections import Drawing, sampler_of
from tasks.image import page, quality
from tasks.image.again import apart, drawn_again, drawn_surely, usual_distance
from tasks.image.generate import CODES, KINDS, MODEL, TASK, drawn, fit_model, lexicon_of, opened, picture_of, touched
from tasks.image.settings import Generator, Hole, ModelOutput, Pictures, Request, Training
from tasks.image.sources import load_said
from tokenizers_vq.image import ImageTokenizer, to_bytes


def train(prog: str, argv: Sequence[str]) -> None:
    """Train on a trained tokenizer's codes. An interrupted run goes on when the command is repeated."""
    own = {f"--{flag}" for name in Pictures.__dataclass_fields__ for flag in (name, name.replace("_", "-"))}
    given = any(word.split("=")[0] in own for word in argv)
    sections = {"generator": Generator, "training": Training, "output": ModelOutput}
    chosen = parse(prog, argv, {**sections, **({"pictures": Pictures} if given else {})})
    wanted, folder = chosen["generator"], Path(chosen["output"].out)
    source = Path(wanted.tokenizer)
    if not (source / TASK).is_file() or not (source / MODEL / "config.json").is_file():
        raise ValueError(
            f"tokenizer is {wanted.tokenizer!r}, which holds none: finish python -m tasks.image tokenizer train --out it"
        )
    tokenizer = ImageTokenizer.from_pretrained(source / MODEL)
    checked("out", str(folder), folder.resolve() != source.resolve(), "that is the tokenizer's: give another folder")
    stored = from_dict(read_json(source / TASK), KINDS)
    checked(
        "tokenizer", wanted.tokenizer, isinstance(stored, Pictures), "that is a model: give what tokenizer train wrote"
    )
    pictures = chosen["pictures"] if given else stored
    found, valid = load_said(pictures, tokenizer.config.channels, wanted.condition)
    lexicon = lexicon_of(found.said, wanted, valid.said)
    print(
        f"{len(found.x):,} training and {len(valid.x):,} validation pictures, {len(lexicon.words) - 2} words",
        flush=True,
    )
    parts = {"pictures": pictures, "generator": wanted, "lexicon": lexicon}
    text = json.dumps({name: to_dict(part) for name, part in parts.items()}, indent=2) + "\n"
    _same(folder, text, source)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder / MODEL)
    (folder / TASK).write_text(text, encoding="utf-8")
    fit_model(tokenizer, found, lexicon, wanted, chosen["training"], folder / CODES, resume="auto")
    print(f"trained by {wanted.method}: {folder}")


def _same(folder: Path, text: str, source: Path) -> None:
    """Raise ValueError where a folder holds a run of other settings or of another tokenizer: it would go on as that one."""
    if any((folder / part).is_dir() for part in (CODES, f"{CODES}_training")) and (folder / TASK).is_file():
        same = (folder / TASK).read_text(encoding="utf-8") == text
        weights = [place / MODEL / "model.safetensors" for place in (folder, source)]
        same = same and weights[0].is_file() and weights[0].read_bytes() == weights[1].read_bytes()
        checked("out", str(folder), same, "it holds a model of other settings, pictures or codes: give another folder")


def sample(prog: str, argv: Sequence[str]) -> None:
    """PNG files of a condition, and where asked a page that shows how they were made."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"request": Request, "drawing": Drawing}, ("folder",))
    request, trained = chosen["request"], opened(Path(chosen["folder"]))
    trained.lexicon.check(request.condition)
    said = [request.condition] * request.count
    sampler = sampler_of(prog, inside, chosen["drawing"], trained.sampler)
    again: dict[str, Any] = {"tries": request.tries, **sampler}
    if request.surely or request.apart:
        if request.surely:
            least = request.surely
            found = drawn_surely(trained, said, request.unlike, least=least, **again)
        else:
            train, valid = load_said(trained.pictures, trained.tokenizer.config.channels)
            least = request.apart * usual_distance(valid.x, train.x)
            found = drawn_again(trained, said, apart(train.x), least=least, **again)
        made, short = found.pictures, int((found.worth < least).sum())
        print(f"{int(found.draws.sum())} drawn for {len(said)}, {short} of which fall short still")
    else:
        made, _ = drawn(trained, said, **sampler)
    _save(made, Path(request.out), "sample")
    if request.report is not None:
        print(page.samples(Path(request.report), request.condition or "Samples", made))


def inpaint(prog: str, argv: Sequence[str]) -> None:
    """A hole of a picture made anew several times, beside the picture; codes outside the hole stay as they are."""
    inside, rest = take(argv, "sampler")
    chosen = parse(prog, rest, {"hole": Hole, "drawing": Drawing}, ("folder",))
    wanted, trained = chosen["hole"], opened(Path(chosen["folder"]))
    trained.lexicon.check(wanted.condition)
    x = picture_of(trained, wanted.picture)
    codes, grid = quality.encode(trained.tokenizer, x)
    checked("picture", tuple(x.shape[2:]), grid == trained.grid, f"the model makes grids of {trained.grid} codes")
    known = ~touched(grid, wanted.hole)[None].expand(wanted.count, -1)
    sampler = sampler_of(prog, inside, chosen["drawing"], trained.sampler)
    conditions = [wanted.condition] * wanted.count
    made, _ = drawn(trained, conditions, codes=codes.expand(wanted.count, -1, -1), known=known, **sampler)
    back = to_bytes(quality.decode(trained.tokenizer, codes, grid))
    out = Path(wanted.out)
    _save(made, out, "filled")
    print(page.filled(out / "report.html", x, back, made, known[0].view(grid)))


def _save(made: Tensor, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(page.shown(made)):
        file = folder / f"{name}_{n + 1}.png"
        Image.fromarray(picture).save(file)
        print(file)
