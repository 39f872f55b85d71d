"""What the endpoint refuses, as OpenAI's clients know it: status, code, and the field that it is about."""

from typing import Any

from django.http import JsonResponse

from studio.workspaces.openai_errors import openai_body, openai_error

MEMORY_RETRY, ENGINE_RETRY = 20, 5
"""Seconds after which it is worth asking again: where memory is short, and where the engine starts anew."""


class Refused(Exception):
    """Whoever asked gets it as a status and an error, or as the last event of an answer that has begun."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        return openai_body(self.status, self.code, self.message, param=self.param)

    def response(self) -> JsonResponse:
        return openai_error(self.status, self.code, self.message, param=self.param, headers=self.headers)


def invalid(message: str, param: str | None, *, code: str = "invalid_value") -> Refused:
    return Refused(400, code, message, param=param)


def not_found(model: str) -> Refused:
    """The same for what is nowhere, another's and out of the key's reach."""
    message = f"The model '{model[:200]}' does not exist or you do not have access to it."
    return Refused(404, "model_not_found", message, param="model")


def of_engine(error: dict[str, Any], *, model: str, asked_in: str) -> Refused:
    """What the engine says, see `engines.contract.Engine`; `asked_in` is the field that holds what was too long."""
    message, param = error["message"], next(iter(error.get("fields") or {}), None)
    match error["code"]:
        case "too_long":
            return invalid(message, asked_in, code="context_length_exceeded")
        case "invalid":
            return invalid(message, param)
        case "unsupported":
            return invalid(message, param, code="unsupported")
        case "gone":
            return not_found(model)
        case "no_memory":
            return Refused(503, "no_memory", message, headers={"Retry-After": str(MEMORY_RETRY)})
    return Refused(503, "engine_unavailable", message, headers={"Retry-After": str(ENGINE_RETRY)})
