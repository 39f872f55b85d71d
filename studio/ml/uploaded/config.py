"""A stranger's adapter_config.json, rebuilt: what counts is taken from a list of known settings and checked, all else is left out and told.

peft obeys settings that name modules to import and files to fetch; none of those gets here (peft issue 3085).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.errors import UserError
from studio.ml.gguf.peft_settings import Number, Rank, Settings

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}", re.ASCII)
MEANINGLESS: dict[str, Any] = {"qalora_group_size": 16, "megatron_core": "megatron.core"}
"""What peft writes of itself though it means nothing where nothing else does."""
SILENT = {
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "unsloth_fixed", "loftq_config", "task_type",
    "layers_to_transform", "layers_pattern", "exclude_modules", "ensure_weight_tying", "lora_bias",
}  # fmt: skip
"""Says where the adapter comes from, or which layers it has, and that is seen from its weights."""

N = TypeVar("N", int, float)


class Known(BaseModel):
    """The settings that an adapter's numbers depend on."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str = "LORA"
    r: Rank = 8
    lora_alpha: Number = 8
    lora_dropout: Number = 0.0
    bias: str = "none"
    use_rslora: bool | None = False
    use_dora: bool | None = False
    fan_in_fan_out: bool | None = False
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Number] | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    target_modules: list[str] | str | None = None


class Rebuilt(BaseModel):
    settings: dict[str, Any]
    """What is written as adapter_config.json, but for what `of_layers` says."""
    left_out: list[str]
    """Names of settings that said something and were not taken over."""
    made_with: str
    """Unsloth or PEFT with its version, as far as the file tells."""
    says_base: str
    """The base model that it says it was trained on; a claim."""


def parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError("adapter_config.json is not valid JSON. Upload the file that lies beside the weights.") from error
    if not isinstance(found, dict):
        raise UserError("adapter_config.json holds no settings. Upload the file that lies beside the weights.")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def rebuild(given: dict[str, Any]) -> Rebuilt:
    """Raises UserError where a setting has a value that it cannot have. What is refused as a whole is refused by `peft_settings`."""
    try:
        known = Known.model_validate(given)
    except ValidationError as error:
        wrong = ".".join(str(part) for part in error.errors()[0]["loc"])[:60]
        raise UserError(f"adapter_config.json has a value for {wrong} that it cannot have.") from error
    if not 0 <= known.lora_dropout < 1 or known.bias not in ("none", "all", "lora_only"):
        raise UserError("adapter_config.json has a dropout or a bias that it cannot have.")
    for name in known.modules_to_save or []:
        if not PLAIN.fullmatch(name):
            raise UserError("adapter_config.json names modules in a way that no module is named.")
    settings = known.model_dump(exclude_none=True, exclude={"target_modules", "rank_pattern", "alpha_pattern"})
    if isinstance(settings.get("init_lora_weights"), str):
        settings["init_lora_weights"] = True  # how it began no longer matters; what would, was refused
    known_names = {*Known.model_fields, *SILENT}
    left_out = [name[:60] for name, value in given.items() if name not in known_names and value and value != MEANINGLESS.get(name)]
    return Rebuilt(
        settings=settings, left_out=sorted(left_out), made_with=_made_with(given), says_base=_words(given.get("base_model_name_or_path"))
    )


def of_layers(given: Settings, layers: list[str]) -> dict[str, Any]:
    """Which layers a product is added to, and their ranks and scales, said of these layers by their whole names and of no others.

    peft makes matrices for whatever a name or a pattern fits, of the rank that it says, and looks for patterns in every name.
    """
    ranks = {layer: given.rank(layer) for layer in layers}
    alphas = {layer: given.alpha(layer) for layer in layers}
    largest = max(ranks.values(), default=given.r)
    patterns = {"rank_pattern": _that_differ(ranks, largest), "alpha_pattern": _that_differ(alphas, given.lora_alpha)}
    return {"target_modules": layers, "r": largest} | {key: found for key, found in patterns.items() if found}


def _that_differ(values: Mapping[str, N], usual: N) -> dict[str, N]:
    """By a pattern for its whole name, each layer that has another value than usual, or whose name ends in the name of one that has.

    peft takes the first pattern that fits the end of a name, so longer names stand first.
    """
    different = {layer for layer, value in values.items() if value != usual}
    named = [layer for layer in values if any(end in different for end in _ends(layer))]
    return {re.escape(layer): values[layer] for layer in sorted(named, key=lambda layer: (-len(layer), layer))}


def _ends(layer: str) -> list[str]:
    """The name itself, and what is left of it behind each dot."""
    parts = layer.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _made_with(given: dict[str, Any]) -> str:
    mapping = given.get("auto_mapping")
    if given.get("unsloth_fixed") or (isinstance(mapping, dict) and "unsloth" in str(mapping).lower()):
        return "Unsloth"
    version = _words(given.get("peft_version"))
    return f"PEFT {version}" if version else ""


def _words(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:120]
