"""What a build takes of a machine, told before it begins: memory, which it reserves, and disk, which must be free."""

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from studio.errors import UserError
from studio.ml.gguf.weights import Weights

PROCESS = 500 << 20
"""Bytes of a process that has torch, transformers and PEFT loaded (460 MB were measured), and of what it writes with."""
LLAMACPP = 300 << 20
"""Bytes of llama.cpp's process beside the file, which it may hold twice: its context, its logits, and Python."""
SLACK, SPARE = 1.2, 1 << 30
"""What a forward pass needs beyond its weights: a share of them, and bytes."""
FREE_DISK = 64 << 20
"""Bytes that stay free."""


def memory_of_model(weights: Weights) -> int:
    """Bytes of a forward pass in float32 with all weights in memory."""
    return int(sum(math.prod(place.shape) for place in weights.places.values()) * 4 * SLACK) + SPARE


def memory_for_checking(base: Path, *, largest: int) -> int:
    """Bytes for a check of files up to `largest` bytes, first by llama.cpp, then beside the model in float32. The model can do with less,
    and takes longer then."""
    with Weights.of_model(base) as weights:
        return PROCESS + max(LLAMACPP + 2 * largest, memory_of_model(weights))


def memory_for_reference(reserved: int) -> int:
    """What of `reserved` bytes the model may take that the files are compared with."""
    return max(0, reserved - PROCESS)


def refuse_full_disk(folder: Path, needed: int, *, state: Path) -> None:
    """Raises UserError where `needed` bytes are not free, besides those that an earlier attempt has taken in `state` already."""
    taken = sum(file.stat().st_blocks * 512 for file in _files(state))
    free = shutil.disk_usage(folder).free
    if free + taken < needed + FREE_DISK:
        raise UserError(
            f"The files and their checks need {needed / 1e9:.1f} GB of disk; {free / 1e9:.1f} GB are free. Make room, then start again.",
            code="disk_full",
        )


def _files(folder: Path) -> Iterable[os.DirEntry[str]]:
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield entry
