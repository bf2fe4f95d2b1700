"""The unified interface beside a model: references, folders read back identical, and damage that is named."""

import json
from dataclasses import replace

import pytest
import torch
from test_unified import RECORDS, model_for
from unified_toy import Digits, same, unified

from discdiff.layout import Modality
from discdiff.models import DiscDiffModel
from discdiff.unified import FILE, Part, Reference, Template, UnifiedTokenizer
from tasks.text.tokenizer import characters
from tokenizers_vq import PixelTokenizer, load_tokenizer
from tokenizers_vq.action.bins import ActionBins, ActionBinsConfig
from tokenizers_vq.action.fast import Fast
from tokenizers_vq.audio import AudioTokenizer, AudioTokenizerConfig
from tokenizers_vq.image import ImageTokenizer, ImageTokenizerConfig


def test_folders_are_read_back_identical(tmp_path):
    tokenizer = unified(task="joint", packed=True)
    tokenizer.save(tmp_path / "a")
    again = UnifiedTokenizer.load(tmp_path / "a", Digits.load)
    assert again.vocab == tokenizer.vocab and again.template == tokenizer.template and again.layout == tokenizer.layout
    batch = tokenizer.encode(RECORDS)
    assert torch.equal(again.encode(RECORDS).tokens, batch.tokens)
    assert all(same(a, b) for a, b in zip(again.decode(batch.tokens), RECORDS, strict=True))
    again.save(tmp_path / "b")
    assert (tmp_path / "b" / FILE).read_bytes() == (tmp_path / "a" / FILE).read_bytes()
    again.save(tmp_path / "c" / "d")
    assert UnifiedTokenizer.load(tmp_path / "c" / "d", Digits.load).vocab == tokenizer.vocab


def test_tokenizers_are_referred_to(tmp_path):
    tokenizer = unified(("picture", "sound"))
    Digits(9).save_pretrained(tmp_path / "elsewhere")
    references = {"picture": Reference("../elsewhere"), "sound": Reference("somebody/sound", "v2")}
    replace(tokenizer, references=references).save(tmp_path / "model")
    stored = json.loads((tmp_path / "model" / FILE).read_text())
    assert stored["tokenizers"]["sound"] == {
        "type": "Reference",
        "source": "somebody/sound",
        "revision": "v2",
        "sha256": "",
    }
    assert not (tmp_path / "model" / "tokenizers" / "sound").exists()
    asked = []

    def load(where, **options):
        asked.append((where, options))
        return Digits(5, 3) if where == "somebody/sound" else Digits.load(where)

    again = UnifiedTokenizer.load(tmp_path / "model", load)
    assert ("somebody/sound", {"revision": "v2"}) in asked and again.references == references
    with pytest.raises(ValueError, match="has 5 codes and depth 2, the vocabulary 5 and 3"):
        UnifiedTokenizer.load(tmp_path / "model", lambda where, **o: Digits(5, 2) if "sound" in where else load(where))


def test_weights_that_were_replaced_are_refused(tmp_path):
    kinds = {"one": ActionBins(ActionBinsConfig(chunk=2, dim=1, codebook_size=4)).eval()}
    kinds["two"] = ActionBins(ActionBinsConfig(chunk=2, dim=1, codebook_size=4)).eval()
    kinds["one"].save_pretrained(tmp_path / "one")
    template = Template((Part("one", (2, 1), axes="th"), Part("two", (2, 1), axes="th")))
    UnifiedTokenizer.of(template, references={"one": Reference("../one")}, **kinds).save(tmp_path / "model")
    again = UnifiedTokenizer.load(tmp_path / "model", load_tokenizer)
    assert len(again.references["one"].sha256) == 64 and set(again.references) == {"one"}
    next(kinds["one"].buffers()).data += 1
    for folder, name in ((tmp_path / "one", "one"), (tmp_path / "model" / "tokenizers" / "two", "two")):
        kept = (folder / "model.safetensors").read_bytes()
        kinds["one"].save_pretrained(folder)
        with pytest.raises(ValueError, match=f"the tokenizer of '{name}' .* is not the one that was saved"):
            UnifiedTokenizer.load(tmp_path / "model", load_tokenizer)
        (folder / "model.safetensors").write_bytes(kept)
    UnifiedTokenizer.load(tmp_path / "model", load_tokenizer)


def test_the_model_s_vocabulary_is_the_tokenizers(tmp_path):
    tokenizer = unified()
    model_for(tokenizer).float().save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert DiscDiffModel.from_pretrained(tmp_path).vocab == tokenizer.vocab  # beside it, the manifest still holds
    other = replace(tokenizer, vocab=tokenizer.vocab.extend(Modality("smell", 3)))
    with pytest.raises(ValueError, match="not the tokenizers it was trained with"):
        other.save(tmp_path)
    stored = json.loads((tmp_path / FILE).read_text())
    stored["vocab"]["multiple"] = 64
    (tmp_path / FILE).write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="not the tokenizers it was trained with"):
        UnifiedTokenizer.load(tmp_path, Digits.load)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: data.pop("vocab"), "keys"),
        (lambda data: data.update(more=1), "keys"),
        (lambda data: data["template"].update(tusk="x"), "tusk"),
        (lambda data: data["tokenizers"]["sound"].pop("source"), "source"),
        (lambda data: data["tokenizers"].update(sound=3), "no template and references"),
        (lambda data: data["vocab"].update(text_sise=3), "text_sise"),
    ],
)
def test_damaged_files(tmp_path, damage, match):
    unified().save(tmp_path / "a")
    file = tmp_path / "a" / FILE
    data = json.loads(file.read_text())
    damage(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=match):
        UnifiedTokenizer.load(tmp_path / "a", Digits.load)
    file.write_text("{")
    with pytest.raises(ValueError, match=FILE):
        UnifiedTokenizer.load(tmp_path / "a", Digits.load)
    with pytest.raises(ValueError, match="is a file"):
        unified().save(file)


def test_tokenizers_of_the_other_package(tmp_path):
    """What comes back through rows, ranges and folders is what each tokenizer makes of its own codes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(12, 4, 3, generator=generator) * 2 - 1
    kinds = {
        "picture": PixelTokenizer.of(levels=5, patch=2, height=4, width=6),
        "photo": ImageTokenizer(
            ImageTokenizerConfig(channels=1, width=8, code_dim=4, codebook_size=16, blocks=1)
        ).eval(),
        "sound": AudioTokenizer(
            AudioTokenizerConfig(width=8, code_dim=4, codebook_size=8, num_quantizers=3, blocks=1, hop=8)
        ).eval(),
        "actions": ActionBins(ActionBinsConfig(chunk=4, dim=3, codebook_size=32)).eval(),
        "fast": Fast.fit(actions, vocabulary=128),
        "state": ActionBins(ActionBinsConfig(chunk=1, dim=5, codebook_size=32)).eval(),
    }
    parts = (
        Part("text", (6,), "caption", variable=True),
        Part("picture", (2, 3)),
        Part("photo", (2, 2)),
        Part("sound", (7,), variable=True),
        Part("actions", (4, 3), axes="th"),
        Part("fast", (12,), variable=True),
        Part("state", (1, 5), axes="th", noised=False),
    )
    tokenizer = UnifiedTokenizer.of(Template(parts, packed=True), characters(["a cat"]), **kinds)
    records = [
        {
            "caption": "cat"[:n],
            "picture": torch.randint(5, (4, 6), generator=generator),
            "photo": torch.rand(1, 8, 8, generator=generator),
            "sound": torch.rand(16 * (n + 2), generator=generator) - 0.5,
            "actions": actions[n],
            "fast": actions[n],
            "state": torch.rand(1, 5, generator=generator),
        }
        for n in range(4)
    ]
    batch = tokenizer.encode(records)
    expected = []
    for r in records:
        own = {"caption": r["caption"]}
        for name, kind in kinds.items():
            found = kind.encode(r[name][None])
            own[name] = kind.decode(found.codes, found.grid)[0]
        expected.append(own)
    decoded = tokenizer.decode(batch.tokens)
    for a, b in zip(decoded, expected, strict=True):
        assert a["caption"] == b["caption"]
        for name in kinds:
            assert torch.allclose(a[name].double(), b[name].double(), atol=1e-5), name
    end = tokenizer.vocab.special("EOC_fast")
    broken = batch.tokens.clone()
    broken[1, tokenizer.layout.columns("fast")[1:]] = end
    assert not tokenizer.malformed(batch.tokens)["fast"].any()
    assert {name: x.tolist() for name, x in tokenizer.malformed(broken).items()} == {
        "fast": [False, True, False, False]
    }
    with pytest.warns(UserWarning, match="1 of 4 'fast' are malformed"):
        assert tokenizer.decode(broken)[1]["fast"].shape == (4, 3)
    tokenizer.save(tmp_path)
    again = UnifiedTokenizer.load(tmp_path, load_tokenizer)
    assert torch.equal(again.encode(records).tokens, batch.tokens)
    assert all(same(a, b) for a, b in zip(again.decode(batch.tokens), decoded, strict=True))
