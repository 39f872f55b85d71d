"""Which tensors a merged model has, and in which safetensors file each of them stands. Before a weight is read; no torch.

Tensors lie in the order of their names, however the base is cut into files.
"""

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.lora import Adapter, tables
from studio.ml.gguf.weights import Weights
from studio.ml.modelfacts import WEIGHTS

Precision = Literal["f32", "f16", "bf16"]
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
BUFFERS = re.compile(r".*\brotary(_pos)?_emb\.(original_)?inv_freq|.*\.(attn|attention)(\.attention)?\.(bias|masked_bias)")
"""What old checkpoints carry beside their parameters and nobody reads: frequencies, and causal masks."""


@dataclass(frozen=True)
class Part:
    """A tensor of the merged model."""

    name: str
    source: str
    """The tensor of the base that it begins as: another one where a table that the base shares was trained apart."""
    shape: tuple[int, ...]
    start: int
    """Bytes from the start of the shard."""

    @property
    def rows(self) -> int:
        """All dimensions but the last; a vector is one row."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class Shard:
    name: str
    header: bytes
    parts: list[Part]
    size: int
    """Bytes of the file."""


def plan(weights: Weights, changes: Adapter, precision: Precision, *, tied: bool, most: float) -> list[Shard]:
    embedding, head = tables(weights)
    sources = {name: name for name, place in weights.places.items() if not _is_buffer(name, place.shape) and not (tied and name == head)}
    if changes.untied:
        sources[head] = embedding
    lost = changes.changes.keys() - sources.keys()
    if lost:
        raise UserError(f"The adapter changes {min(lost)}, which the base model does not have. Choose the base that it was trained on.")
    groups: list[list[Part]] = []
    filled = 0
    for name in sorted(sources, key=_by_number):
        shape = weights.places[sources[name]].shape
        if changes.rows is not None and name in (embedding, head):
            shape = (changes.rows, *shape[1:])
        size = int(np.prod(shape, dtype=np.int64)) * BYTES[precision]
        if not groups or (filled and filled + size > most):
            groups.append([])
            filled = 0
        groups[-1].append(Part(name, sources[name], shape, filled))
        filled += size
    count = len(groups)
    names = [WEIGHTS] if count == 1 else [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return [_shard(name, parts, precision) for name, parts in zip(names, groups, strict=True)]


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    return bool(BUFFERS.fullmatch(name)) and (len(shape) != 1 or not name.endswith("bias"))


def _by_number(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in name.split(".")]


def _shard(name: str, parts: list[Part], precision: Precision) -> Shard:
    """The format: https://huggingface.co/docs/safetensors (8 bytes of length, JSON padded with spaces, data without holes)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        end = part.start + part.rows * part.columns * BYTES[precision]
        entries[part.name] = {"dtype": precision.upper(), "shape": list(part.shape), "data_offsets": [part.start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    header = struct.pack("<Q", len(text)) + text
    placed = [Part(part.name, part.source, part.shape, len(header) + part.start) for part in parts]
    return Shard(name, header, placed, len(header) + end)


def index_of(shards: list[Shard], precision: Precision) -> dict[str, Any]:
    """What model.safetensors.index.json says."""
    size = sum(part.rows * part.columns * BYTES[precision] for shard in shards for part in shard.parts)
    return {"metadata": {"total_size": size}, "weight_map": {part.name: shard.name for shard in shards for part in shard.parts}}
