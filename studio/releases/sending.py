"""Answers with a delivery's bundle: a zip made while it is sent, counted once for each download, that goes on where one broke off."""

from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from studio.artifacts.downloads import attachment, part_of, wanted_range, zip_bytes
from studio.releases.bundling import Bundle, bundle_of
from studio.releases.delivering import Visitor, count_download, download_mark, log_resume, resumed
from studio.releases.models import Delivery, Download
from studio.workspaces.middleware import address_of
from studio.workspaces.models import Member


def bundle_response(request: HttpRequest, delivery: Delivery, *, member: Member | None) -> HttpResponseBase | None:
    """The zip whole, or from where a counted download broke off; None where there is none left to be had. HEAD is not counted.

    A range is heeded only with `If-Range` and the ETag of a download that was counted, and where it does not begin at the beginning:
    whatever else asks for a part gets all of it, and is counted. Each time that a download goes on is on record.
    """
    bundle = bundle_of(delivery)
    name, length = f"{bundle.name}.zip", bundle.length  # before it is counted: a file that is gone must not cost a download
    if request.method == "HEAD":
        return sized(attachment(request, zip_bytes([]), filename=name), length) if delivery.is_open else None
    visitor = Visitor.of(request, member=member, ip=address_of(request))
    going_on = continued(request, delivery, bundle)
    if going_on is not None:
        if going_on.start >= length:
            return HttpResponse(status=416, headers={"Content-Range": f"bytes */{length}"})
        log_resume(going_on.download, visitor)
        if going_on.start > 0:
            return partial(request, bundle, going_on)
    download = going_on.download if going_on is not None else count_download(delivery, visitor)
    if download is None:
        return None
    response = sized(attachment(request, zip_bytes(bundle.entries), filename=name), length)
    response["ETag"] = etag(bundle, download)
    return response


@dataclass(frozen=True)
class GoingOn:
    download: Download
    start: int
    """0 where the zip has become another since, so that all of it is sent."""
    end: int


def continued(request: HttpRequest, delivery: Delivery, bundle: Bundle) -> GoingOn | None:
    """The download that this request goes on with, and the bytes that it wants; None where it begins at the beginning."""
    condition = request.headers.get("If-Range", "")
    identity, _, mark = condition.strip('"').partition(".")
    start, end = wanted_range(request, size=bundle.length, etag=condition, changed=0)
    if start == 0 or (download := resumed(delivery, mark)) is None:
        return None
    return GoingOn(download, start, end) if identity == bundle.identity else GoingOn(download, 0, bundle.length)


def partial(request: HttpRequest, bundle: Bundle, going_on: GoingOn) -> HttpResponseBase:
    start, end = going_on.start, going_on.end
    body = part_of(zip_bytes(bundle.entries), start=start, end=end)
    response = sized(attachment(request, body, filename=f"{bundle.name}.zip", status=206), end - start)
    response["ETag"] = etag(bundle, going_on.download)
    response["Content-Range"] = f"bytes {start}-{end - 1}/{bundle.length}"
    return response


def sized(response: HttpResponseBase, length: int) -> HttpResponseBase:
    response["Content-Length"] = str(length)
    response["Accept-Ranges"] = "bytes"
    response["Cache-Control"] = "no-store, private"
    return response


def etag(bundle: Bundle, download: Download) -> str:
    return f'"{bundle.identity}.{download_mark(download)}"'
