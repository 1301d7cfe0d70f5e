"""What a client is told when there is no answer: an error in OpenAI's form, with a status that says whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from llmc.errors import ContextError, InputError
from llmc.registry import unknown

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An error that is the answer to a request."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients take apart."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def of_input(error: InputError) -> Refusal:
    """What is wrong with a request, as the runtime told it."""
    return Refusal(400, str(error), code="context_length_exceeded" if isinstance(error, ContextError) else None)


def of_validation(error: RequestValidationError, known: Iterable[str]) -> Refusal:
    """What is wrong with a request's form: its first fault, in one line. known: the fields that there are."""
    fault = error.errors()[0]
    place = [str(part) for part in fault["loc"] if part != "body"]
    param = place[0] if place else None
    if fault["type"] == "json_invalid":
        return Refusal(400, f"the body is no JSON: {fault.get('ctx', {}).get('error', 'it cannot be read')}")
    message = fault["msg"].removeprefix("Value error, ")
    if param is None and fault["type"] == "value_error":
        return Refusal(400, message)
    if param is None:
        return Refusal(400, "the body has to be a JSON object; send it with content-type: application/json")
    if fault["type"] == "extra_forbidden" and len(place) == 1:
        return Refusal(400, unknown("parameter", param, known), param, "unknown_parameter")
    if fault["type"] == "missing" and len(place) == 1:
        return Refusal(400, f"{param} is missing", param)
    if param == "prompt":
        wanted = "a text, a list of texts, a list of tokens, or a list of lists of tokens"
        return Refusal(400, f"prompt has to be {wanted}", param)
    return Refusal(400, f"{'.'.join(place)}: {message[:1].lower()}{message[1:]}", param)
