"""A base and its adapter as one model that transformers loads: safetensors in shards, settings, tokenizer. In one pass; no torch.

Any architecture goes, not only those that a GGUF can be built from, as long as the weights are called as the model's own parameters
are: an adapter whose layers are not found in the base is refused. The same base and adapter give the same bytes, on any machine.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.companions import read_config, write_settings
from studio.ml.gguf.lora import NOTHING, Adapter, read_adapter, tables
from studio.ml.gguf.quantizing import quantize
from studio.ml.gguf.shards import BYTES, Part, Precision, Shard, index_of, plan
from studio.ml.gguf.unfinished import Stopping, alone
from studio.ml.gguf.weights import Array, Weights
from studio.ml.modelconfig import write_json
from studio.ml.modelfacts import INDEX
from studio.ml.modelfiles import link_file
from studio.storage import MANIFEST, fsync_path, read_manifest, remove_folder
from studio.training.job import Stopped

PIECE = 1 << 20
"""Weights that one thread handles at a time."""
AHEAD = 8
"""Pieces that are handed to each thread at once; a stop waits for them."""
EDITION = 1
"""Raise it where the same input gives other bytes than before, so that nothing goes on from what an older version wrote."""

Progress = Callable[[int, int], None]


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
    config = read_config(base)
    with Weights.of_model(base) as weights:
        tied = _is_tied(config, weights)
        with read_adapter(adapter, weights, tied=tied) if adapter else NOTHING as changes:
            shards = plan(weights, changes, precision, tied=tied, most=shard_bytes)
            with _room(folder, state, _fingerprint(base, adapter, precision, shards), stopping) as (room, kept):
                try:
                    _write(shards, room if kept is None else kept, weights, changes, precision, progress, stopping, threads=threads)
                    if kept is not None:
                        for shard in shards:
                            link_file(kept / shard.name, room / shard.name)
                    write_settings(room, base, config, changes, precision)
                    if len(shards) > 1:
                        write_json(room / INDEX, index_of(shards, precision))
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


def _is_tied(config: dict[str, Any], weights: Weights) -> bool:
    """Where config.json is silent, a model without an output layer of its own uses its table of words."""
    said = config.get("tie_word_embeddings")
    return bool(said) if said is not None else tables(weights)[1] not in weights.places


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
