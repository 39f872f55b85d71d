"""A version's rows as a download, sent while they are read. For the pages and the API; who may have them is decided before."""

from typing import cast

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header
from django.utils.text import slugify

from studio.datasets.exporting import Export
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.rowfile import Split
from studio.streaming import sent

KINDS = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def export_response(version: DatasetVersion, *, format: str, spelling: str, split: str) -> HttpResponseBase:
    """The file. Raises UserError where there is none such, before anything of it is sent."""
    if split not in ("", "train", "validation"):
        raise UserError("There is no such export.", fields={"split": "Choose train or validation, or leave it out for all rows."})
    wanted = Export(
        path=version.rows_path,
        shape=(version.facts or {})["shape"],
        format=format,
        spelling=spelling,
        split=cast("Split", split) if split else None,
    )
    wanted.check()
    headers = {
        "Content-Disposition": content_disposition_header(True, filename(version, wanted)) or "attachment",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    return StreamingHttpResponse(sent(wanted.pieces()), content_type=KINDS[format], headers=headers)


def filename(version: DatasetVersion, wanted: Export) -> str:
    stem = slugify(version.dataset.name)[:60] or "dataset"
    words = [stem, f"v{version.number}", *([wanted.split] if wanted.split else []), *([] if wanted.shape == "text" else [wanted.spelling])]
    return f"{'-'.join(words)}.{wanted.format}"
