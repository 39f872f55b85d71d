"""The files that llama.cpp serves a base and an adapter from, made once and kept: the base in one type, each adapter beside it."""

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.adapters import Precision as AdapterPrecision
from studio.ml.gguf.adapters import export_adapter
from studio.ml.gguf.exporting import export
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.quantizing import OutOfRange
from studio.ml.gguf.weights import Weights
from studio.storage import sealed_sha256

MOST = 50 << 30
"""Bytes that the cache may take; what is asked for now is made all the same."""
EXACT_UP_TO = 100 << 20
"""Bytes of an adapter in f32 up to which it is served so beside a base in f16. A small model computes so quickly that what f16 costs beside
it, a conversion before each of some hundred products, is a tenth of the whole. Of a large one f16 takes half the memory."""
NAME = 16
"""Hex digits of a manifest's hash that name a file."""


Precision = Literal["f16", "q8_0"]


@dataclass(frozen=True)
class Served:
    """What llama.cpp loads."""

    model: Path
    adapter: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [self.model, *([self.adapter] if self.adapter else [])]


def prepare(*, base: Path, adapter: Path | None, cache: Path, precision: Precision = "f16") -> Served:
    """What serves a base, and an adapter on it, made where `cache` does not hold it yet.

    Both are sealed folders, whose manifests' hashes name the files, or GGUF files in such, which are served as they are. An adapter with
    DoRA or with tables of its own cannot be swapped, so it comes merged into a model of its own. Several processes may ask at once; one
    makes the file, the rest wait. Raises UserError for what cannot be built.
    """
    cache.mkdir(parents=True, exist_ok=True)
    served = _prepare(base=base, adapter=adapter, cache=cache, precision=precision)
    mark_used(served)
    sweep(cache, keep=served.files)
    return served


def mark_used(served: Served) -> None:
    """So that what is asked for leaves last. Raises FileNotFoundError where a file is not there any more."""
    for path in served.files:
        os.utime(path, (time.time(), path.stat().st_mtime))


def sweep(cache: Path, *, keep: list[Path]) -> None:
    """Deletes what was not used for longest, until MOST bytes are left. Whoever has a file open goes on reading it."""
    found = []
    for path in cache.rglob("*.gguf"):
        with suppress(FileNotFoundError):  # somebody else sweeps, or erases
            found.append((path.stat().st_atime, path.stat().st_size, path))
    size = sum(each for _, each, _ in found)
    for _, each, path in sorted(found):
        if size > MOST and path not in keep:
            size -= each
            path.unlink(missing_ok=True)


def _prepare(*, base: Path, adapter: Path | None, cache: Path, precision: Precision) -> Served:
    if base.is_file():
        if adapter is not None:
            raise UserError("An adapter goes onto a model's own weights, not onto a GGUF file that was built of them.", code="unsupported")
        return Served(base)
    base_name, kind = _name(base), "" if precision == "f16" else f".{precision}"
    if adapter is None:
        return Served(_model(cache / f"{base_name}{kind}.gguf", base=base, adapter=None, precision=precision))
    if adapter.is_file():
        return Served(_model(cache / f"{base_name}{kind}.gguf", base=base, adapter=None, precision=precision), adapter)
    both = f"{base_name}-{_name(adapter)}"
    swappable, numbers = _look_at(base, adapter)
    if not swappable:
        return Served(_model(cache / f"{both}{kind}.gguf", base=base, adapter=adapter, precision=precision))
    target = cache / f"{both}{kind}.lora.gguf"
    with _alone(target):
        if not target.exists():
            # Beside a base in q8_0 its own rounding is far below the base's, and the products are as quick as the base's.
            beside: AdapterPrecision = "f32" if 4 * numbers <= EXACT_UP_TO else "f16"
            try:
                export_adapter(base=base, adapter=adapter, target=target, precision="q8_0" if precision == "q8_0" else beside)
            except UserError as error:
                if error.code != "out_of_range":
                    raise
                export_adapter(base=base, adapter=adapter, target=target, precision="f32")
    return Served(_model(cache / f"{base_name}{kind}.gguf", base=base, adapter=None, precision=precision), target)


def _model(target: Path, *, base: Path, adapter: Path | None, precision: Precision) -> Path:
    with _alone(target):
        if not target.exists():
            try:
                export(base=base, adapter=adapter, quantization=precision, target=target, name="serving")
            except OutOfRange:  # what f16 and the scales of q8_0 cannot hold is served in bf16
                export(base=base, adapter=adapter, quantization="bf16", target=target, name="serving")
    return target


def _look_at(base: Path, adapter: Path) -> tuple[bool, int]:
    """Whether llama.cpp can add it to a running model, and how many numbers it has."""
    with Weights.of_model(base) as weights, read_adapter(adapter, weights, tied=architectures.read_shape(base).tied) as found:
        return found.swappable, sum(math.prod(place.shape) for place in found.stored.places.values()) if found.stored else 0


def _name(folder: Path) -> str:
    return sealed_sha256(folder)[:NAME]


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, whatever happens to it."""
    with target.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in target.parent.glob(f".{target.name}.*.part"):  # whoever wrote it was killed, or would hold the lock
            left.unlink()
        yield
