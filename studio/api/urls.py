"""The REST API's addresses. It is drawn from the same services as the pages; the policy table says who may call what."""

from typing import Any, NoReturn

from django.http import Http404, HttpRequest
from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation

from studio.api import (
    adapters,
    advice,
    answers,
    audit,
    basemodels,
    builds,
    comparisons,
    datasets,
    deliveries,
    deployments,
    drafts,
    errors,
    extractions,
    keys,
    life,
    lineage,
    logos,
    people,
    plugins,
    prompts,
    ratings,
    releases,
    retraining,
    runs,
    serving,
    shaping,
    synthesis,
    talks,
    tokens,
    traffic,
    trials,
    uploads,
    usage,
    votes,
    workspaces,
)
from studio.api.fields import StrictParser, only_known
from studio.api.idempotency import answer_once

DESCRIPTION = """Everything that the pages do, for scripts. Send an API key (Settings) as `Authorization: Bearer <key>`.

Errors are `{"error": {"code", "message", "fields"}}`, lists `{"items", "next"}`, times ISO 8601 in UTC, sizes bytes.
Every POST takes an `Idempotency-Key`: a repeat of the same request with the same key answers with the first result.
"""


class StudioAPI(NinjaAPI):
    def get_openapi_operation_id(self, operation: Operation) -> str:
        """The name that generated clients give the call."""
        return operation.view_func.__name__

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        schema = super().get_openapi_schema(**options)
        # The middleware looks at the key, so ninja does not know of it.
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        for entry in schema["paths"].values():
            entry.pop("head", None)  # goes without saying, and would name its operation twice
        return schema


def build_api() -> StudioAPI:
    api = StudioAPI(
        title="Adapter Studio",
        version="1",
        description=DESCRIPTION,
        urls_namespace="api",
        parser=StrictParser(),
    )
    errors.install(api)
    api.add_decorator(only_known, mode="view")
    api.add_decorator(answer_once, mode="view")
    for part in (
        workspaces,
        logos,
        people,
        keys,
        audit,
        basemodels,
        datasets,
        drafts,
        shaping,
        synthesis,
        uploads,
        tokens,
        plugins,
        advice,
        runs,
        comparisons,
        serving,
        adapters,
        builds,
        extractions,
        releases,
        retraining,
        deliveries,
        deployments,
        answers,
        traffic,
        prompts,
        trials,
        talks,
        votes,
        ratings,
        lineage,
        life,
        usage,
    ):
        api.default_router.add_router("", part.router)
    return api


@csrf_exempt
def nowhere(request: HttpRequest) -> NoReturn:
    """An unknown address below /api/ answers in JSON, as everything there."""
    raise Http404


urlpatterns = [
    path("api/v1/", build_api().urls),
    re_path(r"^api(?:/.*)?$", nowhere, name="api_nowhere"),
]
