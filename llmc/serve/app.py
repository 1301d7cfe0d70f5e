"""The paths of the server, on FastAPI."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from llmc import __version__
from llmc.serve.chat import Chat
from llmc.serve.completions import Completion
from llmc.serve.guard import Guard, Rules
from llmc.serve.metrics import CONTENT_TYPE
from llmc.serve.protocol import Asked, ChatRequest, CompletionRequest
from llmc.serve.refusal import Refusal, of_validation
from llmc.serve.replies import reply
from llmc.serve.service import Service

_FIELDS: dict[str, type[Asked]] = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest}


def application(service: Service, rules: Rules) -> FastAPI:
    """All paths, guarded."""
    # The pages /docs and /redoc load scripts from elsewhere; /openapi.json says the same.
    app = FastAPI(title="llmc serve", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, rules=rules, metrics=service.metrics)
    _refuse(app)
    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "llmc"}
    model["max_model_len"] = service.model.context

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Continue texts or tokens."""
        return await reply(service, request, Completion(service, asked))

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await reply(service, request, Chat(service, asked))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that there is."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The same, by its name."""
        service.require(name)
        return model

    @app.get("/health")
    async def health() -> Response:
        """Whether requests are taken."""
        failure = service.scheduler.failure
        return JSONResponse({"status": failure or "ok"}, 503 if failure else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)

    return app


def _refuse(app: FastAPI) -> None:
    """Has every error told in OpenAI's form."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        asked = _FIELDS.get(request.url.path)
        return of_validation(error, asked.model_fields if asked else ()).response()

    @app.exception_handler(HTTPException)
    async def without_path(request: Request, error: HTTPException) -> Response:
        known = "known: POST /v1/chat/completions, /v1/completions; GET /v1/models, /health, /metrics"
        message = f"{request.method} {request.url.path}: {error.detail}; {known}"
        return Refusal(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return Refusal(500, f"internal error: {type(error).__name__}; the server's log says more").response()
