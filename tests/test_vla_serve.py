"""A policy behind HTTP: the application's answers and refusals, and the command that serves it."""

import base64
import dataclasses
import io
import sys

import numpy as np
import pytest
from adapter_toy import CHUNK, DIM, DRAWN, POLICY, SAYS, SIZE, STATE, corner, made
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from discdiff.cli import guarded
from tasks.vla import serve
from tasks.vla.__main__ import MAIN
from tasks.vla.commands import RECIPE


@pytest.fixture(autouse=True)
def quiet():
    """As the command has it, whatever ran before: an error is then the only line."""
    disable_progress_bar()


def png(size):
    file = io.BytesIO()
    Image.fromarray(corner(size, size)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    return TestClient(serve.application(made(picture=SIZE)))


ASK = {"state": [0.5] * STATE, "instruction": SAYS[0], "picture": png(SIZE), "seed": 3}


def test_the_server_acts_as_the_policy(client):
    policy = made(picture=SIZE)
    answer = client.post("/act", json=ASK)
    own = policy.predict_action(np.full(STATE, 0.5), SAYS[0], corner(SIZE, SIZE), seed=3)
    assert answer.status_code == 200 and np.array_equal(np.float32(answer.json()["actions"]), own)
    assert 0 < answer.json()["timings"]["policy_ms"] <= answer.json()["timings"]["total_ms"]
    kept = client.post("/act", json=ASK | {"prefix": [[0.25] * DIM]}).json()["actions"]
    assert kept[0] == [0.25] * DIM and len(kept) == CHUNK
    seeds = [client.post("/act", json={**ASK, "seed": None}).json()["seed"] for _ in range(2)]
    assert seeds[1] == seeds[0] + 1
    assert client.post("/act", json=ASK | {"picture": png(40), "seed": 2**63 - 1}).status_code == 200
    health = client.get("/health").json()
    assert health["status"] == "ok" and (health["chunk"], health["dim"], health["state"]) == (CHUNK, DIM, STATE)


WRONG = [
    ({"state": None}, "state"), ({"state": [0.5] * 4}, "state"), ({"state": ["x"] * STATE}, "finite"),
    ({"state": [10**400] * STATE}, "finite"), ({"instruction": 3}, "instruction"), ({"picture": None}, "picture"),
    ({"picture": "%%"}, "no PNG"), ({"picture": base64.b64encode(b"GIF89a").decode()}, "no PNG"),
    ({"picture": png(SIZE)[:60]}, "no PNG"), ({"prefix": [[0.1] * 2]}, "prefix"), ({"prefix": [[0.1], 2]}, "prefix"),
    ({"prefix": [[0.1] * DIM] * 9}, "prefix"), ({"seed": -1}, "seed"), ({"seed": True}, "seed"),
    ({"unnorm_key": "bridge"}, "unnorm_key"), ({"sead": 1}, "did you mean 'seed'"),
]  # fmt: skip


def test_what_is_said_wrongly_is_a_400(client):
    answers = [(client.post("/act", json=ASK | change), change, match) for change, match in WRONG]
    assert [(c, a.text) for a, c, match in answers if a.status_code != 400 or match not in a.json()["error"]] == []


def test_bodies_that_are_no_objects_and_no_fastapi(client, monkeypatch):
    for content in (b"{", b"[1]", b"", b'{"state": [NaN]}'):
        answer = client.post("/act", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ValueError, match=r"pip install 'discdiff\[serve\]'"):
        serve.application(POLICY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `train` leaves of a policy that sees nothing."""
    out = tmp_path_factory.mktemp("served") / "policy"
    POLICY.save_pretrained(out)
    (out / RECIPE).write_text('{"data": {"type": "Data"}}')
    return out


def test_the_command_hands_the_policy_to_uvicorn(folder):
    testing, heard = pytest.importorskip("fastapi.testclient"), []
    flags = "--host 0.0.0.0 --port 8123 --steps 2 --read token --temperature 1 --sampler.noise 0.5 --sampler maskgit"
    serve.serve("serve", [str(folder)], lambda app, **where: heard.append((app, where)))
    serve.serve("serve", [str(folder), *flags.split()], lambda app, **where: heard.append((app, where)))
    assert [where for _, where in heard] == [{"host": "127.0.0.1", "port": 8000}, {"host": "0.0.0.0", "port": 8123}]
    body = {"state": [0.5] * STATE, "instruction": SAYS[0], "seed": 3}
    answers = [testing.TestClient(app).post("/act", json=body).json()["actions"] for app, _ in heard]
    drawn = dataclasses.replace(DRAWN, sampler="maskgit", knobs={"noise": 0.5})
    for answer, how in zip(answers, (None, drawn), strict=True):
        own = POLICY.predict_action(np.full(STATE, 0.5), SAYS[0], seed=3, decoding=how)
        assert np.array_equal(np.float32(answer), own)
    assert answers[0] != answers[1]


def test_the_command_refuses_in_one_line(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("fastapi")
    for wrong, match in (
        (["--port", "0"], "port is 0: from 1 to 65535"),
        (["--port", "http"], "'http' is no int"),
        (["--host", " "], "host"),
        (["--steps", "0"], "steps"),
        (["--sampler", "euler"], "euler"),
        (["--reads", "mode"], "did you mean --read?"),
    ):
        assert guarded(MAIN, ["serve", str(folder), *wrong]) == 2
        said = capsys.readouterr().err
        assert match in said and said.count("\n") == 1, (wrong, said)
    assert guarded(MAIN, ["serve", str(tmp_path)]) == 2 and "no policy there" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert guarded(MAIN, ["serve", str(folder)]) == 2
    assert "pip install 'discdiff[serve]'" in capsys.readouterr().err
