"""Which items of a long work are safe on the disk: a file that only grows, so that a killed process's work is gone on from.

Each line ends with a checksum. One that was cut off, or that the disk lost, counts for nothing; its items are done again.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from studio.storage import fsync_path


def begin(path: Path, *, fingerprint: str) -> None:
    """A new journal for the work that `fingerprint` names. What it speaks of must be on the disk before."""
    path.unlink(missing_ok=True)
    _append(path, fingerprint)
    fsync_path(path.parent)


def record(path: Path, items: Iterable[int]) -> None:
    """Notes that these are done. Their bytes must be on the disk before."""
    _append(path, ",".join(f"{first}-{last}" for first, last in _ranges(sorted(items))))


def done(path: Path, *, fingerprint: str) -> set[int] | None:
    """The numbers of what is done; None where the journal is another work's, or none is there."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return None
    texts = [text for line in lines if (text := _checked(line))]
    if not texts or texts[0] != fingerprint:
        return None
    return {number for text in texts[1:] for number in _numbers(text)}


def _append(path: Path, text: str) -> None:
    line = f"\n{text} {_checksum(text)}\n"  # the last line may have been cut off, so this one begins anew
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _checked(line: bytes) -> str | None:
    text, _, checksum = line.decode(errors="replace").rpartition(" ")
    return text if text and checksum == _checksum(text) else None


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last) + 1)
