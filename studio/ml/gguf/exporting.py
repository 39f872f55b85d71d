"""Base and adapter into GGUFs in one pass: rows are read, changed, reordered, then rounded for each file and written. No torch.

No model is held: what several threads work on at a time is all that is in memory. The bytes depend on base, adapter, types and words
alone, not on threads, machine or time.
"""

import errno
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.architectures import Shape
from studio.ml.gguf.lora import NOTHING, Adapter, read_adapter
from studio.ml.gguf.planning import Plan, Slot, Source, Wanted, plan
from studio.ml.gguf.quantizing import quantize
from studio.ml.gguf.recipes import RECIPES
from studio.ml.gguf.unfinished import Stopping, Unfinished, beside, kept
from studio.ml.gguf.weights import Array, Weights
from studio.storage import MANIFEST, read_manifest
from studio.training.job import Stopped
from studio.training.orders import BuildAbout

PIECE = 1 << 20
"""Weights that one thread handles at a time; about 25 MB of memory each."""
EDITION = 1
"""Raise it where the same input gives other bytes than before, so that no build goes on from what an older version wrote."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Target:
    """A file that is asked for."""

    quantization: str
    """A key of RECIPES."""
    path: Path
    importance: bool = False
    """Round with the importance that was measured."""


@dataclass(frozen=True)
class Item:
    """What one thread does at a time: rows of one tensor, in all files."""

    number: int
    source: Source
    slots: tuple[Slot, ...]
    """One for each file."""
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return (self.stop - self.start) * sum(slot.row for slot in self.slots)


def export(
    *,
    base: Path,
    adapter: Path | None,
    quantization: str,
    target: Path,
    name: str,
    about: BuildAbout | None = None,
    threads: int = 2,
    progress: Progress | None = None,
    stopping: Stopping = None,
) -> dict[str, object]:
    """Writes one file; see `export_all`."""
    targets = [Target(quantization, target)]
    [made] = export_all(
        base=base, adapter=adapter, targets=targets, name=name, about=about, threads=threads, progress=progress, stopping=stopping
    )
    return made


def export_all(
    *,
    base: Path,
    adapter: Path | None,
    targets: Sequence[Target],
    name: str,
    about: BuildAbout | None = None,
    importance: Mapping[str, Array] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
    stopping: Stopping = None,
    state: Path | None = None,
) -> list[dict[str, object]]:
    """Writes all targets in one pass over the weights, each whole or not at all; returns the size in bytes of each and what stands in it.

    `importance` tells how much each column of a tensor of the base counts, shape (columns,), for the targets that ask for it.
    `progress(done, total)` counts bytes of all files; `stopping()` is asked between items and ends it with Stopped.

    With `state`, a folder on the targets' file system, unfinished files stay there when the process is killed or stopped, and the next
    call with the same input goes on from them; the same bytes come out. They stay after the end as well: whoever gave the folder
    removes it. Without it nothing is left behind but the files.

    Raises UserError for what cannot be built.
    """
    for target in targets:
        if target.quantization not in RECIPES:
            raise UserError(f"{target.quantization} is no type that can be built. Choose one of {', '.join(RECIPES)}.")
    shape = architectures.read_shape(base)
    with Weights.of_model(base) as weights, _adapter(adapter, weights, shape) as changes:
        wanted = [Wanted(target.quantization, _importance(target, importance)) for target in targets]
        planned = plan(base=base, shape=shape, weights=weights, adapter=changes, wanted=wanted, name=name, about=about)
        for target in targets:
            target.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _unfinished(planned, targets, wanted, base, adapter, state, stopping) as work:
                _write(work, planned, weights, changes, threads=threads, progress=progress, stopping=stopping)
                work.flush()
                work.publish([target.path for target in targets])
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError("The disk is full. Make room, then start again.", code="disk_full") from error
            raise
    return [
        {
            "size": layout.size,
            "architecture": shape.family.arch,
            "tensors": len(layout.slots) + len(layout.small),
            "changed": len(changes.changes),
        }
        for layout in planned.layouts
    ]


def estimated_size(base: Path, quantization: str, adapter: Path | None = None, *, importance: bool = False) -> int:
    """Bytes that the file will take, from headers alone."""
    return estimated_sizes(base, [(quantization, importance)], adapter)[0]


def estimated_sizes(base: Path, wanted: Sequence[tuple[str, bool]], adapter: Path | None = None) -> list[int]:
    """Bytes that each file will take, by its type and whether an importance counts, from headers alone."""
    shape = architectures.read_shape(base)
    measured = {"": np.zeros(0, np.float32)}
    asked = [Wanted(quantization, measured if careful and RECIPES[quantization].weighed else None) for quantization, careful in wanted]
    with Weights.of_model(base) as weights, _adapter(adapter, weights, shape) as changes:
        planned = plan(base=base, shape=shape, weights=weights, adapter=changes, wanted=asked, name="estimate")
    return [layout.size for layout in planned.layouts]


def reordered(rows: Array, heads: int, *, out: Array | None = None) -> Array:
    """Rows of `heads` whole heads, the two halves of each interleaved, as llama.cpp's rope wants q and k. Works on vectors too.

    In a new array, or in `out`, which must be contiguous.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2)
    if out is None:
        return halves.reshape(rows.shape)
    out.reshape(halves.shape)[...] = halves
    return out


def _adapter(folder: Path | None, weights: Weights, shape: Shape) -> Adapter:
    return read_adapter(folder, weights, tied=shape.tied) if folder else NOTHING


def _importance(target: Target, measured: Mapping[str, Array] | None) -> Mapping[str, Array] | None:
    """What was measured, where the target asks for it and its type can make use of it."""
    return measured if target.importance and RECIPES[target.quantization].weighed and measured else None


def _unfinished(
    planned: Plan,
    targets: Sequence[Target],
    wanted: Sequence[Wanted],
    base: Path,
    adapter: Path | None,
    state: Path | None,
    stopping: Stopping,
) -> AbstractContextManager[Unfinished]:
    if state is None:
        return beside([target.path for target in targets], planned.layouts)
    return kept(state, planned.layouts, fingerprint=_fingerprint(planned, wanted, base, adapter), stopping=stopping)


def _fingerprint(planned: Plan, wanted: Sequence[Wanted], base: Path, adapter: Path | None) -> str:
    """A hash of everything that decides the bytes of the files, and how they are cut into items."""
    digest = hashlib.sha256(json.dumps([EDITION, PIECE, _identity(base), adapter and _identity(adapter)]).encode())
    for layout, one in zip(planned.layouts, wanted, strict=True):
        for content in (layout.header, *(content for _, content in layout.small)):
            digest.update(hashlib.sha256(content).digest())
        for name, vector in sorted((one.importance or {}).items()):
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(np.ascontiguousarray(vector).tobytes()).digest())
    return digest.hexdigest()


def _identity(folder: Path) -> object:
    """The hash of a sealed folder; of another one the sizes and times of its files."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)["sha256"]
    files = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return [(name, found.st_size, found.st_mtime_ns) for name, found in files]


def _write(
    work: Unfinished,
    planned: Plan,
    weights: Weights,
    changes: Adapter,
    *,
    threads: int,
    progress: Progress | None,
    stopping: Stopping,
) -> None:
    items = list(_items(planned))
    total = sum(item.size for item in items)
    left = [item for item in items if item.number not in work.done]
    done = total - sum(item.size for item in left)
    memory = threading.local()

    def convert(item: Item) -> Item:
        rows = _rows(item, weights, changes, memory)
        rounded: dict[tuple[str, int], memoryview] = {}
        for file, slot in enumerate(item.slots):
            same = (slot.type, id(slot.importance))
            if same not in rounded:
                rounded[same] = quantize(rows, slot.type, name=item.source.stored, importance=slot.importance).data
            work.write(file, rounded[same], slot.offset + item.start * slot.row)
        return item

    if progress is not None and done:
        progress(done, total)
    for item in _spread(convert, left, weights, threads=threads):
        work.finished(item.number, item.size)
        if stopping is not None and stopping():
            raise Stopped
        done += item.size
        if progress is not None:
            progress(done, total)


def _spread(convert: Callable[[Item], Item], items: Sequence[Item], weights: Weights, *, threads: int) -> Iterator[Item]:
    """Converts items in several threads, a few ahead, and yields each that is done. An error or a stop lets no thread go on."""
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[Item]] = set()
        try:
            for item in items:
                if len(item.source.shape) == 2:
                    weights.expect(item.source.stored, item.start, item.stop)
                running.add(pool.submit(convert, item))
                if len(running) > 2 * threads:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            for future in running:
                yield future.result()
        finally:
            for future in running:
                future.cancel()


def _items(planned: Plan) -> Iterator[Item]:
    number = 0
    for source, *slots in zip(planned.sources, *(layout.slots for layout in planned.layouts), strict=True):
        step = max(1, PIECE // source.shape[-1])
        if source.heads and source.rows > 1:  # whole heads, so that their rows can be reordered inside one item
            head = source.rows // source.heads
            step = max(1, step // head) * head
        for start in range(0, source.rows, step):
            yield Item(number, source, tuple(slots), start, min(source.rows, start + step))
            number += 1


def _rows(item: Item, weights: Weights, changes: Adapter, memory: threading.local) -> Array:
    """The rows that are rounded, shape (rows, columns); a vector is one row. They stand in the thread's memory until its next item."""
    source = item.source
    rows = _memory(memory, "rows", item)
    change = changes.changes.get(source.change)
    if len(source.shape) == 1:
        rows[0] = weights.whole(source.stored)
    elif change is None or not change.replaces:
        weights.rows(source.stored, item.start, item.stop, out=rows)
    if change is not None:
        rows = change.applied(rows, item.start)
    if source.shift:
        rows += np.float32(source.shift)
    if not source.heads:
        return rows
    inside = _memory(memory, "reordered", item)
    if len(source.shape) == 1:
        reordered(rows[0], source.heads, out=inside[0])
    else:
        reordered(rows, len(rows) * source.heads // source.rows, out=inside)
    return inside


def _memory(memory: threading.local, name: str, item: Item) -> Array:
    """An array for the item's rows out of memory that the thread has already: new pages cost more than the sums on them."""
    shape = (item.stop - item.start, item.source.shape[-1])
    found: Array | None = getattr(memory, name, None)
    if found is None or found.size < shape[0] * shape[1]:
        found = np.empty(shape[0] * shape[1], np.float32)
        setattr(memory, name, found)
    return found[: shape[0] * shape[1]].reshape(shape)
