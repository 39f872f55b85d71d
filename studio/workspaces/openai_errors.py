"""How everything below /v1/ refuses: OpenAI's shape, which its clients turn into exceptions of their own."""

from typing import Any

from django.http import HttpRequest, JsonResponse

CODES = {401: "invalid_api_key", 403: "insufficient_permissions", 413: "request_too_large"}
"""Codes of what is refused before any view, where they are not the studio's own."""


def speaks_openai(path: str) -> bool:
    return path == "/v1" or path.startswith("/v1/")


def openai_body(status: int, code: str, message: str, *, param: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def openai_error(status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> JsonResponse:
    return JsonResponse(openai_body(status, code, message, param=param), status=status, headers=headers)


def openai_refusal(request: HttpRequest, status: int, code: str, message: str) -> JsonResponse:
    """What the studio refuses everywhere, in OpenAI's words where it has some."""
    if status == 401:
        message = "Incorrect API key provided. Send a valid key of this studio as Authorization: Bearer <key>."
    if status == 404:
        code, message = "unknown_url", f"Unknown request URL: {request.method} {request.path[:200]}. Look for a typo in it."
    return openai_error(status, CODES.get(status, code), message)
