"""Which models and adapters vLLM can answer with, by their files alone. What it cannot put on must be refused before it answers wrongly."""

import json
from pathlib import Path

from studio.errors import UserError

PLAIN = ("lora_A.weight", "lora_B.weight")
TABLES = ("embed_tokens", "lm_head", "wte", "embed_out")
"""Names of the tables of words and of the output layer, beside which vLLM puts nothing."""


def obstacle_of_base(base: Path) -> str:
    """Why vLLM cannot load it, as a sentence; "" where nothing is known against it."""
    if not base.is_dir():
        return "vLLM does not run GGUF files."
    return "" if (base / "config.json").is_file() else "The folder holds no model that vLLM can load."


def obstacle_of_adapter(adapter: Path, *, most: int) -> str:
    """Why vLLM cannot put it on a base as it is; "" where it can. `most` is the largest rank that the server was started for.

    vLLM refuses some of this itself. Of ranks and scales by layer it reads nothing, and would answer with wrong weights without a word.
    """
    from studio.ml.gguf.changes import Stored  # numpy, and only the engine's process needs it
    from studio.ml.gguf.peft_settings import read_settings

    if not adapter.is_dir():
        return "vLLM puts on no adapter that is a GGUF file."
    try:
        settings = read_settings(adapter)
        stored = Stored(adapter / "adapter_model.safetensors")
    except UserError as error:
        return error.message
    except OSError:
        return "The adapter has no adapter_model.safetensors."
    with_tables = [name for name in stored.places if any(f".{table}." in name for table in TABLES)]
    unknown = [name for name in stored.places if not name.endswith(PLAIN)]
    stored.close()
    if settings.peft_type != "LORA" or settings.use_dora:
        return "vLLM puts on plain LoRA and rsLoRA, not DoRA."
    if settings.modules_to_save or settings.trainable_token_indices or settings.token_indices or with_tables or unknown:
        return "vLLM puts on no adapter that trained tables or layers of its own."
    if settings.rank_pattern or settings.alpha_pattern or settings.fan_in_fan_out:
        return "vLLM reads no ranks and scales by layer."
    if settings.r > most:
        return f"Its rank is {settings.r}, and this vLLM was started for ranks up to {most}."
    return ""


def keys_and_values(base: Path) -> int:
    """Bytes that one token of a conversation takes in 16 bits: two vectors for each head that has its own, in each layer; 0 where the model
    does not say it.
    """
    try:
        config = json.loads((base / "config.json").read_bytes())
        text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
        layers, heads = int(text["num_hidden_layers"]), int(text["num_attention_heads"])
        own = int(text.get("num_key_value_heads") or heads)
        return 2 * 2 * layers * own * int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    except (OSError, ValueError, AttributeError, RecursionError, KeyError, TypeError, ZeroDivisionError):
        return 0


def context_of(base: Path, *, most: int) -> int:
    """Tokens of one conversation: what the model was made for, at most `most`."""
    try:
        config = json.loads((base / "config.json").read_bytes())
        text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
        found = text.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError, RecursionError):
        return most
    return min(most, found) if isinstance(found, int) and found > 0 else most


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file())
