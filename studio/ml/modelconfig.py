"""Settings of a stranger's model, rebuilt from what is known to be harmless. Weights and tokens are read elsewhere.

Keys in these files can make libraries import code (`auto_map`, `_attn_implementation`, `quantization_config`), so none is passed on as it
came: config.json loses every such key at every depth, the other two are written anew from a list of keys.
"""

import json
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.modelfacts import causal_architecture

CODE_KEYS = {"auto_map", "custom_pipelines", "trust_remote_code", "attn_implementation", "quantization_config"}
GENERATION_KEYS = ("bos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty")
TOKENIZER_KEYS = ("model_max_length", "add_bos_token", "add_eos_token", "chat_template")
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
DEEPEST = 16


def clean_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without a key that names code. Raises UserError where the model cannot do without, or is no language model we know."""
    if "auto_map" in config:
        raise UserError(
            "This model brings code of its own (auto_map in config.json), which this server never runs. "
            "Choose a model that the transformers library knows by itself."
        )
    architecture = causal_architecture(config)
    if architecture not in known_architectures(str(config.get("model_type", ""))):
        raise UserError(f"The transformers library of this server does not know {architecture[:80]}. Choose another model.")
    cleaned: dict[str, Any] = _without_code(config, depth=0)
    return cleaned


def known_architectures(family: str) -> tuple[str, ...]:
    """The causal classes that transformers itself has for a model_type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(family, ())
    return (found,) if isinstance(found, str) else tuple(found)


def clean_generation_config(given: dict[str, Any], *, config: dict[str, Any], ends: list[int]) -> dict[str, Any]:
    """generation_config.json from the keys that are known. `ends`, which close a turn, stand before the ids that it names."""
    found = {key: given[key] for key in GENERATION_KEYS if isinstance(given.get(key), int | float)}
    for key in ("bos_token_id", "pad_token_id"):
        if key not in found and type(config.get(key)) is int:
            found[key] = config[key]
    named = given.get("eos_token_id", config.get("eos_token_id"))
    listed = [number for number in (named if isinstance(named, list) else [named]) if type(number) is int]
    every = list(dict.fromkeys([*ends, *listed]))
    return {**found, "eos_token_id": every[0] if len(every) == 1 else every}


def clean_tokenizer_config(given: dict[str, Any], *, named: dict[str, Any], eos: str | None) -> dict[str, Any]:
    """tokenizer_config.json for the plain fast class, which reads tokenizer.json as it stands.

    `named` is special_tokens_map.json, where older models name their tokens; `eos` is used where neither names one.
    """
    found = {key: given[key] for key in TOKENIZER_KEYS if isinstance(given.get(key), int | str | bool | list)}
    for token in TOKENS:
        text = _text(given.get(token)) or _text(named.get(token)) or (eos if token == "eos_token" else None)
        if text:
            found[token] = text
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **found}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def _without_code(value: Any, *, depth: int) -> Any:
    if depth > DEEPEST:
        raise UserError("config.json is nested too deeply. Fetch the model again.")
    if isinstance(value, dict):
        kept = (key for key in value if key not in CODE_KEYS and not key.startswith("_"))
        return {key: _without_code(value[key], depth=depth + 1) for key in kept}
    if isinstance(value, list):
        return [_without_code(inner, depth=depth + 1) for inner in value]
    return value


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None
