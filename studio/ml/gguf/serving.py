"""The files that llama.cpp serves a base and an adapter from, made once and kept: the base in f16, each adapter beside it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.adapters import export_adapter
from studio.ml.gguf.exporting import export
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.quantizing import OutOfRange
from studio.ml.gguf.weights import Weights
from studio.storage import read_manifest

MOST = 50 << 30
"""Bytes that the cache may take; what is asked for now is made all the same."""
NAME = 16
"""Hex digits of a manifest's hash that name a file."""


def prepare(*, base: Path, adapter: Path | None, cache: Path) -> dict[str, Path | None]:
    """`{"model": path, "adapter": path or None}`, made where `cache` does not hold them yet.

    Both folders are sealed: their manifests' hashes name the files. An adapter with DoRA or with tables of its own cannot be swapped,
    so it comes merged into a model of its own. Several processes may ask at once; one makes the file, the rest wait. Raises UserError
    for what cannot be built.
    """
    cache.mkdir(parents=True, exist_ok=True)
    files = _prepare(base=base, adapter=adapter, cache=cache)
    used = [path for path in files.values() if path is not None]
    for path in used:
        os.utime(path, (time.time(), path.stat().st_mtime))
    sweep(cache, keep=used)
    return files


def sweep(cache: Path, *, keep: list[Path]) -> None:
    """Deletes what was not used for longest, until MOST bytes are left. Whoever has a file open goes on reading it."""
    found = sorted(cache.glob("*.gguf"), key=lambda path: path.stat().st_atime)
    size = sum(path.stat().st_size for path in found)
    for path in found:
        if size > MOST and path not in keep:
            size -= path.stat().st_size
            path.unlink()


def _prepare(*, base: Path, adapter: Path | None, cache: Path) -> dict[str, Path | None]:
    base_name = _name(base)
    if adapter is None:
        return {"model": _model(cache / f"{base_name}.gguf", base=base, adapter=None), "adapter": None}
    both = f"{base_name}-{_name(adapter)}"
    if not _is_swappable(base, adapter):
        return {"model": _model(cache / f"{both}.gguf", base=base, adapter=adapter), "adapter": None}
    target = cache / f"{both}.lora.gguf"
    with _alone(target):
        if not target.exists():
            try:
                export_adapter(base=base, adapter=adapter, target=target)
            except UserError as error:
                if error.code != "out_of_range":
                    raise
                export_adapter(base=base, adapter=adapter, target=target, precision="f32")
    return {"model": _model(cache / f"{base_name}.gguf", base=base, adapter=None), "adapter": target}


def _model(target: Path, *, base: Path, adapter: Path | None) -> Path:
    with _alone(target):
        if not target.exists():
            try:
                export(base=base, adapter=adapter, quantization="f16", target=target, name="serving")
            except OutOfRange:  # f16 is the fast one on CPUs; what it cannot hold is served in bf16
                export(base=base, adapter=adapter, quantization="bf16", target=target, name="serving")
    return target


def _is_swappable(base: Path, adapter: Path) -> bool:
    with Weights.of_model(base) as weights:
        return read_adapter(adapter, weights, tied=architectures.read_shape(base).tied).swappable


def _name(folder: Path) -> str:
    return str(read_manifest(folder)["sha256"])[:NAME]


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, whatever happens to it."""
    with target.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in target.parent.glob(f".{target.name}.*.part"):  # whoever wrote it was killed, or would hold the lock
            left.unlink()
        yield
