"""Base and adapter into one GGUF in one pass: rows are read, changed, reordered, quantized, written; no model is held. No torch."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studio.errors import UserError
from studio.ml.gguf import architectures, vocabulary
from studio.ml.gguf.architectures import Shape
from studio.ml.gguf.header import Entry
from studio.ml.gguf.lora import NOTHING, Adapter, read_adapter
from studio.ml.gguf.quantizing import quantize, row_bytes
from studio.ml.gguf.recipes import RECIPES, tensor_type
from studio.ml.gguf.weights import Array, Weights
from studio.ml.gguf.writing import Planned, header_bytes, padded
from studio.storage import fsync_path
from studio.training.job import Stopped

PIECE = 1 << 20
"""Weights that one thread handles at a time; about 25 MB of memory each."""
FREQUENCIES = "rope_freqs.weight"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """Where a planned tensor comes from."""

    planned: Planned
    name: str
    """In the base's safetensors."""
    heads: int
    """Heads that its rows are reordered in; 0 leaves them."""
    offset: int
    """Bytes from the start of the data section."""


@dataclass(frozen=True)
class Piece:
    source: Source
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    header: bytes
    sources: list[Source]
    frequencies: tuple[int, bytes] | None
    """Offset and content of Llama 3's rope divisors."""
    size: int
    """Bytes of the data section."""


def export(
    *,
    base: Path,
    adapter: Path | None,
    quantization: str,
    target: Path,
    name: str,
    threads: int = 2,
    progress: Progress | None = None,
    stopping: Callable[[], bool] | None = None,
) -> dict[str, object]:
    """Writes `target`, whole or not at all; returns its size in bytes and what stands in it.

    `quantization` is a key of RECIPES. `progress(done, total)` counts bytes of the result; `stopping()` is asked between pieces and ends
    it with Stopped. Raises UserError for what cannot be built; nothing is left behind then.
    """
    if quantization not in RECIPES:
        raise UserError(f"{quantization} is no type that can be built. Choose one of {', '.join(RECIPES)}.")
    shape = architectures.read_shape(base)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    with Weights.of_model(base) as weights:
        changes = read_adapter(adapter, weights, tied=shape.tied) if adapter else NOTHING
        plan = _plan(base, shape, weights, quantization=quantization, name=name)
        try:
            _write(temporary, plan, weights, changes, threads=threads, progress=progress, stopping=stopping)
            fsync_path(temporary)
            os.rename(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    fsync_path(target.parent)
    return {
        "size": target.stat().st_size,
        "architecture": shape.family.arch,
        "tensors": len(plan.sources) + (plan.frequencies is not None),
        "changed": len(changes.changes),
    }


def estimated_size(base: Path, quantization: str) -> int:
    """Bytes that the file will take, from the base's headers alone."""
    shape = architectures.read_shape(base)
    with Weights.of_model(base) as weights:
        plan = _plan(base, shape, weights, quantization=quantization, name="estimate")
    return len(plan.header) + plan.size


def general_entries(shape: Shape, *, name: str, file_type: int) -> dict[str, Entry]:
    # llama.cpp changes its token handling for names that contain phi3, so such a name must not come from a person
    safe = re.sub(r"(?i)phi-?3", "phi_3", name)
    return {
        "general.architecture": Entry("STRING", shape.family.arch),
        "general.type": Entry("STRING", "model"),
        "general.name": Entry("STRING", safe),
        "general.file_type": Entry("UINT32", file_type),
        "general.quantization_version": Entry("UINT32", 2),
    }


def reordered(rows: Array, heads: int) -> Array:
    """Rows of `heads` whole heads, the two halves of each interleaved, as llama.cpp's rope wants q and k. Works on vectors too."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _plan(base: Path, shape: Shape, weights: Weights, *, quantization: str, name: str) -> Plan:
    chosen: list[tuple[Planned, str]] = []
    for stored in weights.places:
        new = shape.tensor_name(stored)
        if new is not None:
            chosen.append((_planned(new, weights.places[stored].shape, shape, quantization), stored))
    divisors = architectures.rope_factors(shape)
    if divisors is not None:
        chosen.append((Planned(FREQUENCIES, divisors.shape, "F32", divisors.nbytes), ""))
    chosen.sort(key=lambda pair: _place_in_file(pair[0].name))
    _complete(shape, {planned.name: planned for planned, _ in chosen})
    sources, frequencies, offset = [], None, 0
    for planned, stored in chosen:
        if divisors is not None and planned.name == FREQUENCIES:
            frequencies = (offset, divisors.tobytes())
        else:
            sources.append(Source(planned, stored, shape.heads_of(stored), offset))
        offset += padded(planned.size)
    rows = weights.places["model.embed_tokens.weight"].shape[0]
    entries = general_entries(shape, name=name, file_type=RECIPES[quantization].file_type)
    entries |= architectures.entries(shape, vocabulary=rows) | vocabulary.entries(base, rows=rows)
    return Plan(header_bytes(entries, [planned for planned, _ in chosen]), sources, frequencies, offset)


def _planned(name: str, size: tuple[int, ...], shape: Shape, quantization: str) -> Planned:
    if len(size) not in (1, 2):
        raise UserError(f"The base model's {name} has {len(size)} dimensions. It cannot be built into a GGUF.")
    kind = tensor_type(name, size, quantization=quantization, layers=shape.layers, grouped=shape.heads != shape.kv_heads, tied=shape.tied)
    rows = size[0] if len(size) == 2 else 1
    return Planned(name, size, kind, rows * row_bytes(size[-1], kind))


def _complete(shape: Shape, planned: dict[str, Planned]) -> None:
    needed = ["token_embd", "output_norm"] + ([] if shape.tied else ["output"])
    inner = (architectures.LAYER_NAMES | shape.family.layer_names).values()
    needed += [f"blk.{layer}.{name}" for layer in range(shape.layers) for name in inner]
    missing = [name for name in needed if f"{name}.weight" not in planned]
    if missing:
        raise UserError(f"The base model is incomplete: {missing[0]} and {len(missing) - 1} others are missing. Fetch it again.")


def _place_in_file(name: str) -> tuple[int, str]:
    """llama-quantize's order: what is in no layer first, then layer by layer, by name."""
    parts = name.split(".")
    return (int(parts[1]) if parts[0] == "blk" else -1, name)


def _write(
    path: Path,
    plan: Plan,
    weights: Weights,
    changes: Adapter,
    *,
    threads: int,
    progress: Progress | None,
    stopping: Callable[[], bool] | None,
) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    begin, done = len(plan.header), 0

    def convert(piece: Piece) -> int:
        source = piece.source
        content = quantize(_rows(piece, weights, changes), source.planned.type, name=source.name).tobytes()
        per_row = source.planned.size // _row_count(source.planned)
        _write_at(file, content, begin + source.offset + piece.start * per_row)
        return len(content)

    try:
        os.ftruncate(file, begin + plan.size)
        _write_at(file, plan.header, 0)
        if plan.frequencies is not None:
            _write_at(file, plan.frequencies[1], begin + plan.frequencies[0])
        for written in _spread(convert, _pieces(plan.sources), threads=threads):
            if stopping is not None and stopping():
                raise Stopped
            done += written
            if progress is not None:
                progress(done, plan.size)
    finally:
        os.close(file)


def _spread(convert: Callable[[Piece], int], pieces: Iterator[Piece], *, threads: int) -> Iterator[int]:
    """Converts pieces in several threads, a few ahead, and yields the bytes of each. An error or a stop lets no thread go on."""
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[int]] = set()
        try:
            for piece in pieces:
                running.add(pool.submit(convert, piece))
                if len(running) > 2 * threads:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            for future in running:
                yield future.result()
        finally:
            for future in running:
                future.cancel()


def _pieces(sources: list[Source]) -> Iterator[Piece]:
    for source in sources:
        rows = _row_count(source.planned)
        columns = source.planned.shape[-1]
        step = max(1, PIECE // columns)
        if source.heads and rows > 1:  # whole heads, so that their rows can be reordered inside one piece
            head = rows // source.heads
            step = max(1, step // head) * head
        for start in range(0, rows, step):
            yield Piece(source, start, min(rows, start + step))


def _rows(piece: Piece, weights: Weights, changes: Adapter) -> Array:
    source = piece.source
    if len(source.planned.shape) == 1:
        vector = weights.whole(source.name)
        return (reordered(vector, source.heads) if source.heads else vector)[None]
    rows = weights.rows(source.name, piece.start, piece.stop)
    change = changes.changes.get(source.name)
    if change is not None:
        rows = change.applied(rows, piece.start)
    if not source.heads:
        return rows
    head = source.planned.shape[0] // source.heads
    return np.ascontiguousarray(reordered(rows, len(rows) // head))


def _row_count(planned: Planned) -> int:
    return planned.shape[0] if len(planned.shape) == 2 else 1


def _write_at(file: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
