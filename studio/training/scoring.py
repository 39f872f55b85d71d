"""What answers can be scored by: each metric's name, sentence and parameters. Computing them is `studio.ml.scores`'s."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import SchemaError

MOST = 8
"""Metrics of one comparison."""
LONGEST_PATTERN, LONGEST_SCHEMA, DEEPEST_SCHEMA = 500, 20_000, 32
DEEPEST = 100
"""Levels of anything in a schema: each of a schema's own takes two, and an example may be nested, too."""
TYPES = {"null", "boolean", "object", "array", "number", "string", "integer"}
Check = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_type(value: Any) -> bool:
    return all(isinstance(each, str) and each in TYPES for each in (value if isinstance(value, list) else [value]))


def is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def anything(_: Any) -> bool:
    return True


CHECKED: dict[str, Check] = {
    **dict.fromkeys(("$schema", "$comment", "title", "description", "default", "examples", "format", "const"), anything),
    "type": is_type,
    "enum": lambda value: isinstance(value, list),
    "required": is_names,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), is_number),
    "multipleOf": lambda value: is_number(value) and value > 0,
    **dict.fromkeys(("minProperties", "maxProperties", "minItems", "maxItems", "minContains", "maxContains"), is_count),
    **dict.fromkeys(("minLength", "maxLength"), is_count),
    "uniqueItems": lambda value: isinstance(value, bool),
    "pattern": lambda value: isinstance(value, str),
    "properties": lambda value: isinstance(value, dict),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), lambda value: isinstance(value, list) and bool(value)),
    **dict.fromkeys(("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"), anything),
}
"""Keywords of JSON Schema and what may stand there: those whose checks take no longer than schema times answer."""


def storable(value: Any, depth: int = 0) -> Any:
    """The value as it is. Raises ValueError for what PostgreSQL's JSON does not hold: U+0000, half characters, NaN, infinity."""
    if depth > DEEPEST:
        raise ValueError(f"It is nested deeper than {DEEPEST} levels.")
    if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("It holds a character that cannot be stored, such as U+0000. Write it without.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("It holds a number that is none, such as NaN. Write it without.")
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        storable(part, depth + 1)
    return value


Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), AfterValidator(storable)]


class Scored(BaseModel):
    """One metric of a comparison, as it is stored. Its score of an answer lies from 0 to 1, and more is better."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    label: ClassVar[str]
    sentence: ClassVar[str]

    kind: str
    name: str = Field("", max_length=40, pattern=r"^[a-z0-9_]*$")
    """What its scores are called in the results; empty takes the kind."""

    @model_validator(mode="before")
    @classmethod
    def named(cls, told: Any) -> Any:
        return told | {"name": told.get("name") or told.get("kind", "")} if isinstance(told, dict) else told


class ExactMatch(Scored):
    label: ClassVar[str] = "Exact match"
    sentence: ClassVar[str] = "Whether the answer is the expected one, but for case, punctuation, articles and spaces."

    kind: Literal["exact_match"] = "exact_match"


class WordF1(Scored):
    label: ClassVar[str] = "F1 of words"
    sentence: ClassVar[str] = "How many words the answer and the expected one have in common."

    kind: Literal["f1"] = "f1"


class RougeL(Scored):
    label: ClassVar[str] = "ROUGE-L"
    sentence: ClassVar[str] = "How much of the expected answer stands in the answer in the same order."

    kind: Literal["rouge_l"] = "rouge_l"


class JsonValid(Scored):
    label: ClassVar[str] = "Valid JSON"
    sentence: ClassVar[str] = "Whether the answer is JSON, and fits a schema where you give one."

    kind: Literal["json_valid"] = "json_valid"
    json_schema: dict[str, Any] | None = None
    """A JSON Schema (2020-12) without references; none asks for JSON alone."""

    @field_validator("json_schema")
    @classmethod
    def checkable(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            storable(schema)
            if len(json.dumps(schema)) > LONGEST_SCHEMA:
                raise ValueError(f"At most {LONGEST_SCHEMA:,} characters.")
            refuse_unbounded(schema)
        return schema


class Pattern(Scored):
    label: ClassVar[str] = "Regular expression"
    sentence: ClassVar[str] = "Whether a pattern is found in the answer."

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=LONGEST_PATTERN)
    """In the syntax of Rust's regex crate, which knows no lookaround and no references back; `(?i)` in front ignores case."""

    @field_validator("pattern")
    @classmethod
    def readable(cls, pattern: str) -> str:
        finder(storable(pattern))
        return pattern


class Accuracy(Scored):
    label: ClassVar[str] = "Accuracy of labels"
    sentence: ClassVar[str] = "Whether the first label that the answer names is the expected one."

    kind: Literal["accuracy"] = "accuracy"
    labels: list[Label] = Field(default=[], max_length=200)
    """What an answer can be; none takes the different expected answers."""


class Judge(Scored):
    label: ClassVar[str] = "Judge model"
    sentence: ClassVar[str] = (
        "The grade from 1 to 5 that a model gives the answer beside the expected one. "
        "It is an opinion: such models favour long answers and their own, and small ones grade by little more than chance."
    )

    kind: Literal["judge"] = "judge"
    model: str = Field(pattern=r"^(base|release):[0-9a-f-]{36}$")
    """A base model or a release of the workspace: `base:<id>` or `release:<id>`."""


Metric = Annotated[ExactMatch | WordF1 | RougeL | JsonValid | Pattern | Accuracy | Judge, Field(discriminator="kind")]
KINDS: dict[str, type[Scored]] = {
    "exact_match": ExactMatch,
    "f1": WordF1,
    "rouge_l": RougeL,
    "json_valid": JsonValid,
    "regex": Pattern,
    "accuracy": Accuracy,
    "judge": Judge,
}
"""As a form offers them."""
_metrics: TypeAdapter[list[Metric]] = TypeAdapter(Annotated[list[Metric], Field(max_length=MOST)])


def metrics_of(told: Sequence[Any]) -> list[Metric]:
    """The stored metrics. Raises pydantic's ValidationError, and ValueError for two of one name."""
    found = _metrics.validate_python(list(told))
    names = [metric.name for metric in found]
    if len(set(names)) < len(names):
        raise ValueError("Two metrics have the same name. Give each its own.")
    return found


def finder(pattern: str) -> Callable[[str], bool]:
    """Whether a pattern is found in a text. Raises ValueError for one that cannot be read.

    It is pydantic's own engine, which is Rust's: its time grows with the text alone, so no pattern can make it hang
    (R. Cox, "Regular Expression Matching Can Be Simple And Fast", 2007), and one that needs much memory is refused.
    """
    try:
        adapter: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError as error:
        raise ValueError("It cannot be read: lookaround, references back and very large repeats are not known.") from error

    def found(text: str) -> bool:
        try:
            adapter.validate_python(text)
        except ValidationError:
            return False
        return True

    return found


def refuse_unbounded(schema: Any, depth: int = 0) -> None:
    """Raises ValueError for a schema whose check could take for ever, or would fetch something."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError("A schema is an object.")
    if depth > DEEPEST_SCHEMA:
        raise ValueError(f"It is nested deeper than {DEEPEST_SCHEMA} levels.")
    for name, value in schema.items():
        if name not in CHECKED:
            raise ValueError(f"{name[:60]} is not supported. Write the schema without it.")
        if not CHECKED[name](value):
            raise ValueError(f"{name} cannot be {json.dumps(value)[:60]}.")
    if "pattern" in schema:
        finder(schema["pattern"])
    for child in schema.get("properties", {}).values():
        refuse_unbounded(child, depth + 1)
    for name in ("allOf", "anyOf", "oneOf", "prefixItems"):
        for child in schema.get(name, ()):
            refuse_unbounded(child, depth + 1)
    for name in ("additionalProperties", "propertyNames", "items", "contains", "not", "if", "then", "else"):
        if name in schema:
            refuse_unbounded(schema[name], depth + 1)
