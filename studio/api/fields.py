"""What requests may hold: only known fields, plain text, ids that the caller can reach."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja.operation import Operation
from ninja.parser import Parser
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from studio.errors import UserError

Line = Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line of text, without control characters."""
Moment = Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(2101, 1, 1, tzinfo=UTC))]
"""Of the years that a day on a page may be of: one at the ends of the calendar is none any more in another time zone."""


M = TypeVar("M", bound=Model)


class Input(BaseModel):
    """What a caller sends. A field that is not known is refused, for it was meant to do something.

    Not a ninja Schema: that one reads attributes, so it sees no field that it does not know.
    """

    model_config = ConfigDict(extra="forbid")


class StrictParser(Parser):
    """JSON as its standard has it: no NaN, no endless nesting; and no NUL, which PostgreSQL cannot store."""

    def parse_body(self, request: HttpRequest) -> Any:
        body = request.body
        if b"\\u0000" in body:
            raise UserError("The body holds the character NUL. Leave it out.", code="bad_request")
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise UserError(f"The body is not valid JSON: {error}.", code="bad_request") from error


B = TypeVar("B", bound=BaseModel)


def json_body(request: HttpRequest, model: type[B]) -> B:
    """The JSON body of a call that also takes a form."""
    return validated(model, StrictParser().parse_body(request))


def validated(model: type[B], told: Any) -> B:
    """`told` as the model has it. Raises UserError that names each field that does not fit."""
    try:
        return model.model_validate(told)
    except ValidationError as error:
        faults = {".".join(str(part) for part in fault["loc"]) or "body": f"{fault['msg'].rstrip('.')}." for fault in error.errors()}
        raise UserError("Some values cannot be used.", fields=faults) from error


def only_known(run: Any) -> Callable[..., HttpResponseBase]:
    """Wraps an operation's `run`: a misspelt filter or form field is refused, where ninja would pass it over."""
    names = {source: names_of(run.__self__, source) for source in ("query", "form")}

    @wraps(run)
    def run_known(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        unknown = set(request.GET) - names["query"]
        if names["form"]:
            unknown |= set(request.POST) - names["form"]
        if unknown:
            raise UserError("Some values cannot be used.", fields=dict.fromkeys(sorted(unknown), "There is no such field."))
        response: HttpResponseBase = run(request, *args, **kwargs)
        return response

    return run_known


def names_of(operation: Operation, source: str) -> set[str]:
    """The names that an operation takes from its query or its form."""
    models = [model for model in operation.models if model.__ninja_param_source__ == source]
    return {name for model in models for name in model.__ninja_flatten_map__}


def named(rows: "QuerySet[M]", pk: UUID, *, field: str) -> M:
    """The row that a body names, among those that the caller may use. A foreign id and one that never was are the same refusal."""
    row = rows.filter(pk=pk).first()
    if row is None:
        text = "There is no such thing here. Look at the id."
        raise UserError("Something that the request names is not here.", fields={field: text}, code="unknown_id")
    return row
