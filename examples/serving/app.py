"""OpenAI's endpoints around `Answer`, as a FastAPI application."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from examples.serving.completions import Answer, Served


def app(served: Served) -> FastAPI:
    """GET /v1/models, POST /v1/completions and /v1/chat/completions; what a request says wrongly is a 400."""
    server = FastAPI(title="discdiff")

    @server.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        return refused("the body is no JSON object")

    @server.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": served.name, "object": "model", "owned_by": "discdiff"}]}

    @server.post("/v1/completions")
    def completions(body: dict[str, Any] = Body()) -> Response:
        return answered(served, body, chat=False)

    @server.post("/v1/chat/completions")
    def chat_completions(body: dict[str, Any] = Body()) -> Response:
        return answered(served, body, chat=True)

    return server


def answered(served: Served, body: dict[str, Any], chat: bool) -> Response:
    """The completion, or with "stream" its chunks as server-sent events."""
    try:
        answer = Answer(served, body, chat)
    except ValueError as error:
        return refused(str(error))
    if answer.asked.stream:
        return StreamingResponse(events(answer.stream()), media_type="text/event-stream")
    return JSONResponse(answer.whole())


def events(chunks: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Chunks as server-sent events."""
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def refused(message: str) -> Response:
    """OpenAI's error."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, 400)
