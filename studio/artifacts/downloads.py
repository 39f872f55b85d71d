"""Answers with an artifact's files: one whole or in ranges, several as a zip. Who may have them is decided before.

Everything is streamed by asynchronous generators: a synchronous one is read into memory whole by Django's ASGI handler.
"""

import asyncio
import re
import zipfile
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from zipfile import ZipFile, ZipInfo

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header, http_date, parse_http_date_safe

from studio.artifacts.models import Artifact
from studio.errors import UserError

PIECE = 1 << 20
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
NO_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip can hold: the same files are the same zip on every day."""
SUMS = "SHA256SUMS"
GGUF_KINDS = (Artifact.Kind.GGUF, Artifact.Kind.GGUF_ADAPTER)


def artifact_response(request: HttpRequest, artifact: Artifact) -> HttpResponseBase:
    """The artifact to take home: its one file (of a GGUF, the .gguf), or all of its files as a zip."""
    name = main_file(artifact)
    if name is not None:
        return artifact_file_response(request, artifact, name)
    refuse_unproved(artifact)
    return zip_response(request, artifact)


def artifact_file_response(request: HttpRequest, artifact: Artifact, name: str) -> HttpResponseBase:
    """One file by its name in the sealed folder. Raises Http404 for a name that was not sealed."""
    if name not in artifact.files:
        raise Http404
    refuse_unproved(artifact)
    return ranged_file(request, artifact.folder / name, filename=PurePosixPath(name).name, sha256=artifact.files[name]["sha256"])


def bundle_response(request: HttpRequest, artifact: Artifact) -> HttpResponseBase:
    """The file to take home with all that lies beside it, as a zip."""
    refuse_unproved(artifact)
    return zip_response(request, artifact)


def main_file(artifact: Artifact) -> str | None:
    names = list(artifact.files)
    if artifact.kind in GGUF_KINDS:
        names = [name for name in names if name.endswith(".gguf")]
    return names[0] if len(names) == 1 else None


def refuse_unproved(artifact: Artifact) -> None:
    """What a build left leaves the house only after it was run and compared."""
    build = getattr(artifact, "build", None)
    if artifact.was_built and not (build and build.passed):
        raise UserError("This file has not passed its verification, so it cannot be downloaded. Build it again.", code="not_verified")


def ranged_file(request: HttpRequest, path: Path, *, filename: str, sha256: str) -> HttpResponseBase:
    """A file that never changes: 200, 206 for one range, 304, 412, or 416 for a range beyond its end."""
    facts = path.stat()
    etag, changed = f'"{sha256}"', int(facts.st_mtime)
    if (early := get_conditional_response(request, etag=etag, last_modified=changed)) is not None:
        return early
    start, end = wanted_range(request, size=facts.st_size, etag=etag, changed=changed)
    partial = (start, end) != (0, facts.st_size)
    if partial and start >= facts.st_size:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{facts.st_size}"})
    response = attachment(request, file_bytes(path, start=start, end=end), filename=filename, status=206 if partial else 200)
    response["Content-Length"] = str(end - start)
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = etag
    response["Last-Modified"] = http_date(changed)
    if partial:
        response["Content-Range"] = f"bytes {start}-{end - 1}/{facts.st_size}"
    return response


def wanted_range(request: HttpRequest, *, size: int, etag: str, changed: int) -> tuple[int, int]:
    """(first byte, byte after the last); everything where no single range is asked for, or the file is another by now.

    A range that lies beyond the end comes back with its first byte at or after `size`.
    """
    everything = (0, size)
    asked = RANGE.fullmatch(request.headers.get("Range", "").strip())
    if request.method != "GET" or asked is None:
        return everything
    condition = request.headers.get("If-Range")
    if condition and condition != etag and parse_http_date_safe(condition) != changed:
        return everything
    first, last = asked.groups()
    if not first:
        return (max(0, size - int(last)), size) if last else everything
    if last and int(last) < int(first):
        return everything
    return int(first), min(int(last) + 1, size) if last else size


def attachment(request: HttpRequest, body: AsyncIterator[bytes], *, filename: str, status: int = 200) -> HttpResponseBase:
    """A download that no browser opens in the studio's own origin."""
    headers = {
        "Content-Disposition": content_disposition_header(True, filename) or "attachment",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    kind = "application/zip" if filename.endswith(".zip") else "application/octet-stream"
    if request.method == "HEAD":
        return HttpResponse(status=status, content_type=kind, headers=headers)
    return StreamingHttpResponse(body, status=status, content_type=kind, headers=headers)


async def file_bytes(path: Path, *, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes from `start` up to `end`, in pieces of at most 1 MiB."""
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        file.seek(start)
        left = end - start
        while left > 0 and (piece := await asyncio.to_thread(file.read, min(PIECE, left))):
            left -= len(piece)
            yield piece


def zip_response(request: HttpRequest, artifact: Artifact) -> HttpResponseBase:
    """All files and SHA256SUMS in one folder of a zip, made while it is sent. Single files answer ranges; a zip comes whole."""
    stem = artifact.file_stem or "artifact"
    files: list[tuple[str, Path | bytes]] = [(f"{stem}/{name}", artifact.folder / name) for name in sorted(artifact.files)]
    if SUMS not in artifact.files:
        files.append((f"{stem}/{SUMS}", sums(artifact).encode()))
    response = attachment(request, zip_bytes(files), filename=f"{stem}.zip")
    response["Accept-Ranges"] = "none"
    return response


def sums(artifact: Artifact) -> str:
    """The hashes as they were sealed."""
    return sum_lines({name: str(facts["sha256"]) for name, facts in artifact.files.items()})


def sum_lines(hashes: Mapping[str, str]) -> str:
    """As `sha256sum -c` reads them: a line with a sign that breaks it begins with a backslash."""
    lines = []
    for name, digest in sorted(hashes.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
    return "".join(lines)


class Sink:
    """What ZipFile writes into: keeps the bytes until they are taken. It cannot seek, so nothing is ever rewritten."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self.pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        taken, self.pieces = b"".join(self.pieces), []
        return taken


async def zip_bytes(files: list[tuple[str, Path | bytes]]) -> AsyncIterator[bytes]:
    """A zip of (name in it, path or content), stored without compression: weights do not get smaller."""
    sink = Sink()
    with ZipFile(sink, "w") as archive:
        for name, content in files:
            info = ZipInfo(name, date_time=NO_DATE)
            info.external_attr = 0o644 << 16
            opened = BytesIO(content) if isinstance(content, bytes) else content.open("rb")
            with opened as file, archive.open(info, "w", force_zip64=True) as entry:
                while piece := await asyncio.to_thread(file.read, PIECE):
                    await asyncio.to_thread(entry.write, piece)
                    yield sink.take()
    yield sink.take()


def zip_length(files: list[tuple[str, Path | bytes]]) -> int:
    """Bytes of the zip that `zip_bytes` makes of them, known before any of it is made (APPNOTE.TXT 6.3, with zip64 throughout)."""
    body = directory = 0
    for name, content in files:
        size, letters = len(content) if isinstance(content, bytes) else content.stat().st_size, len(name.encode())
        far = [2 * (size > zipfile.ZIP64_LIMIT), int(body > zipfile.ZIP64_LIMIT)]  # what the directory cannot hold in four bytes
        directory += 46 + letters + (4 + 8 * sum(far) if any(far) else 0)
        body += 30 + letters + 20 + size + 24  # header, name, sizes in eight bytes, content, descriptor
    large = max(body, directory) > zipfile.ZIP64_LIMIT or len(files) > zipfile.ZIP_FILECOUNT_LIMIT
    return body + directory + 22 + (56 + 20 if large else 0)


async def part_of(pieces: AsyncIterator[bytes], *, start: int, end: int) -> AsyncIterator[bytes]:
    """Of a stream the bytes from `start` up to `end`; what lies before is made and passed over."""
    at = 0
    async for piece in pieces:
        if at >= end:
            return
        if kept := piece[max(0, start - at) : end - at]:
            yield kept
        at += len(piece)
