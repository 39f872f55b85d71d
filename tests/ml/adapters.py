"""Adapters for tests, made by PEFT with random weights in everything that it trains."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(base: Path, folder: Path, *, seed: int = 7, rows: int = 0, **settings: Any) -> Path:
    """A LoRA of rank 4 on all linear layers, or what `settings` say. `rows` is what the vocabulary grows to before."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    arguments = {"r": 4, "lora_alpha": 12, "target_modules": LINEARS, "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(model, LoraConfig(**arguments))
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        elif parameter.requires_grad and "lora_A" not in name and "lora_embedding_B" not in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    adapted.save_pretrained(folder)
    return folder


def says(model: Any, ids: list[int]) -> np.ndarray:
    """Logits in transformers, shape (tokens, vocabulary)."""
    with torch.inference_mode():
        logits: np.ndarray = model.eval()(torch.tensor([ids])).logits[0].float().numpy()
    return logits
