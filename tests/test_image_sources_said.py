"""What is said of pictures: folders, metadata.csv, idx labels, parquet columns and `datasets`; captions as words."""

import csv
import gzip
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.common import generation
from tasks.common.words import Lexicon
from tasks.image.generate import lexicon_of
from tasks.image.settings import Generator, Pictures
from tasks.image.sources import load_said, read


def pixels(n):
    """A picture of one grey."""
    return np.full((4, 4), 10 * n, dtype=np.uint8)


def png(n):
    held = io.BytesIO()
    Image.fromarray(pixels(n)).save(held, "PNG")
    return held.getvalue()


def said_of(source, column, **changed):
    """What is said of every picture, and its grey, so that the two are known to belong together."""
    found = read(str(source), Pictures(source=str(source), **changed), 1, column)
    return found.said, (found.x[:, 0, 0, 0] // 10).tolist()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    for label, numbers in {"cat": (3, 1), "big dog": (2,)}.items():
        (place / label).mkdir(parents=True)
        for n in numbers:
            (place / label / f"{n}.png").write_bytes(png(n))
    return place


def metadata(place, rows, columns=("file_name", "text", "artist")):
    with (place / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


ROWS = [("cat/3.png", "a grey cat, asleep", "Eva"), ("big dog/2.png", "", "Jo"), ("cat/1.png", "«chat» noir", "Eva")]


def test_labels_are_the_names_of_folders(folder):
    assert said_of(folder, "label") == (["big dog", "cat", "cat"], [2, 1, 3])
    assert said_of(folder, "") == (["", "", ""], [2, 1, 3])
    (folder / "loose.png").write_bytes(png(4))
    assert said_of(folder, "")[1] == [2, 1, 3, 4]
    with pytest.raises(ValueError, match=r"label is .*loose\.png.*put every picture into a folder named by its label"):
        said_of(folder, "label")


def test_columns_of_metadata(folder):
    metadata(folder, ROWS)
    assert said_of(folder, "text") == (["", "«chat» noir", "a grey cat, asleep"], [2, 1, 3])
    assert said_of(folder, "artist") == (["Jo", "Eva", "Eva"], [2, 1, 3])
    assert said_of(folder, "") == (["", "", ""], [2, 1, 3])
    with pytest.raises(ValueError, match=r"condition is 'label'.*\['file_name', 'text', 'artist'\]"):
        said_of(folder, "label")
    metadata(folder, ROWS[:2])
    with pytest.raises(ValueError, match=r"text is .*1\.png.*give every picture a row of metadata\.csv"):
        said_of(folder, "text")
    metadata(folder, ROWS, ("path", "text", "artist"))
    with pytest.raises(ValueError, match=r"condition is 'text'.*\['path', 'text', 'artist'\]"):
        said_of(folder, "text")
    metadata(folder, [(*row[:2], row[0][:3]) for row in ROWS], ("file_name", "text", "label"))
    assert said_of(folder, "label")[0] == ["big", "cat", "cat"]  # the table is believed where there is one


def test_what_is_said_of_a_damaged_picture_goes_with_it(folder):
    metadata(folder, ROWS)
    (folder / "cat" / "1.png").write_bytes(png(1)[:30])
    assert said_of(folder, "text", damaged="skip") == (["", "a grey cat, asleep"], [2, 3])


def idx(path, array):
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
def test_labels_beside_idx_pictures(tmp_path, end):
    images = idx(tmp_path / f"train-images-idx3-ubyte{end}", np.stack([pixels(n) for n in (5, 6, 7)]))
    with pytest.raises(ValueError, match=rf"condition is 'label'.*train-labels-idx1-ubyte{end} beside it"):
        said_of(images, "label")
    labels = tmp_path / f"train-labels-idx1-ubyte{end}"
    idx(labels, np.array([9, 0, 4], dtype=np.uint8))
    assert said_of(images, "label") == (["9", "0", "4"], [5, 6, 7])
    assert said_of(images, "") == (["", "", ""], [5, 6, 7])
    with pytest.raises(ValueError, match="condition is 'colour': an idx file has \"label\""):
        said_of(images, "colour")
    idx(labels, np.array([9, 0], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"labels is \(2,\): train-images-idx3-ubyte.* has 3 pictures"):
        said_of(images, "label")


def test_columns_of_parquet_files(tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": png(n), "path": None} for n in (1, 2, 3)], kind)
    path = tmp_path / "x.parquet"
    write_table(pa.table({"image": rows, "text": ["one cat", "", "two dogs"], "label": [3, 1, 3]}), path)
    assert said_of(path, "text") == (["one cat", "", "two dogs"], [1, 2, 3])
    assert said_of(path, "label") == (["3", "1", "3"], [1, 2, 3])
    with pytest.raises(ValueError, match=r"condition is 'colour'.*\['image', 'text', 'label'\]"):
        said_of(path, "colour")


def test_names_of_classes_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]), text=datasets.Value("string")
    )
    columns = {"image": [{"bytes": png(n), "path": None} for n in (1, 2)], "label": [1, 0], "text": ["woof", "miaow"]}
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(columns, kinds).to_parquet(tmp_path / "hub" / "train.parquet")
    assert said_of(f"hf:{tmp_path / 'hub'}", "label") == (["dog", "cat"], [1, 2])
    assert said_of(f"hf:{tmp_path / 'hub'}", "text") == (["woof", "miaow"], [1, 2])
    with pytest.raises(ValueError, match="condition is 'colour'"):
        said_of(f"hf:{tmp_path / 'hub'}", "colour")


def test_what_is_kept_back_keeps_what_is_said(folder):
    train, valid = load_said(Pictures(source=str(folder), valid_last=1), 1, "label")
    assert train.said == ["big dog", "cat"] and valid.said == ["cat"]
    assert train.x[:, 0, 0, 0].tolist() == [20, 10] and valid.x[0, 0, 0, 0] == 30
    train, valid = load_said(Pictures(source=str(folder), valid_fraction=0.5), 1, "label")
    assert train.said == ["cat"] and valid.said == ["big dog", "cat"] and valid.x[:, 0, 0, 0].tolist() == [20, 30]
    (folder.parent / "other" / "cat").mkdir(parents=True)
    (folder.parent / "other" / "cat" / "7.png").write_bytes(png(7))
    train, valid = load_said(Pictures(source=str(folder), valid=str(folder.parent / "other")), 1, "label")
    assert len(train.said) == 3 and valid.said == ["cat"] and valid.x[0, 0, 0, 0] == 70


# -- captions as words -----------------------------------------------------------------------------------------------------


def test_words_of_captions():
    lexicon = lexicon_of(["A red Circle, left", "a blue circle", ""], Generator(words=16, condition="text"))
    assert lexicon.words == ("", "?", "a", "blue", "circle", "left", "red") and lexicon.length == 4
    ids = lexicon.ids(["a red circle", "BLUE", "a green circle", ""])
    assert ids.tolist() == [[2, 6, 4, 0], [3, 0, 0, 0], [2, 1, 4, 0], [0, 0, 0, 0]]
    assert lexicon.text(ids) == ["a red circle", "blue", "a ? circle", ""]
    assert lexicon_of([""], Generator(condition="")).length == 1  # a model that is told nothing still has its place


def test_requests_are_checked_by_word_and_by_length():
    lexicon = lexicon_of(["a red circle", "a blue square"], Generator())
    lexicon.check("Blue, circle")
    with pytest.raises(
        ValueError, match=r"caption is 'a reed circl'.*'reed' \(did you mean 'red'\?\), 'circl' \(did you"
    ):
        lexicon.check("a reed circl")
    with pytest.raises(ValueError, match="no training caption has 'xyzzy'$"):
        lexicon.check("xyzzy")
    with pytest.raises(ValueError, match="'a red red circle': at most 3 words are read"):
        lexicon.check("a red red circle")
    for others in ((), ("a red circle",)):  # learned or kept back
        learned = ["a circle"] if others else ["a red circle", "a blue square"]
        with pytest.raises(ValueError, match="words is 2: the caption 'a red circle' has 3: give --words 3"):
            lexicon_of(learned, Generator(words=2), others)
    for labels in (["c", "c+", "d"], ["a", "A"], ["+", "b"]):
        with pytest.raises(ValueError, match="labels is .*only letters, digits, - and ' are read"):
            lexicon_of(labels, Generator())
        assert lexicon_of(labels, Generator(condition="text")).length == 1
    with pytest.raises(ValueError, match="words is 0"):
        Generator(words=0)
    with pytest.raises(ValueError, match="the ids 0 and 1 are of no and unknown words"):
        Lexicon(("a", "b"), 1)


def test_codes_of_another_grid_or_depth_are_refused():
    layout = generation.layout_for("image", 16, 2, (3, 3), 1, 4)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    for shape in ((2, 8, 2), (2, 9, 1), (2, 9, 3)):
        codes = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(ValueError, match="the layout has 9 slots of 2 levels"):
            generation.Rows(layout, generation.Coded(ids, codes, torch.ones(shape[:2], dtype=torch.bool)))
    codes = torch.full((2, 9, 2), 16)
    with pytest.raises(ValueError, match="16"):
        generation.Rows(layout, generation.Coded(ids, codes, torch.ones(2, 9, dtype=torch.bool)))


# -- pictures as arrays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0, 300], [1, 2]], "int64 values 0 to 300, not whole numbers in 0 to 255"),
        ([[0, -1], [1, 2]], "int64 values -1 to 2, not whole numbers"),
        ([[0.5, 0.25], [1.0, 0.0]], "float64 values 0.0 to 1.0, not whole numbers"),
        ([[[0, 1], [1, 2]]] * 2, r"an array \(2, 2, 2\), not \(height, width\) or"),
        ([[[0, 1, 2, 3, 4]] * 5] * 3, r"an array \(3, 5, 5\)"),
        ([0, 1], r"an array \(2,\)"),
    ],
)
def test_arrays_of_another_depth_or_range_are_refused(tmp_path, x, message):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    path = tmp_path / "x.parquet"
    write_table(pa.table({"image": [x, x]}), path)
    with pytest.raises(ValueError, match=rf"2 of 2 pictures.*x\.parquet\[0\] \({message}"):
        said_of(path, "")


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays_as_pictures(tmp_path, channels):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    x = np.random.default_rng(0).integers(0, 256, (5, 4, *([channels] if channels else [])))
    write_table(pa.table({"image": [x.tolist()] * 2}), tmp_path / "x.parquet")
    found = read(str(tmp_path / "x.parquet"), Pictures(source="x"), channels or 1).x[0]
    assert np.array_equal(found.numpy(), np.moveaxis(x.reshape(5, 4, -1), 2, 0))
