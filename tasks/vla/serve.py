"""A policy behind HTTP: POST /act with an observation as JSON gives a chunk of actions; and the command that serves it."""

from __future__ import annotations

import base64
import binascii
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from discdiff.config import build, checked
from tasks.vla.adapters.pictures import shown
from tasks.vla.judged import asked
from tasks.vla.policy import ActionPolicy
from tasks.vla.policy_settings import Server

NEEDS = "pip install 'discdiff[serve]'"
LARGEST = 4096  # pixels along an edge of a picture
GREATEST = 1e30  # what float32 still holds


@dataclass(frozen=True)
class Asked:
    """The body of POST /act. state: numbers; instruction: what to do; picture: a PNG in base64; prefix: actions that are
    executed already; seed: of the noise, each request's own unless given; unnorm_key: whose units actions have.
    """

    state: Any
    instruction: str
    picture: str | None = None
    prefix: Any = None
    seed: int | None = None
    unnorm_key: str | None = None


class Served:
    """A policy that answers one request at a time."""

    def __init__(self, policy: ActionPolicy) -> None:
        self.policy, self.calls, self.lock = policy, 0, threading.Lock()
        policy.model.eval()

    def health(self) -> dict[str, Any]:
        """What it makes and what it needs to be told."""
        own = self.policy.settings
        makes = {
            "chunk": own.chunk,
            "dim": self.policy.tokenizer.config.dim,
            "unnorm_keys": sorted(self.policy.statistics),
        }
        told = {"state": len(self.policy.scale.middle), "picture": own.picture, "words": self.policy.lexicon.length}
        return {"status": "ok", "method": own.method, **makes, **told}

    def act(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """{"actions": chunk lists of dim numbers, "seed", "timings": milliseconds}; ValueError for what is said wrongly."""
        begin = time.perf_counter()
        missing = [name for name in ("state", "instruction") if name not in body]
        checked("body", sorted(map(str, body)), not missing, f"it needs {', '.join(missing)}")
        asked = build(Asked, body)
        size = self.policy.settings.picture
        checked("picture", asked.picture is not None, (asked.picture is not None) == bool(size), _wanted(size))
        state = _numbers("state", asked.state, 1)
        prefix = None if asked.prefix in (None, []) else _numbers("prefix", asked.prefix, 2)
        picture = None if asked.picture is None else shown("picture", decoded(asked.picture), size)
        checked("seed", asked.seed, asked.seed is None or 0 <= asked.seed < 2**63, "0 or more, below 2 to the 63rd")
        with self.lock:
            seed, self.calls = (self.calls, self.calls + 1) if asked.seed is None else (asked.seed, self.calls)
            start = time.perf_counter()
            actions = self.policy.predict_action(
                state, asked.instruction, picture, prefix=prefix, seed=seed, unnorm_key=asked.unnorm_key
            )
            end = time.perf_counter()
        timings = {"policy_ms": 1000 * (end - start), "total_ms": 1000 * (time.perf_counter() - begin)}
        return {"actions": actions.tolist(), "seed": seed, "timings": timings}


def application(policy: ActionPolicy) -> Any:
    """The FastAPI application: POST /act, GET /health; what a request says wrongly is a 400 with {"error": message}.

    Raises ValueError where FastAPI is not installed.
    """
    try:
        from fastapi import Body, FastAPI, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse
    except ImportError as error:
        raise ValueError(f"serving needs FastAPI and uvicorn: {NEEDS}") from error
    server, served = FastAPI(title="discdiff actions"), Served(policy)

    def malformed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the body is no JSON object"}, 400)

    def act(body=Body()) -> JSONResponse:  # type: ignore[no-untyped-def]
        try:
            checked("body", type(body).__name__, isinstance(body, dict), "give a JSON object")
            return JSONResponse(served.act(body))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)

    server.add_exception_handler(RequestValidationError, malformed)
    server.add_api_route("/act", act, methods=["POST"], response_model=None)
    server.add_api_route("/health", served.health, methods=["GET"])
    return server


def serve(prog: str, argv: Sequence[str], run: Callable[..., None] | None = None) -> None:
    """Serve a policy of a folder until it is interrupted; run: `uvicorn.run`, or what takes its arguments."""
    folder, wanted, policy, _, how = asked(prog, argv, "server", Server)
    policy = replace(policy, decoding=how)
    app, size = application(policy), policy.settings.picture
    view = np.zeros((size, size, 3), np.uint8) if size else None
    key = min(policy.statistics, default=None)
    policy.predict_action(
        np.zeros(len(policy.scale.middle)), "", view, unnorm_key=key
    )  # fails here, not at every request
    if run is None:
        try:
            import uvicorn
        except ImportError as error:
            raise ValueError(f"serving needs FastAPI and uvicorn: {NEEDS}") from error
        run = uvicorn.run
    print(f"{folder}: POST /act for a chunk, GET /health for what it takes", flush=True)
    run(app, host=wanted.host, port=wanted.port)


def decoded(picture: str) -> np.ndarray:
    """A PNG in base64 to uint8 (height, width, 3). Raises ValueError for anything else, and for edges of over 4096 pixels."""
    try:
        data = base64.b64decode(picture, validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            checked("picture", opened.size, max(opened.size) <= LARGEST, f"at most {LARGEST} pixels along an edge")
            return np.array(opened.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture is no PNG in base64: {error}") from error


def _wanted(size: int) -> str:
    return f"this policy is shown a picture, {size} pixels wide" if size else "this policy is shown none: leave it out"


def _numbers(name: str, value: Any, axes: int) -> np.ndarray:
    rows = value if axes == 2 and isinstance(value, list) else [value]
    fits = bool(rows) and all(isinstance(row, list) and len(row) == len(rows[0]) > 0 for row in rows)
    fits = fits and all(_is_number(x) for row in rows for x in row)
    said = value if len(str(value)) < 80 else f"{str(value)[:80]}..."
    checked(name, said, fits, f"give {'lists' if axes == 2 else 'a list'} of finite numbers")
    return np.asarray(value, dtype=np.float32)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < GREATEST
