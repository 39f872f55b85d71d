"""What one or several GGUFs of the same model will hold, before a weight is read: tensors, their sources, types and places, the headers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studio.errors import UserError
from studio.ml.gguf import alike, architectures, vocabulary
from studio.ml.gguf.architectures import Shape
from studio.ml.gguf.header import Entry
from studio.ml.gguf.lora import EMBEDDING, HEAD, Adapter
from studio.ml.gguf.metadata import general_entries, importance_entries
from studio.ml.gguf.quantizing import row_bytes
from studio.ml.gguf.recipes import RECIPES, Model, tensor_type
from studio.ml.gguf.weights import Array, Weights
from studio.ml.gguf.writing import Planned, header_of, packed, padded
from studio.training.orders import BuildAbout


@dataclass(frozen=True)
class Source:
    """A tensor of the model, and what is made of it."""

    name: str
    """In the GGUF."""
    stored: str
    """In the base's safetensors."""
    change: str
    """The name that the adapter knows it by: another one where a table that the base shares was trained apart."""
    shape: tuple[int, ...]
    """(rows, columns), or (length,)."""
    heads: int
    """Heads that its rows are reordered in; 0 leaves them."""
    shift: float
    """Added to every weight."""

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1


@dataclass(frozen=True)
class Slot:
    """Where a source goes in one file, and how it is rounded there."""

    type: str
    offset: int
    """Bytes from the start of the file."""
    row: int
    """Bytes of a row."""
    importance: Array | None
    """How much each column counts, shape (columns,); None counts all alike."""


@dataclass(frozen=True)
class Layout:
    """One file."""

    header: bytes
    slots: list[Slot]
    """In the order of the plan's sources."""
    small: list[tuple[int, bytes]]
    """Offset and content of what is no tensor of the base."""
    size: int
    """Bytes of the file."""


@dataclass(frozen=True)
class Plan:
    sources: list[Source]
    layouts: list[Layout]


@dataclass(frozen=True)
class Wanted:
    """A file that is asked for: its type, and the importance of the columns of the base's tensors, by name."""

    quantization: str
    importance: Mapping[str, Array] | None = None


def plan(
    *, base: Path, shape: Shape, weights: Weights, adapter: Adapter, wanted: Sequence[Wanted], name: str, about: BuildAbout | None = None
) -> Plan:
    """Raises UserError for a model that is not whole, and for a change that would go nowhere."""
    tied = shape.tied and not adapter.untied
    if adapter.untied and not shape.may_untie:
        raise UserError(
            f"The adapter trained the embedding and the output layer apart, which {shape.family.shown} shares in a GGUF. Train them as one."
        )
    sources = sorted(_sources(shape, weights, adapter), key=lambda source: _place_in_file(source.name))
    _complete(shape, {source.name for source in sources}, tied=tied)
    lost = set(adapter.changes) - {source.change for source in sources}
    if lost:
        raise UserError(f"The adapter changes {min(lost)}, which the base model does not have. Choose the base that it was trained on.")
    rows = adapter.rows or weights.places[EMBEDDING].shape[0]
    shared = architectures.entries(shape, vocabulary=rows) | vocabulary.entries(base, rows=rows, tokenizer=adapter.tokenizer)
    count = sum(int(np.prod(source.shape)) for source in sources)
    extra = architectures.extra_tensors(shape)
    mark = alike.name_mark(adapter.tokenizer or base)
    layouts, body = [], packed(shared)
    for one in wanted:
        model = Model(shape.family.arch, shape.layers, shape.heads, shape.kv_heads, tied, importance=bool(one.importance))
        own = general_entries(shape.family.arch, name=name, file_type=RECIPES[one.quantization].file_type, weights=count, about=about)
        if "general.name" in own:
            own["general.name"] = Entry("STRING", f"{own['general.name'].value}{mark}")
        own |= importance_entries(len(one.importance)) if one.importance else {}
        layouts.append(_layout(sources, extra, one, model, entries=(len(own | shared), packed(own) + body)))
    return Plan(sources, layouts)


def _sources(shape: Shape, weights: Weights, adapter: Adapter) -> list[Source]:
    found = []
    for stored, place in weights.places.items():
        name = shape.tensor_name(stored)
        if name is None:
            continue
        if len(place.shape) not in (1, 2) or 0 in place.shape:
            raise UserError(f"The base model's {stored} has the shape {list(place.shape)}. It cannot be built into a GGUF.")
        found.append(_source(shape, name, stored, stored, place.shape, adapter))
    if shape.tied and adapter.untied:
        found.append(_source(shape, "output.weight", EMBEDDING, HEAD, weights.places[EMBEDDING].shape, adapter))
    return found


def _source(shape: Shape, name: str, stored: str, change: str, size: tuple[int, ...], adapter: Adapter) -> Source:
    if adapter.rows is not None and name in ("token_embd.weight", "output.weight"):
        found = adapter.changes.get(change)
        if adapter.rows > size[0] and (found is None or not found.replaces):
            raise UserError(f"The vocabulary grew, but the adapter holds no rows of {change} for the new words. Train it again.")
        size = (adapter.rows, *size[1:])
    heads = shape.heads_of(stored)
    if heads and size[0] % (2 * heads):
        raise UserError(f"The base model's {stored} has {size[0]} rows, which {heads} heads cannot share. Fetch the model again.")
    return Source(name, stored, change, size, heads, shape.shift_of(stored))


def _layout(sources: list[Source], extra: dict[str, Array], wanted: Wanted, model: Model, *, entries: tuple[int, bytes]) -> Layout:
    by_name = {source.name: source for source in sources}
    tensors = [
        _planned(name, by_name[name].shape if name in by_name else extra[name].shape, wanted, model)
        for name in sorted(by_name | extra, key=_place_in_file)
    ]
    header = header_of(*entries, tensors)
    slots, small, offset = {}, [], len(header)
    for tensor in tensors:
        source = by_name.get(tensor.name)
        if source is None:
            small.append((offset, extra[tensor.name].tobytes()))
        else:
            slots[tensor.name] = _slot(source, tensor, offset, wanted)
        offset += padded(tensor.size)
    return Layout(header, [slots[source.name] for source in sources], small, offset)


def _planned(name: str, size: tuple[int, ...], wanted: Wanted, model: Model) -> Planned:
    kind = tensor_type(name, size, quantization=wanted.quantization, model=model)
    return Planned(name, size, kind, (size[0] if len(size) == 2 else 1) * row_bytes(size[-1], kind))


def _slot(source: Source, tensor: Planned, offset: int, wanted: Wanted) -> Slot:
    importance = (wanted.importance or {}).get(source.change) if len(source.shape) == 2 else None
    if importance is not None and importance.shape != source.shape[1:]:
        raise UserError(f"The importance of {source.change} was measured on another model. Measure it again.")
    return Slot(tensor.type, offset, tensor.size // source.rows, importance)


def _complete(shape: Shape, found: set[str], *, tied: bool) -> None:
    needed = [*shape.needed(), *(["output"] if shape.tied and not tied else [])]
    missing = [name for name in needed if f"{name}.weight" not in found]
    if missing:
        raise UserError(f"The base model is incomplete: {missing[0]} and {len(missing) - 1} others are missing. Fetch it again.")


def _place_in_file(name: str) -> tuple[int, str]:
    """llama-quantize's order: what is in no layer first, then layer by layer, by name."""
    parts = name.split(".")
    return (int(parts[1]) if parts[0] == "blk" else -1, name)
