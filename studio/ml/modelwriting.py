"""A trained model as a folder of its own, in bf16: what its base was, with other weights."""

import shutil
from pathlib import Path
from typing import Any

import torch

from studio.ml.modelconfig import write_json
from studio.ml.modelfacts import INDEX, read_json
from studio.storage import MANIFEST

SHARD = "5GB"
"""Weights of one file; more are spread over several, with an index."""
NOT_TAKEN = {"config.json", "README.md", INDEX, MANIFEST}


def buffers(model: Any) -> dict[str, torch.Tensor]:
    """What the model is made of besides its parameters, by name; not copied."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}


def write_model(model: Any, tensors: dict[str, torch.Tensor], *, base: Path, folder: Path) -> None:
    """Leaves `tensors` as bf16 safetensors in `folder`, beside the base's tokenizer, chat template, settings and licence.

    The names in the files are those that the model's family has on disk, which transformers knows.
    """
    halves = {name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.save_pretrained(folder, state_dict=halves, max_shard_size=SHARD)
    for path in base.iterdir():
        if path.is_file() and path.name not in NOT_TAKEN and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    config = {name: value for name, value in read_json(base / "config.json").items() if name != "torch_dtype"}
    write_json(folder / "config.json", config | {"dtype": "bfloat16"})
