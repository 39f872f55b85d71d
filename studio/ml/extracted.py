"""An adapter that was taken out of a model, as a folder of peft's files: written tensor by tensor, however large it is."""

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.ml.difference import Layout

PREFIX = "base_model.model."
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, which is asked for when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def write_tensors(path: Path, entries: Mapping[str, Entry]) -> None:
    """A safetensors file; no more than one tensor is in memory. The format: https://huggingface.co/docs/safetensors"""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries.items():
        header[name] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": [end, end + entry.size]}
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries.values():
            tensor = entry.tensor().contiguous()
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def settings_of(layout: Layout, ranks: Mapping[str, int], *, tables: Iterable[str]) -> dict[str, Any]:
    """adapter_config.json for layers of these ranks, each with the scale 1. What peft would put beside other layers is left out."""
    usual = max(ranks.values())
    pattern = {name: rank for name, rank in _by_ending(ranks).items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(layout.turned & ranks.keys()),
        "use_dora": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": _targets(layout, ranks),
        "modules_to_save": sorted(table.rpartition(".")[2] for table in tables) or None,
    }


def _by_ending(ranks: Mapping[str, int]) -> dict[str, int]:
    """Ranks by the last word of the layers' names, and by whole names where layers that end alike differ."""
    found = defaultdict(set)
    for name, rank in ranks.items():
        found[name.rpartition(".")[2]].add(rank)
    whole = {name: rank for name, rank in ranks.items() if len(found[name.rpartition(".")[2]]) > 1}
    return {ending: next(iter(each)) for ending, each in found.items() if len(each) == 1} | whole


def _targets(layout: Layout, ranks: Mapping[str, int]) -> list[str]:
    """The last words of the layers' names, where they mean these layers alone; else the whole names."""
    endings = {name.rpartition(".")[2] for name in ranks}
    meant = {name for name in (*layout.linears, *layout.tables) if name.rpartition(".")[2] in endings}
    return sorted(endings) if meant == ranks.keys() else sorted(ranks)


def card(name: str, base: str, *, rank: int, energy: float, kept: str) -> str:
    """README.md."""
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "library_name: peft",
        "tags: [lora]",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {json.dumps(name)[1:-1]}, as an adapter",
        "",
        "Not trained, but taken out of a model whose every weight was: of each linear layer's change the best approximation",
        f"of rank {rank}, in the sum of squares (Eckart & Young 1936).",
        "",
        f"- Of the squares of the linear layers' changes it holds {energy:.2%}.",
        f"- {kept}",
    ]
    return "\n".join([*lines, ""])
