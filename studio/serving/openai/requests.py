"""What the endpoint is asked, as OpenAI's API has it: every field typed and bounded, unknown ones refused.

Fields of OpenAI's that change nothing of an answer here (metadata, store, service_tier, ...) are taken and do nothing; those that would
change it and cannot be done are refused by name.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from studio.serving.openai.errors import Refused, invalid
from studio.serving.openai.schemas import Unfit, look_through

LONGEST_TEXT, MOST_MESSAGES, MOST_PARTS = 1_000_000, 1000, 200
LONGEST_ANSWER = 131_072
MOST_ASKS = 32
"""Answers of one request: prompts times `n`."""
MOST_INPUTS = 256

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
JSONSchema = dict[str, Any]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Part(Strict):
    type: Literal["text"]
    text: Text


def parts_or_text(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Part], Field(min_length=1, max_length=MOST_PARTS), Tag("<parts>")],
    Discriminator(parts_or_text),
]


class Instruction(Strict):
    role: Literal["system", "developer"]
    content: Content
    name: Annotated[str, Field(max_length=64)] | None = None


class Question(Strict):
    role: Literal["user"]
    content: Content
    name: Annotated[str, Field(max_length=64)] | None = None


class CalledFunction(Strict):
    name: Name
    arguments: Text


class ToolCall(Strict):
    id: Annotated[str, Field(max_length=100)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Answer(Strict):
    """An earlier answer; the fields below `tool_calls` are such as clients send back from what they got."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolResult(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(max_length=100)]


class OtherRole(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]


def role_of(value: Any) -> str:
    role = value.get("role") if isinstance(value, dict) else None
    known = {"system": "<system>", "developer": "<system>", "user": "<user>", "assistant": "<assistant>", "tool": "<tool>"}
    return known.get(role, "<other>") if isinstance(role, str) else "<other>"


Message = Annotated[
    Annotated[Instruction, Tag("<system>")]
    | Annotated[Question, Tag("<user>")]
    | Annotated[Answer, Tag("<assistant>")]
    | Annotated[ToolResult, Tag("<tool>")]
    | Annotated[OtherRole, Tag("<other>")],
    Discriminator(role_of),
]


def fit(schema: JSONSchema | None) -> JSONSchema | None:
    try:
        if schema is not None:
            look_through(schema)
    except Unfit as problem:
        raise PydanticCustomError("unfit_schema", "{reason}", {"reason": str(problem)}) from problem
    return schema


class Function(Strict):
    name: Name
    description: Annotated[str, Field(max_length=20_000)] | None = None
    parameters: JSONSchema | None = None
    strict: bool | None = None

    bounded = field_validator("parameters")(fit)


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: Name


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<named>")],
    Discriminator(lambda value: "<named>" if isinstance(value, dict) else "<word>"),
]


class NamedSchema(Strict):
    name: Name
    description: Annotated[str, Field(max_length=20_000)] | None = None
    schema_: JSONSchema | None = Field(None, alias="schema")
    strict: bool | None = None

    bounded = field_validator("schema_")(fit)


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def upstream(self) -> dict[str, Any] | None:
        if self.type == "text":
            return None
        if self.json_schema is None or self.type == "json_object":
            return {"type": "json_object"}
        return {"type": "json_schema", "json_schema": {"name": self.json_schema.name, "schema": self.json_schema.schema_ or {}}}


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Asking(Strict):
    """What every question has."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    user: Annotated[str, Field(max_length=512)] | None = None


class Sampled(Asking):
    """What every question has whose answer is drawn token by token."""

    max_tokens: int | None = Field(None, ge=1, le=LONGEST_ANSWER)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=8)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=4), Tag("<parts>")],
            Discriminator(parts_or_text),
        ]
        | None
    ) = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: (
        Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
        | None
    ) = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampled):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1, le=LONGEST_ANSWER)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    # Taken, and of no effect here.
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=40)] | None = None
    reasoning_effort: Annotated[str, Field(max_length=40)] | None = None
    verbosity: Annotated[str, Field(max_length=40)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    # OpenAI's, and not done here.
    audio: None = None
    functions: None = None
    function_call: None = None
    prediction: None = None
    web_search_options: None = None


Prompts = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[Text], Field(min_length=1, max_length=MOST_ASKS), Tag("<parts>")],
    Discriminator(parts_or_text),
]


class CompletionRequest(Sampled):
    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(Asking):
    input: Annotated[
        Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT), Tag("<text>")]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]],
            Field(min_length=1, max_length=MOST_INPUTS),
            Tag("<parts>"),
        ],
        Discriminator(parts_or_text),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


Asked = TypeVar("Asked", bound=Asking)


def read(kind: type[Asked], sent: dict[str, Any]) -> Asked:
    """Raises Refused for the first thing that is wrong, as OpenAI does."""
    try:
        asked = kind.model_validate(sent)
    except ValidationError as problem:
        raise refusal(problem.errors(include_url=False, include_context=True)[0]) from problem
    refuse_together(asked)
    return asked


def refuse_together(asked: Asking) -> None:
    """What fits by itself, and not with the rest."""
    if isinstance(asked, Sampled) and asked.stream_options is not None and not asked.stream:
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    if isinstance(asked, ChatRequest):
        if asked.tool_choice is not None and not asked.tools:
            raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
        names = {tool.function.name for tool in asked.tools or []}
        if isinstance(asked.tool_choice, NamedTool) and asked.tool_choice.function.name not in names:
            raise invalid(f"Tool choice '{asked.tool_choice.function.name}' is not among 'tools'.", "tool_choice")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise invalid("'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs")
        if asked.response_format and asked.response_format.type == "json_schema" and asked.response_format.json_schema is None:
            raise invalid(
                "Missing required parameter: 'response_format.json_schema'.",
                "response_format.json_schema",
                code="missing_required_parameter",
            )
    if isinstance(asked, CompletionRequest):
        if asked.echo and asked.logprobs is not None:
            raise invalid("The prompt's own logprobs cannot be told. Leave out 'echo' or 'logprobs'.", "echo", code="unsupported_parameter")
        if len(asked.prompts) * (asked.n or 1) > MOST_ASKS:
            raise invalid(f"At most {MOST_ASKS} answers can be asked for at once: prompts times 'n'.", "n")


NAMES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a decimal", type(None): "null"}
WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def refusal(fault: ErrorDetails) -> Refused:
    """One of pydantic's errors in OpenAI's words."""
    param, kind, value = param_of(fault["loc"]), fault["type"], fault["input"]
    context = fault.get("ctx", {})
    if kind == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param, code="unknown_parameter")
    if kind == "none_required":
        return invalid(f"'{param}' is not supported here. Leave it out.", param, code="unsupported_parameter")
    if kind in WANTED:
        message = f"Invalid type for '{param}': expected {WANTED[kind]}, but got {NAMES.get(type(value), 'something else')} instead."
        return invalid(message, param, code="invalid_type")
    if kind == "literal_error":
        shown = repr(value)[:100] if isinstance(value, str | int) else NAMES.get(type(value), "something else")
        return invalid(f"Invalid value for '{param}': {shown}. Supported values are: {context['expected']}.", param)
    if kind == "unfit_schema":
        return invalid(f"Invalid schema for '{param}': {fault['msg']}", param, code="invalid_json_schema")
    return invalid(f"Invalid value for '{param}': {fault['msg'][:1].lower()}{fault['msg'][1:].rstrip('.')}.", param)


def param_of(place: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].type`."""
    said = ""
    for step in place:
        if isinstance(step, int):
            said += f"[{step}]"
        elif not step.startswith("<") and step != "[key]":
            said += f".{step}" if said else step
    return said[:200] or "body"
