"""The words of the tus protocol, version 1.0, over HTTP: create, ask, send a piece, end. What is done with the bytes stands in `uploading`.

Understands the extensions creation, termination, checksum and expiration. A piece is spooled to the disk by the web server before it
comes here, so memory stays flat; how large it may be is said in `studio.workspaces.intake`. Creating and ending an upload is on record;
a piece is not, for a file has thousands.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.http import http_date

from studio.datasets import uploading
from studio.datasets.models import Upload
from studio.errors import UserError

VERSION = "1.0.0"
READ = 1 << 20
ALGORITHMS = ("sha1", "sha256")
LONGEST_METADATA = 8192
STATUS: dict[type[UserError], int] = {
    uploading.OffsetConflict: 409,
    uploading.TooMuch: 413,
    uploading.Locked: 423,
    uploading.WrongChecksum: 460,
}


class Refused(UserError):
    """A request that is not as the protocol has it."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


Refusal = Callable[[int, UserError], HttpResponse]
"""Writes a refusal as whoever asks expects it: text for the browser, JSON for the API."""


def as_text(status: int, error: UserError) -> HttpResponse:
    return HttpResponse(error.message, status=status, content_type="text/plain; charset=utf-8")


def answering(do: Callable[[], HttpResponse], *, refusal: Refusal) -> HttpResponse:
    """What `do` answers, or why not, with the headers that every answer has."""
    try:
        response = do()
    except Refused as error:
        response = refusal(error.status, error)
    except UserError as error:
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 410 if error.code == "gone" else 400)
        response = refusal(status, error)
    response["Tus-Resumable"] = VERSION
    response["Cache-Control"] = "no-store"
    return response


def options() -> HttpResponse:
    """What this server can."""
    return HttpResponse(
        status=204,
        headers={
            "Tus-Resumable": VERSION,
            "Tus-Version": VERSION,
            "Tus-Extension": "creation,termination,checksum,expiration",
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
            "Tus-Max-Size": str(settings.MAX_UPLOAD),
        },
    )


def refuse_other_versions(request: HttpRequest) -> None:
    if request.headers.get("Tus-Resumable", VERSION) != VERSION:
        raise Refused(412, f"This server speaks tus {VERSION}.")


def metadata(request: HttpRequest) -> dict[str, str]:
    """Upload-Metadata: names, each with its value in base64."""
    header = request.headers.get("Upload-Metadata", "")
    if len(header) > LONGEST_METADATA:
        raise Refused(400, "Upload-Metadata is too long.")
    found: dict[str, str] = {}
    for pair in header.split(","):
        name, _, value = pair.strip().partition(" ")
        if name:
            try:
                found[name] = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise Refused(400, f"{name[:40]} in Upload-Metadata is not text in base64.") from None
    return found


def announced_length(request: HttpRequest) -> int:
    typed = request.headers.get("Upload-Length", "")
    if not (typed.isascii() and typed.isdigit() and len(typed) < 19):
        raise Refused(400, "Say in Upload-Length how many bytes the file has.")
    return int(typed)


def created(upload: Upload, *, location: str) -> HttpResponse:
    return HttpResponse(status=201, headers={"Location": location, "Upload-Offset": "0"} | expires(upload))


def expires(upload: Upload) -> dict[str, str]:
    return {"Upload-Expires": http_date((upload.touched_at + uploading.KEPT).timestamp())}


def head(upload: Upload) -> HttpResponse:
    """How much has arrived. Whoever asks is about to go on, so what was cut off right before the end is ended now."""
    uploading.complete(upload)
    arrived = {"Upload-Offset": str(upload.offset), "Upload-Length": str(upload.length)}
    return HttpResponse(status=200, headers=arrived | expires(upload))


def patch(request: HttpRequest, upload: Upload) -> HttpResponse:
    refuse_other_versions(request)
    if request.content_type != "application/offset+octet-stream":
        raise Refused(415, "Send a piece as application/offset+octet-stream.")
    if upload.order_id:
        raise Refused(403, "The studio fetches this file itself.")
    typed = request.headers.get("Upload-Offset", "")
    if not (typed.isascii() and typed.isdigit() and len(typed) < 19):
        raise Refused(400, "Say in Upload-Offset where the piece begins.")
    reached = uploading.append(upload, body(request), offset=int(typed), checksum=checksum(request))
    return HttpResponse(status=204, headers={"Upload-Offset": str(reached)} | expires(upload))


def checksum(request: HttpRequest) -> tuple[str, bytes] | None:
    header = request.headers.get("Upload-Checksum")
    if header is None:
        return None
    name, _, value = header.partition(" ")
    if name not in ALGORITHMS:
        raise Refused(400, f"Upload-Checksum can be {' or '.join(ALGORITHMS)}.")
    try:
        return name, base64.b64decode(value, validate=True)
    except binascii.Error:
        raise Refused(400, "Upload-Checksum is not base64.") from None


def body(request: Any) -> Iterator[bytes]:
    """The body as it comes, never whole in memory."""
    while piece := request.read(READ):
        yield piece
