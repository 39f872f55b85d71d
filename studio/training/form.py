"""From a plugin's Config to form fields, and from what was typed back to a Config or plain sentences. No HTML here."""

import difflib
import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from studio.training.config import TrainConfig

C = TypeVar("C", bound=TrainConfig)
FieldKind = Literal["number", "integer", "choice", "text", "list", "pairs", "bool"]

# float() and int() also take "1_000", "nan", "١٢" and spaces in odd places: only these spellings are numbers here.
INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?", re.ASCII)
YES, NO = {"on", "true", "1", "yes"}, {"", "off", "false", "0", "no"}
LONGEST_TEXT = 10_000


@dataclass(frozen=True)
class FormField:
    """One setting as a form shows it."""

    name: str
    label: str
    kind: FieldKind
    default: Any
    help: str = ""
    """The sentence under the field."""
    hint: str = ""
    """What the term means, in one sentence."""
    unit: str = ""
    advanced: bool = False
    optional: bool = False
    """True where an empty field means None."""
    choices: tuple[str, ...] = ()
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    log: bool = False
    """Whether its multiples matter, not its differences."""
    search: tuple[float, float] | None = None
    """Between which values it is worth looking for the best."""

    @property
    def text(self) -> str:
        """The default as a person would type it."""
        return as_text(self.default)

    @property
    def rule(self) -> str:
        """What may stand in it, as a sentence."""
        if self.kind == "integer":
            return f"{self.label} must be a whole number{self._range(whole=True)}."
        if self.kind == "number":
            return f"Must be{self._range(whole=False) or ' a number'}."
        if self.kind == "choice":
            return f"{self.label} must be one of {', '.join(self.choices)}."
        if self.kind == "bool":
            return f"{self.label} must be on or off."
        if self.kind == "list":
            return f"{self.label} must be names, separated by commas or spaces."
        if self.kind == "pairs":
            return f"{self.label} must be names with a number each, such as q_proj: 8, v_proj: 16."
        return f"{self.label} must be text of at most {LONGEST_TEXT:,} characters."

    def _range(self, *, whole: bool) -> str:
        low = f"above {figure(self.gt)}" if self.gt is not None else f"at least {figure(self.ge)}" if self.ge is not None else ""
        high = f"below {figure(self.lt)}" if self.lt is not None else f"at most {figure(self.le)}" if self.le is not None else ""
        if self.ge is not None and self.le is not None and self.gt is None and self.lt is None:
            return f" from {figure(self.ge)} to {figure(self.le)}"
        words = " and ".join(part for part in (low, high) if part)
        if whole and words.startswith("at "):
            words = f"of {words}"
        return f" {words}" if words else ""


def figure(value: float | None) -> str:
    """A bound for the eye: 0.1, 512, 4 294 967 295 (narrow no-break spaces from 10 000 on)."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(int(value))
    return f"{value:g}"


def as_text(value: Any) -> str:
    """A setting's value as a person would type it: 0.0002, not 2e-04; names with commas; on or off."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return plain_float(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {as_text(number)}" for name, number in value.items())
    return str(value)


def plain_float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    short = repr(value)
    if "e" in short and 1e-12 < abs(value) < 1e15:
        digits = len(short.split("e")[0].replace("-", "").replace(".", "")) - 1
        short = f"{value:.{max(0, digits - math.floor(math.log10(abs(value))))}f}"
    return short.removesuffix(".0")


def form_fields(config_class: type[TrainConfig]) -> list[FormField]:
    """Every setting of a Config, in the order in which it was written.

    Raises TypeError for a setting whose type no form can draw or that has no default.
    """
    return [form_field(name, info) for name, info in config_class.model_fields.items()]


def form_field(name: str, info: FieldInfo) -> FormField:
    if info.is_required():
        raise TypeError(f"The setting {name} has no default.")
    kind, choices, optional = drawn_as(name, info.annotation)
    shown = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    return FormField(
        name=name,
        label=str(shown.get("label") or name.replace("_", " ").capitalize()),
        kind=kind,
        default=info.get_default(call_default_factory=True, validated_data={}),
        help=" ".join((info.description or "").split()),
        hint=str(shown.get("hint") or ""),
        unit=str(shown.get("unit") or ""),
        advanced=bool(shown.get("advanced")),
        optional=optional,
        choices=choices,
        log=bool(shown.get("log")),
        search=search_of(shown),
        **bounds_of(info),
    )


def search_of(shown: Mapping[str, Any]) -> tuple[float, float] | None:
    told = shown.get("search")
    return (float(told[0]), float(told[1])) if isinstance(told, list) and len(told) == 2 and told[0] < told[1] else None


def drawn_as(name: str, annotation: Any) -> tuple[FieldKind, tuple[str, ...], bool]:
    """(kind, choices, may be empty) of a type."""
    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if len(parts) == 1:
            annotation, optional = parts[0], True
    if get_origin(annotation) is Literal and all(isinstance(choice, str) for choice in get_args(annotation)):
        return "choice", get_args(annotation), optional
    kinds: dict[Any, FieldKind] = {bool: "bool", int: "integer", float: "number", str: "text", list[str]: "list"}
    kinds |= {dict[str, int]: "pairs", dict[str, float]: "pairs"}
    if annotation not in kinds:
        raise TypeError(f"The setting {name} has the type {annotation}, which no form can draw.")
    return kinds[annotation], (), optional


def bounds_of(info: FieldInfo) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for constraint in info.metadata:
        for kind, key in ((annotated_types.Ge, "ge"), (annotated_types.Gt, "gt"), (annotated_types.Le, "le"), (annotated_types.Lt, "lt")):
            if isinstance(constraint, kind):
                bounds[key] = getattr(constraint, key)
    return bounds


def parse_form(config_class: type[C], typed: dict[str, str]) -> tuple[C | None, dict[str, str]]:
    """(config, {}) or (None, {field: sentence}) of what a form sent.

    A setting that was not sent keeps its default; a name that is no setting is ignored. A switch sends "on" or "off".
    """
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for field in form_fields(config_class):
        if field.name not in typed:
            continue
        try:
            values[field.name] = typed_value(field, typed[field.name])
        except ValueError:
            errors[field.name] = field.rule
    config, judged = check_config(config_class, values)
    errors = {**judged, **errors}
    return (None, errors) if errors else (config, {})


def typed_value(field: FormField, text: str) -> Any:
    """What a person typed, as the field's type. Raises ValueError where it is not one."""
    text = text.strip()
    if not text and field.optional:
        return None
    if field.kind == "integer":
        if not INTEGER.fullmatch(text):
            raise ValueError(text)
        return int(text)
    if field.kind == "number":
        if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            raise ValueError(text)
        return float(text)
    if field.kind == "bool":
        if text.lower() not in YES | NO:
            raise ValueError(text)
        return text.lower() in YES
    if field.kind == "list":
        return [name for name in text.replace(",", " ").split() if name]
    if field.kind == "pairs":
        return dict(_pair(part) for part in re.split(r"[,;\n]", text) if part.strip())
    if len(text) > LONGEST_TEXT:
        raise ValueError(text)
    return text


def _pair(text: str) -> tuple[str, int | float]:
    """`q_proj: 8` or `q_proj = 8`, as a name and a number. Raises ValueError for anything else."""
    name, number = (part.strip() for part in re.split("[:=]", text, maxsplit=1))
    if INTEGER.fullmatch(number):
        return name, int(number)
    if not NUMBER.fullmatch(number):
        raise ValueError(text)
    return name, float(number)


def check_config(config_class: type[C], values: dict[str, Any]) -> tuple[C | None, dict[str, str]]:
    """(config, {}) or (None, {field: sentence}) of JSON values, as the API, a file or an order brings them.

    Strict: "16" and true are no whole numbers, and a name that is no setting is an error.
    """
    try:
        return config_class.model_validate(values, strict=True), {}
    except ValidationError as error:
        return None, explain(error, config_class)


def explain(error: ValidationError, config_class: type[TrainConfig]) -> dict[str, str]:
    """`{field: sentence}` of what pydantic refused; a rule about several settings at once stands under ""."""
    fields = {field.name: field for field in form_fields(config_class)}
    sentences: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        sentences.setdefault(name, sentence(name, fault, fields))
    return sentences


def sentence(name: str, fault: Any, fields: dict[str, FormField]) -> str:
    if fault["type"] == "extra_forbidden":
        return unknown_setting(name, list(fields))
    if fault["type"] in ("value_error", "assertion_error"):
        return str(fault["ctx"]["error"])  # a plugin's own rule speaks for itself
    field = fields.get(name)
    if field is None:
        return str(fault["msg"])
    own_bounds = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "literal_error"}
    if fault["type"] in own_bounds or fault["type"].endswith(("_type", "_parsing", "_from_float", "_size")):
        return field.rule
    return f"{field.label}: {fault['msg']}."


def unknown_setting(name: str, known: list[str]) -> str:
    shown = json.dumps(name[:60], ensure_ascii=False)
    close = difflib.get_close_matches(name[:60], known, n=1)
    return f"There is no setting {shown}. Did you mean {close[0]}?" if close else f"There is no setting {shown}. Leave it out."
