"""Charts and reports: self-contained, escaped, well formed; and the players work in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from discdiff.report import GridView, ImageView, Report, TextView, Trace, curve, image_grid, player

EVIL = "</script><script>alert(1)</script>"


def toy_trace():
    """Five steps with two calls each; step k commits positions k and k + 5 of ten, and token i stands at position i."""
    committed = np.arange(10) % 5 <= np.arange(5)[:, None]
    return Trace(np.where(committed, np.arange(10), 99), committed, np.full(5, 2))


def toy_views():
    pixels = ImageView("pixels", np.arange(4, 8).reshape(2, 2), lambda ids: (20 * ids).astype(np.uint8))
    return [TextView("words", range(4), lambda i: f"w{i} "), pixels, GridView("codes", [8, 9], str)]


# charts


def points_of(svg):
    found = re.findall(r'<polyline class="line" points="([^"]*)"', svg)
    return [np.array([pair.split(",") for pair in points.split()], float) for points in found]


def test_curve_is_linear_or_logarithmic_as_asked():
    x = np.arange(1, 6)
    svg = curve({"a": (x, 10.0**x), "b": (x, torch.full((5,), 10.0))}, "step", "loss", "Title", log_y=True)
    rising, flat = points_of(svg)
    np.testing.assert_allclose(np.diff(rising[:, 1]), np.diff(rising[:, 1])[0], atol=0.11)
    assert np.ptp(flat[:, 1]) == 0 and flat[0, 1] == rising[0, 1] and rising[-1, 1] < rising[0, 1]
    linear = points_of(curve({"a": (x, 10.0**x)}))[0]
    assert abs(np.diff(linear[:, 1])[0]) < 1 < abs(np.diff(linear[:, 1])[-1])
    (spread,) = points_of(curve({"a": ([1, 10, 100], [0, 0, 0])}, log_x=True))
    np.testing.assert_allclose(np.diff(spread[:, 0])[0], np.diff(spread[:, 0])[1], atol=0.11)


@pytest.mark.parametrize("scale", [1e-9, 0.03, 1, 7, 1e5, 1e12])
@pytest.mark.parametrize("log_y", [False, True])
def test_ticks_are_few_and_round_and_in_order(scale, log_y):
    svg = curve({"a": ([0, 1], [scale, 3.7 * scale])}, log_y=log_y)
    labels = [text for _, text in re.findall(r'class="tick" x="([\d.]+)"[^>]*text-anchor="end">([^<]*)<', svg)]
    units = {"k": 1e3, "M": 1e6}
    values = [float(text.rstrip("kM").replace("−", "-")) * units.get(text[-1], 1) for text in labels]
    assert 2 <= len(values) <= 9 and values == sorted(set(values))
    assert all(0.5 * scale < value < 4.2 * scale for value in values)


def test_curve_is_one_well_formed_svg_with_all_text_escaped():
    svg = curve({f"<b>{i}": ([0, 1], [i, 2]) for i in range(12)}, "<x>", "<y>", EVIL)
    root = ElementTree.fromstring(svg)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert EVIL in texts and "<x>" in texts and "<y>" in texts and "<b>11" in texts
    assert "prefers-color-scheme" in svg and "<script" not in svg


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        ({}, {}, "at least one line"),
        ({"a": ([1, 2], [1])}, {}, r"'a' has x \(2,\) and y \(1,\)"),
        ({"a": ([], [])}, {}, "non-empty"),
        ({"a": ([1, 2], [1, np.nan])}, {}, "not finite at point 1"),
        ({"a": ([1, 2], [1, 0])}, {"log_y": True}, "y = 0.0 on a logarithmic axis"),
        ({"a": ([0, 2], [1, 1])}, {"log_x": True}, "x = 0.0 on a logarithmic axis"),
    ],
)
def test_curve_refuses_bad_input(series, options, message):
    with pytest.raises(ValueError, match=message):
        curve(series, **options)


# page


class Tags(HTMLParser):
    """Every tag with its attributes, and whether each opened element is closed in order."""

    VOID = {"meta", "link", "img", "input", "br"}

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))


def full_report(text="plain"):
    trace = toy_trace()
    views = [TextView(text, range(8), lambda i: f"{text}{i}"), GridView(text, [8, 9], lambda i: text), toy_views()[1]]
    picture = image_grid(np.zeros((2, 4, 4), np.uint8), 2)
    return (
        Report(text, text)
        .heading(text)
        .text(text)
        .table([[text, 1], ["b", 2.5]], [text, "n"])
        .figures({text: text, "n": 12345, "x": 0.123456, "none": None})
        .image(picture, text)
        .curve({text: ([0, 1], [1, 2])}, text, text, text, caption=text)
        .player(trace, views, text)
        .player(trace, views)
        .html("<hr class='mine' />")
    )


def test_page_is_well_formed_complete_and_asks_nothing_of_the_network():
    page = full_report().render()
    tags = Tags(page)
    names = [tag for tag, _ in tags.tags]
    assert names.count("h1") == names.count("h2") == names.count("table") == names.count("img") == 1
    assert names.count("script") == 3  # two players' data, one program
    for tag, attributes in tags.tags:
        for key in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|//(?!www\.w3\.org/2000/svg)[a-z]+\.[a-z]", page)
    assert all(attributes.get("alt") for tag, attributes in tags.tags if tag == "img")
    shown = [text for _, text in tags.texts]
    assert "12\u202f345" in shown and "0.1235" in shown and "–" in shown


def test_all_text_is_escaped():
    page = full_report(EVIL).render()
    tags = Tags(page)
    assert [tag for tag, _ in tags.tags] == [tag for tag, _ in Tags(full_report().render()).tags]
    assert not any("alert" in text for where, text in tags.texts if where == "script" and not text.startswith("{"))
    views = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S).group(1))["views"]
    assert views[0]["name"] == EVIL and views[1]["symbols"] == [EVIL, EVIL]  # and nothing was lost
    assert (("title", EVIL) in tags.texts) and (("figcaption", EVIL) in tags.texts) and (("th", EVIL) in tags.texts)


def test_save_is_atomic_and_makes_folders(tmp_path, monkeypatch):
    path = full_report().save(tmp_path / "a" / "b" / "page.html")
    assert path.read_text(encoding="utf-8") == full_report().render()  # nothing depends on time or order
    old = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        Report("new").save(path)
    assert path.read_bytes() == old and [file.name for file in path.parent.iterdir()] == ["page.html"]
    Report("new").save(path)
    assert b"<title>new</title>" in path.read_bytes()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda report: report.table([[1, 2], [3]], ["a", "b"]), "row 1 has 1 cells for 2 columns"),
        (lambda report: report.figures({}), "figures got no values"),
        (lambda report: report.image(np.zeros((2, 2))), "image is a ndarray; give a PIL image"),
        (lambda report: report.player([1], toy_views()), "give a Trace"),
    ],
)
def test_report_refuses_bad_input(use, message):
    report = Report("t")
    with pytest.raises(ValueError, match=message):
        use(report)
    assert report.render() == Report("t").render()


# in a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
<script>
  const log = [], [one, two] = document.querySelectorAll(".dd-player");
  const find = (name) => one.querySelector(name);
  const note = (label) => log.push([label, find("output").value, two.querySelector("output").value]);
  const key = (name) => one.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  window.onerror = (message) => log.push(["error", message]);
  note("loaded");
  find(".back").click(); note("back");
  find(".forward").click(); find(".forward").click(); note("forward twice");
  key("Home"); note("home");
  key("ArrowRight"); note("right");
  key("ArrowLeft"); key("ArrowLeft"); note("left twice");
  const slider = find("input");
  slider.value = 2; slider.dispatchEvent(new Event("input")); note("slider");
  const looks = Array.from(one.querySelectorAll(".text span"), (span) => span.className + ":" + span.textContent);
  log.push(["looks", ...looks]);
  key("End");
  find("select").value = 8;
  find(".play").click();
  log.push(["playing", find(".play").getAttribute("aria-label")]);
  setTimeout(() => {
    note("played"); log.push(["stopped", find(".play").getAttribute("aria-label")]);
    const done = document.createElement("pre");
    done.id = "log"; done.textContent = JSON.stringify(log); document.body.append(done);
  }, 3000);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the page with")
def test_players_work_in_a_browser_and_do_not_disturb_each_other(tmp_path):
    trace = toy_trace()
    page = full_report(EVIL).render()
    second = page.index('<div class="dd dd-player"')
    page = page[:second] + player(trace, toy_views()) + page[second:]
    (tmp_path / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=6000 --dump-dom"
    command = [BROWSER, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="log">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    log = json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    def counter(k):
        return f"step {k} of 5, committed {2 * k} of 10, {2 * k} network calls"

    steps = {
        "loaded": 5,
        "back": 4,
        "forward twice": 5,
        "home": 1,
        "right": 2,
        "left twice": 1,
        "slider": 3,
        "played": 5,
    }
    assert {label: first for label, first, *_ in (entry for entry in log if len(entry) == 3)} == {
        label: counter(k) for label, k in steps.items()
    }
    assert all(entry[2] == counter(5) for entry in log if len(entry) == 3)
    plain = [entry for entry in log if entry[0] in ("looks", "playing", "stopped", "error")]
    assert plain == [
        ["looks", "set:w0 ", "set:w1 ", "set fresh:w2 ", "masked:"],
        ["playing", "Pause"],
        ["stopped", "Play"],
    ]
