"""One data file inside a .gz, .zst or .zip: opened as a stream, in flat memory and never beyond the limit.

What is inside is told by `formats`. Names inside an archive are labels; nothing is ever written under them.
"""

import gzip
import io
import lzma
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from studio.datasets.readers.lines import Reading, excerpt
from studio.errors import UserError

EXPANDED = 20 * 1024**3
"""Bytes that an unpacked file may have."""
DIRECTORY = 16 * 1024 * 1024
"""Bytes that an archive's list of its files may have."""
SPARE = 1024**3
"""Bytes of disk that unpacking leaves free."""
PIECE = 1024 * 1024
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "ZIP"}
SUFFIXES = {".gz": "gzip", ".gzip": "gzip", ".zst": "Zstandard", ".zstd": "Zstandard", ".zip": "ZIP"}
ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
PASSED_OVER = ("__MACOSX/", ".DS_Store", "Thumbs.db")
"""What systems put beside a file without being asked."""
ONE_FILE = "Upload one data file per archive; this one"
NO_ROOM = "The file takes more room when it is unpacked than the server has left. Upload a smaller one."
BROKEN = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What the libraries raise for bytes that they cannot unpack."""


@dataclass(frozen=True)
class Packing:
    """How a file is packed, and what the one inside it is called."""

    path: Path
    kind: str
    """gzip, Zstandard or ZIP."""
    inner: str

    def open(self) -> BinaryIO:
        file = self.path.open("rb")
        try:
            return Unpacked(file, _stream(file, self.kind), self.kind)  # type: ignore[return-value]
        except BROKEN as error:
            file.close()
            raise self.broken(error) from error

    def broken(self, error: Exception) -> UserError:
        return broken(self.kind, error)


class Unpacked:
    """The bytes inside a packed file. Reads exactly as many as are asked for, but at its end."""

    def __init__(self, packed: BinaryIO, stream: Any, kind: str):
        self.packed, self.stream, self.kind = packed, stream, kind
        self.left = EXPANDED

    def read(self, size: int) -> bytes:
        pieces = []
        try:
            while size > 0 and (piece := self.stream.read(size)):
                pieces.append(piece)
                size -= len(piece)
                self.left -= len(piece)
        except BROKEN as error:
            raise broken(self.kind, error) from error
        if self.left < 0:
            raise UserError(f"The {self.kind} file expands beyond {EXPANDED >> 30} GB. Split it.")
        return b"".join(pieces)

    def close(self) -> None:
        self.stream.close()  # what it holds for unpacking may be 128 MB
        self.packed.close()

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def look_inside(path: Path, head: bytes, *, filename: str) -> Packing | None:
    """How a file is packed; nothing where it is not. A workbook is a ZIP too: whoever calls has looked for one before."""
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if not kind:
        return None
    if kind == "ZIP":
        with path.open("rb") as file:
            inner = only_member(listed(file)).filename
    else:
        inner = filename[: -len(suffix)] if (suffix := Path(filename).suffix).lower() in SUFFIXES else filename
    return Packing(path, kind, PurePosixPath(inner.replace("\\", "/")).name)


def broken(kind: str, error: Exception) -> UserError:
    text = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in text or "end-of-stream" in text or "not a zip file" in text:
        return UserError(f"The {kind} file ends too early; was the upload or export interrupted?")
    if isinstance(error, NotImplementedError):
        return UserError(f"The {kind} file is packed in a way that cannot be read. Pack it with the method Deflate.")
    return UserError(f"The {kind} file is damaged. Pack it again.")


def _stream(file: BinaryIO, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    if kind == "ZIP":
        archive = listed(file)
        return archive.open(only_member(archive))
    import pyarrow as pa

    return Frames(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))


class Frames:
    """What Arrow unpacks. Its own `read` does not give back the memory that it took for bytes which then cannot be unpacked."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.close = stream.close

    def read(self, size: int) -> bytes:
        return bytes(self.stream.read_buffer(size).to_pybytes())


class Bounded(io.RawIOBase):
    """A file of which no more is read at once than the list of an archive's files may take."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if size > DIRECTORY:
            raise UserError("The ZIP file lists too many files. Upload one data file per archive.")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True


def listed(file: BinaryIO) -> zipfile.ZipFile:
    """The archive in an open file. Raises UserError where its list is damaged or without measure."""
    try:
        return zipfile.ZipFile(Bounded(file))
    except BROKEN as error:
        raise broken("ZIP", error) from error


def only_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The one data file of an archive. Raises UserError where there is none or more, or where it is none."""
    members = [member for member in archive.infolist() if not _passed_over(member.filename)]
    if len(members) != 1:
        names = ", ".join(excerpt(member.filename)[:60] for member in members[:3]) + (", …" if len(members) > 3 else "")
        raise UserError(f"{ONE_FILE} has {len(members)}: {names}." if members else f"{ONE_FILE} is empty.")
    (member,) = members
    shown = excerpt(member.filename)[:60]
    if ".." in PurePosixPath(member.filename.replace("\\", "/")).parts or member.filename.startswith(("/", "\\")):
        raise UserError(f"{ONE_FILE} has a path that leads out of it: {shown}.")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{ONE_FILE} has a link: {shown}.")
    if member.flag_bits & 1:
        raise UserError(f"{ONE_FILE} is encrypted. Pack it without a password.")
    if member.filename.lower().endswith(ARCHIVES):
        raise UserError(f"{ONE_FILE} has another archive inside: {shown}.")
    if member.file_size > EXPANDED:
        raise UserError(f"The ZIP file expands beyond {EXPANDED >> 30} GB. Split it.")
    return member


def _passed_over(name: str) -> bool:
    return name.endswith("/") or name.startswith(PASSED_OVER[0]) or PurePosixPath(name).name in PASSED_OVER[1:]


@contextmanager
def seekable(reading: Reading) -> Iterator[BinaryIO]:
    """The file, or the one inside it written to a nameless file of the work folder: for formats that are not read from front to back."""
    if reading.unpacked is None:
        with reading.path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=reading.work) as whole:
        with reading.open() as packed:
            while piece := packed.read(PIECE):
                if shutil.disk_usage(reading.work or tempfile.gettempdir()).free < SPARE:
                    raise UserError(NO_ROOM)
                try:
                    whole.write(piece)
                except OSError as error:
                    raise UserError(NO_ROOM) from error
            reading.follow(packed)
        whole.seek(0)
        yield whole
