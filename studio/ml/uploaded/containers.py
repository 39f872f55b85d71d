"""What file an upload is, by its first bytes, and which files of a zip are an adapter. Nothing is executed and no path is followed."""

import lzma
import re
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

from studio.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Taken along where the vocabulary grew."""
LARGEST_TEXT = {CONFIG: 1 << 20, "tokenizer.json": 64 << 20}
"""Bytes of each file that is no weights; 1 MiB where it is not named."""
MOST_ENTRIES, MOST_RATIO = 1000, 200
PIECE = 1 << 20
DAMAGED = (BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)
"""What zipfile and the libraries below it raise for an archive that is no good, or that they do not read."""
PICKLED = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt|joblib)$", re.IGNORECASE)
FOREIGN = (
    (b"\x80\x02", "a pickled file, which can run code when it is opened. Save the adapter as safetensors"),
    (b"\x80\x03", "a pickled file, which can run code when it is opened. Save the adapter as safetensors"),
    (b"\x80\x04", "a pickled file, which can run code when it is opened. Save the adapter as safetensors"),
    (b"\x80\x05", "a pickled file, which can run code when it is opened. Save the adapter as safetensors"),
    (b"GGUF", "a GGUF file. Upload the adapter that it was made from, as safetensors"),
    (b"\x1f\x8b", "a gzip archive. Pack the adapter's folder as a .zip"),
    (b"7z\xbc\xaf", "a 7-Zip archive. Pack the adapter's folder as a .zip"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive. Pack the adapter's folder as a .zip"),
    (b"\x89HDF", "an HDF5 file. Save the adapter as safetensors"),
)  # fmt: skip


@dataclass(frozen=True)
class Room:
    """Bytes that an adapter's files may have."""

    store: int | None
    """None where its client has no limit."""
    disk: int

    def refuse_beyond(self, size: int) -> None:
        """Raises UserError where files of `size` bytes have no room."""
        has = f"The adapter's files have {size / 1e6:,.1f} MB"
        if self.store is not None and size > self.store:
            more = "Delete what is not needed, or ask an owner or admin to raise the limit."
            raise UserError(f"{has}, and its client may store {self.store / 1e6:,.1f} MB more. {more}")
        if size > self.disk:
            raise UserError(f"{has}, and this machine has room for {self.disk / 1e6:,.1f} MB. Make room on its disk, then start again.")


@dataclass
class Unpacked:
    """What was taken out of an upload, and what was left in it."""

    files: list[str]
    left: list[str] = field(default_factory=list)


def unpack(upload: Path, folder: Path, room: Room) -> Unpacked:
    """Writes the adapter's own files to `folder`, under their usual names. Raises UserError for everything that is no adapter."""
    with upload.open("rb") as file:
        start = file.read(16)
    for magic, words in FOREIGN:
        if start.startswith(magic):
            raise UserError(f"This is {words}, then upload it again.")
    if start.startswith(b"PK"):
        return _unzip(upload, folder, room)
    if len(start) < 10 or start[8:9] != b"{":
        raise UserError("This is neither a safetensors file nor a .zip of an adapter's folder. Upload one of the two.")
    room.refuse_beyond(upload.stat().st_size)
    with upload.open("rb") as file, (folder / WEIGHTS).open("wb") as out:
        _copy(file, out, most=upload.stat().st_size, name=WEIGHTS)
    return Unpacked([WEIGHTS])


def _unzip(upload: Path, folder: Path, room: Room) -> Unpacked:
    try:
        with ZipFile(upload) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise UserError(f"The archive holds {len(entries):,} files; an adapter's folder has a few. Pack only that folder.")
            chosen = _chosen([entry for entry in entries if not entry.is_dir()])
            room.refuse_beyond(sum(entry.file_size for entry in chosen.values()))  # no entry is read beyond what it says
            for name, entry in chosen.items():
                _take(archive, entry, folder / name, name)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault; bz2 says the stream's without a number
        raise UserError("The archive is damaged, encrypted or of an unusual kind. Pack the adapter's folder as a plain .zip.") from error
    taken = {entry.filename for entry in chosen.values()}
    left = sorted(PurePosixPath(entry.filename).name for entry in entries if not entry.is_dir() and entry.filename not in taken)
    return Unpacked(list(chosen), left)


def _chosen(entries: list[ZipInfo]) -> dict[str, ZipInfo]:
    """The entry of each file that is wanted: those of the one folder that has weights. Links and second names are refused."""
    weights = [entry for entry in entries if PurePosixPath(entry.filename).name == WEIGHTS]
    if not weights:
        if any(PICKLED.search(entry.filename) for entry in entries):
            raise UserError("The archive holds pickled weights, which can run code when they are opened. Save the adapter as safetensors.")
        raise UserError(f"The archive holds no {WEIGHTS}. Pack the folder that PEFT, Unsloth, Axolotl or LLaMA-Factory saved.")
    if len(weights) > 1:
        raise UserError(f"The archive holds {len(weights)} adapters. Upload them one by one, each as a .zip of its own folder.")
    home = PurePosixPath(weights[0].filename).parent
    found: dict[str, ZipInfo] = {}
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path.parent != home or path.name not in (WEIGHTS, CONFIG, *TOKENIZER):
            continue
        if path.name in found or stat.S_ISLNK(entry.external_attr >> 16) or entry.flag_bits & 1:
            raise UserError(
                "The archive holds a link, an encrypted file, or two files of one name. Pack the adapter's folder as a plain .zip."
            )
        found[path.name] = entry
    return found


def _take(archive: ZipFile, entry: ZipInfo, target: Path, name: str) -> None:
    most = entry.file_size if name == WEIGHTS else LARGEST_TEXT.get(name, 1 << 20)
    if entry.file_size > most or entry.file_size > MOST_RATIO * max(entry.compress_size, 1 << 10):
        raise UserError(f"{name} in the archive is larger than an adapter's can be.")
    with archive.open(entry) as packed, target.open("wb") as out:
        _copy(packed, out, most=most, name=name)


def _copy(source: IO[bytes], out: BinaryIO, *, most: int, name: str) -> None:
    """Counts what really comes: what an archive says of itself may be a lie."""
    left = most
    while piece := source.read(min(PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise UserError(f"{name} in the archive is larger than it says.")
        out.write(piece)
