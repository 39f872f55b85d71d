"""What stands beside the weights of a merged model: config.json, the tokenizer, how answers are written. Known names only, no links."""

import json
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.gguf.lora import Adapter
from studio.ml.gguf.peft_settings import read_plain
from studio.ml.gguf.shards import Precision
from studio.ml.modelconfig import write_json
from studio.ml.modelfiles import TOKENIZER_FILES

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
LARGEST_SMALL = 256 << 20
TEMPLATE, TOKENIZER_CONFIG, GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
CODE_KEYS = ("auto_map", "custom_pipelines", "_name_or_path")
"""Keys that name code or a folder of whoever saved the model."""


def read_config(base: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(read_plain(base / "config.json", most=LARGEST_SMALL))
        quantized = config.get("quantization_config")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError("The base model has no readable config.json. Register it again.") from error
    if quantized:
        raise UserError("The base model's weights are quantized already. Register the unquantized model and build from that.")
    return config


def write_settings(room: Path, base: Path, config: dict[str, Any], changes: Adapter, precision: Precision) -> None:
    write_json(room / "config.json", _new_config(config, changes, precision))
    _copy(base, room, GENERATION)
    words = changes.tokenizer or base
    for name in TOKENIZER_FILES:
        _copy(words, room, name)
    settings = _tokenizer_config(room / TOKENIZER_CONFIG)
    if any(key in settings for key in CODE_KEYS):
        write_json(room / TOKENIZER_CONFIG, {key: value for key, value in settings.items() if key not in CODE_KEYS})
    if not _copy(words, room, TEMPLATE) and not settings.get("chat_template"):
        _copy(base, room, TEMPLATE)


def _tokenizer_config(file: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(file.read_bytes()) if file.exists() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} cannot be read. Fetch or train the model again.") from error
    return found if isinstance(found, dict) else {}


def _new_config(config: dict[str, Any], changes: Adapter, precision: Precision) -> dict[str, Any]:
    # the first is what transformers writes today, the second what it and others read for years
    found = {key: value for key, value in config.items() if key not in CODE_KEYS} | {"dtype": DTYPES[precision]}
    found["torch_dtype"] = DTYPES[precision]
    inner = found.get("text_config")
    for settings in [found, inner] if isinstance(inner, dict) else [found]:
        if changes.rows is not None and "vocab_size" in settings:
            settings["vocab_size"] = changes.rows
        if changes.untied and (settings is found or "tie_word_embeddings" in settings):
            settings["tie_word_embeddings"] = False
        for key in ("dtype", "torch_dtype"):
            if key in settings:
                settings[key] = DTYPES[precision]
    return found


def _copy(source: Path, target: Path, name: str) -> bool:
    try:
        content = read_plain(source / name, most=LARGEST_SMALL)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{name} is a link, or too large to be what it says. Fetch or train the model again.") from error
    (target / name).write_bytes(content)
    return True
