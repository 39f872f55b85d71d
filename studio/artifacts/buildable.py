"""What cannot be built, said before anything runs: with a sentence, beside the field that it is about."""

import json
from typing import Any

from studio.artifacts.models import Artifact, Build
from studio.artifacts.quantizations import QUANTIZATIONS, refuse_unknown, refuse_unsupported, uses_importance
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.training import ModelFacts

LARGEST_CONFIG = 1 << 20
CONFIG = "adapter_config.json"
MERGED_ONLY = {
    "use_dora": "DoRA",
    "modules_to_save": "layers that were trained in full",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "adapters on single parameters",
    "layer_replication": "replicated layers",
    "lora_bias": "trained biases",
}
"""Settings of an adapter that llama.cpp cannot add to a running model, in words."""


def refuse(source: Artifact | None, base_model: BaseModel | None, *, kind: str, names: list[str], importance: bool) -> None:
    """Raises UserError where this cannot be built from a `source`, or from a base model as it is."""
    refuse_unsupported(facts_of(source, base_model))
    _refuse_kind(source, kind)
    refuse_unknown(kind, names)
    if importance:
        _refuse_importance(source, kind, names)


def facts_of(source: Artifact | None, base_model: BaseModel | None) -> ModelFacts:
    """Facts of the base model that everything is built on. Raises UserError for what no file is built from."""
    if source is not None and not source.is_chattable:
        raise UserError(f"A file is built from an adapter or a model; this is a {source.get_kind_display().lower()}.")
    base = source.base_model if source else base_model
    if base is None or not base.is_ready:
        raise UserError("This base model is not here yet. Wait until it has been read, then build from it.")
    return base.model_facts


def kinds_of(source: Artifact | None) -> list[str]:
    """What can be built from it, the usual first."""
    if source is None or source.kind != Artifact.Kind.ADAPTER:
        return [Build.Kind.GGUF]
    kinds = [Build.Kind.GGUF, Build.Kind.GGUF_ADAPTER, Build.Kind.MERGED]
    return [kind for kind in kinds if kind != Build.Kind.GGUF_ADAPTER or not merged_only(source)]


def merged_only(adapter: Artifact) -> list[str]:
    """What it holds that llama.cpp cannot add to a running model, in words; empty where it can be a file of its own.

    What stands in a config that cannot be read is found by the worker, which reads the weights too.
    """
    config = adapter_config(adapter)
    held = [words for key, words in MERGED_ONLY.items() if config.get(key)]
    return held + (["trained biases"] if config.get("bias", "none") != "none" and not config.get("lora_bias") else [])


def adapter_config(adapter: Artifact) -> dict[str, Any]:
    file = adapter.folder / CONFIG
    if CONFIG not in adapter.files or not file.is_file() or file.stat().st_size > LARGEST_CONFIG:
        return {}
    try:
        config = json.loads(file.read_text())
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _refuse_kind(source: Artifact | None, kind: str) -> None:
    text = ""
    if kind == Build.Kind.GGUF_ADAPTER and (source is None or source.kind != Artifact.Kind.ADAPTER):
        text = "A GGUF adapter is built from an adapter. Of a whole model, build a GGUF file."
    elif kind == Build.Kind.MERGED and (source is None or source.kind != Artifact.Kind.ADAPTER):
        text = "There is nothing to merge: this is a whole model already. Build a GGUF file of it, or download it as it is."
    elif kind == Build.Kind.GGUF_ADAPTER and source and (held := merged_only(source)):
        text = f"The adapter holds {', '.join(held)}, which llama.cpp cannot add to a running model. Build a GGUF file instead."
    if text:
        raise UserError(text, fields={"kind": text})


def _refuse_importance(source: Artifact | None, kind: str, names: list[str]) -> None:
    text = ""
    if not any(uses_importance(kind, name) for name in names):
        known = [name for name, entry in QUANTIZATIONS.items() if entry.importance]
        text = f"The importance of weights changes none of these types. It is used by {', '.join(known)}."
    elif source is None or source.dataset_version is None:
        text = "Which weights matter is measured on training rows, and this was made from none. Build it without."
    if text:
        raise UserError(text, fields={"importance": text})
