"""Loads what a release is made of, a whole model or an adapter on its base, to be measured and asked. On the CPU, and never to learn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from studio.errors import UserError
from studio.ml.loading import Arithmetic, load_base
from studio.ml.tokens import load_tokenizer
from studio.training.orders import EvaluatedModel
from studio.worker.host import memory_size

HELD = 1.25
"""Memory beside the weights, as a share of them, for what is computed."""
LEAST = 600_000_000
"""Bytes of a process that has loaded torch and a small model."""
ADAPTER = "adapter_model.safetensors"
TABLES = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Released:
    model: Any
    tokenizer: Any
    arithmetic: Arithmetic


def width(parameters: int) -> int:
    """Bytes of a weight: 4 where they fit in half of the memory, for then nothing is rounded, else 2."""
    return 4 if parameters * 4 * HELD <= memory_size() / 2 else 2


def memory_of(told: EvaluatedModel) -> int:
    """Bytes that it takes while it is measured."""
    return int(LEAST + told.parameters * width(told.parameters) * HELD)


def load(told: EvaluatedModel) -> Released:
    """Raises UserError where it does not fit into the memory, or where its adapter is of another base."""
    if memory_of(told) > memory_size():
        raise UserError(
            f"{told.name} needs {memory_of(told) / 1e9:.1f} GB to be measured, and this machine has {memory_size() / 1e9:.1f} GB. "
            "Evaluate it on a larger machine."
        )
    arithmetic = Arithmetic(device=torch.device("cpu"), bf16=width(told.parameters) == 2)
    base, adapter = Path(told.base), Path(told.adapter) if told.adapter else None
    model, tokenizer = load_base(base, arithmetic=arithmetic), base
    if adapter is not None:
        grown = rows_of(adapter)
        if grown > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(grown, mean_resizing=False)
            tokenizer = adapter if (adapter / "tokenizer.json").is_file() else base
        model = with_adapter(model, adapter)
    model.config.use_cache = False
    model.eval().requires_grad_(False)
    return Released(model, load_tokenizer(tokenizer), arithmetic)


def tokenizer_of(told: EvaluatedModel) -> Path:
    """The folder of its tokenizer, told without loading it: the adapter's own where that has words of its own."""
    adapter = Path(told.adapter)
    grown = bool(told.adapter) and rows_of(adapter) > 0 and (adapter / "tokenizer.json").is_file()
    return adapter if grown else Path(told.base)


def rows_of(adapter: Path) -> int:
    """Words of the vocabulary that an adapter brings tables for; 0 where it has no tables."""
    with safe_open(adapter / ADAPTER, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if name.endswith(TABLES) and "lora" not in name]  # noqa: SIM118
    return max((shape[0] for shape in shapes if len(shape) == 2), default=0)


def with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        put_on = PeftModel.from_pretrained(model, adapter, is_trainable=False, torch_device="cpu", use_safetensors=True)
    except RuntimeError as error:  # a matrix of another size
        raise UserError("The adapter does not fit its base model: a matrix has another size. Look at how it was made.") from error
    return put_on.get_base_model()
