"""A base and its adapter as one model that transformers loads: safetensors in shards, settings, tokenizer. In one pass; no torch.

Any architecture goes, not only those that a GGUF can be built from, as long as the weights are called as the model's own parameters
are: an adapter whose layers are not found in the base is refused. Tensors lie in the order of their names, so that the same base and
adapter give the same bytes, however the base is cut into files.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.lora import NOTHING, Adapter, read_adapter, tables
from studio.ml.gguf.peft_settings import read_plain
from studio.ml.gguf.quantizing import quantize
from studio.ml.gguf.unfinished import Stopping, alone
from studio.ml.gguf.weights import Array, Weights
from studio.ml.modelconfig import write_json
from studio.ml.modelfacts import INDEX, WEIGHTS
from studio.ml.modelfiles import link_file
from studio.storage import MANIFEST, fsync_path, read_manifest, remove_folder
from studio.training.job import Stopped

Precision = Literal["f32", "f16", "bf16"]
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
BYTES = {"f32": 4, "f16": 2, "bf16": 2}
PIECE = 1 << 20
"""Weights that one thread handles at a time."""
AHEAD = 8
"""Pieces that are handed to each thread at once; a stop waits for them."""
LARGEST_SMALL = 256 << 20
BUFFERS = re.compile(
    r".*\brotary(_pos)?_emb\.(original_)?inv_freq|.*\.attn(\.attention)?\.(bias|masked_bias)|.*\.attention\.(bias|masked_bias)"
)
"""What old checkpoints carry beside their parameters and nobody reads: frequencies, and causal masks."""
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
TEMPLATE, TOKENIZER_CONFIG, GENERATION = "chat_template.jinja", "tokenizer_config.json", "generation_config.json"
CODE_KEYS = ("auto_map", "custom_pipelines", "_name_or_path")
"""Keys that name code or a folder of whoever saved the model."""
EDITION = 1
"""Raise it where the same input gives other bytes than before, so that nothing goes on from what an older version wrote."""

Progress = Callable[[int, int], None]


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


def write_merged(
    *,
    base: Path,
    adapter: Path | None,
    precision: Precision,
    folder: Path,
    progress: Progress | None = None,
    stopping: Stopping = None,
    state: Path | None = None,
    shard_bytes: float = 5e9,
    threads: int = 2,
) -> dict[str, object]:
    """Makes `folder` hold the merged model, whole or not at all; returns the bytes of its weights and what stands in them.

    Every tensor is rounded to `precision`, to the nearest and to even between two. A shard holds at most `shard_bytes` of weights, or
    one tensor that is larger. `progress(done, total)` counts bytes of the shards; `stopping()` is asked every few pieces and ends it with
    Stopped.

    With `state`, a folder on the file system of `folder`, finished shards stay there when the process is killed or stopped, and the next
    call with the same input goes on after them. They stay after the end as well: whoever gave the folder removes it. `folder` may be
    there if it is empty.

    Raises UserError for an adapter or weights that cannot be merged; an f16 that is too small for a weight is refused with its name.
    """
    config = _config(base)
    with Weights.of_model(base) as weights:
        tied = _is_tied(config, weights)
        with read_adapter(adapter, weights, tied=tied) if adapter else NOTHING as changes:
            shards = _plan(weights, changes, precision, tied=tied, most=shard_bytes)
            with _room(folder, state, _fingerprint(base, adapter, precision, shards), stopping) as (room, kept):
                try:
                    _write(shards, room if kept is None else kept, weights, changes, precision, progress, stopping, threads=threads)
                    if kept is not None:
                        for shard in shards:
                            link_file(kept / shard.name, room / shard.name)
                    _write_settings(room, base, config, changes, precision, weights)
                    if len(shards) > 1:
                        _write_index(room, shards, precision)
                    _publish(room, folder)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise UserError("The disk is full. Make room, then start again.", code="disk_full") from error
                    raise
    return {
        "size": sum(shard.size for shard in shards),
        "shards": len(shards),
        "tensors": sum(len(shard.parts) for shard in shards),
        "changed": len(changes.changes),
    }


def _config(base: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(read_plain(base / "config.json", most=LARGEST_SMALL))
        quantized = config.get("quantization_config")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError("The base model has no readable config.json. Register it again.") from error
    if quantized:
        raise UserError("The base model's weights are quantized already. Register the unquantized model and build from that.")
    return config


def _is_tied(config: dict[str, Any], weights: Weights) -> bool:
    """Where config.json is silent, a model without an output layer of its own uses its table of words."""
    said = config.get("tie_word_embeddings")
    return bool(said) if said is not None else tables(weights)[1] not in weights.places


def _plan(weights: Weights, changes: Adapter, precision: Precision, *, tied: bool, most: float) -> list[Shard]:
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


def _fingerprint(base: Path, adapter: Path | None, precision: Precision, shards: list[Shard]) -> str:
    """A hash of everything that decides the bytes of the shards."""
    digest = hashlib.sha256(json.dumps([EDITION, precision, _identity(base), adapter and _identity(adapter)]).encode())
    for shard in shards:
        digest.update(hashlib.sha256(shard.header).digest())
    return digest.hexdigest()


def _identity(folder: Path) -> object:
    """The hash of a sealed folder; of another one the sizes and times of its files."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)["sha256"]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir()) if file.is_file()]


@contextmanager
def _room(folder: Path, state: Path | None, fingerprint: str, stopping: Stopping) -> Iterator[tuple[Path, Path | None]]:
    """A folder beside the target that is gone in the end, and one for shards that outlives the call, if there is a state.

    Waits while another process works in the state.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    room = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}.part")
    remove_folder(room)
    room.mkdir()
    try:
        with nullcontext() if state is None else _kept(state, fingerprint, stopping) as kept:
            yield room, kept
    finally:
        if room.exists():
            shutil.rmtree(room)


@contextmanager
def _kept(state: Path, fingerprint: str, stopping: Stopping) -> Iterator[Path]:
    state.mkdir(parents=True, exist_ok=True)
    with alone(state / "lock", stopping):
        kept = state / f"merged-{fingerprint[:32]}"
        for other in state.glob("merged-*"):
            if other != kept:  # of another input, or another version
                remove_folder(other)
        kept.mkdir(exist_ok=True)
        yield kept


def _write(
    shards: list[Shard],
    folder: Path,
    weights: Weights,
    changes: Adapter,
    precision: Precision,
    progress: Progress | None,
    stopping: Stopping,
    *,
    threads: int,
) -> None:
    total = sum(shard.size for shard in shards)
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for shard in shards:
            if _is_there(folder / shard.name, shard):
                done += shard.size
                continue
            part = folder / f"{shard.name}.part"
            part.unlink(missing_ok=True)
            file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            try:
                _write_at(file, shard.header, 0)
                done += len(shard.header)

                def convert(piece: tuple[Part, int, int], file: int = file) -> int:
                    tensor, start, stop = piece
                    content = quantize(_rows(tensor, start, stop, weights, changes), precision.upper(), name=tensor.name).data
                    _write_at(file, content, tensor.start + start * tensor.columns * BYTES[precision])
                    return content.nbytes

                pieces = _pieces(shard)
                while some := list(islice(pieces, AHEAD * threads)):
                    if stopping is not None and stopping():
                        raise Stopped
                    for written in pool.map(convert, some):
                        done += written
                        if progress is not None:
                            progress(done, total)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(part, folder / shard.name)
            fsync_path(folder)


def _is_there(file: Path, shard: Shard) -> bool:
    """True for a shard that an earlier attempt has finished: it got its name once its bytes were on the disk."""
    if not file.is_file() or file.stat().st_size != shard.size:
        return False
    with file.open("rb") as stream:
        return stream.read(len(shard.header)) == shard.header


def _pieces(shard: Shard) -> Iterator[tuple[Part, int, int]]:
    for part in shard.parts:
        step = max(1, PIECE // max(1, part.columns))
        for start in range(0, part.rows, step):
            yield part, start, min(part.rows, start + step)


def _rows(part: Part, start: int, stop: int, weights: Weights, changes: Adapter) -> Array:
    change = changes.changes.get(part.name)
    if change is not None and change.replaces:  # the base may have fewer rows
        rows = np.empty((stop - start, part.columns), np.float32)
    else:
        rows = weights.flat(part.source, start * part.columns, stop * part.columns).reshape(stop - start, part.columns)
    return rows if change is None else change.applied(rows, start)


def _write_settings(room: Path, base: Path, config: dict[str, Any], changes: Adapter, precision: Precision, weights: Weights) -> None:
    """config.json, the tokenizer and how answers are written. Nothing but what is known by name, and no links."""
    write_json(room / "config.json", _new_config(config, changes, precision))
    _copy(base, room, GENERATION)
    words = changes.tokenizer or base
    for name in TOKENIZER:
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


def _write_index(room: Path, shards: list[Shard], precision: Precision) -> None:
    size = sum(part.rows * part.columns * BYTES[precision] for shard in shards for part in shard.parts)
    places = {part.name: shard.name for shard in shards for part in shard.parts}
    write_json(room / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _publish(room: Path, folder: Path) -> None:
    for file in room.iterdir():
        fsync_path(file)
    fsync_path(room)
    os.rename(room, folder)
    fsync_path(folder.parent)


def _write_at(file: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
