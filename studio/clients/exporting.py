"""Everything of a client as one zip, made while it is sent: memory stays flat however much there is. Who may have it is decided before."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import orjson
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import models, transaction
from django.db.models import Sum
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.text import slugify

from studio.artifacts.downloads import NO_DATE, PIECE, SUMS, Sink, attachment, sums
from studio.artifacts.models import Artifact
from studio.audit.models import AuditRecord
from studio.audit.services import record
from studio.clients.holdings import HOLDINGS, Holding
from studio.clients.lineage import lineage
from studio.datasets import rows
from studio.datasets.models import DatasetVersion, Upload
from studio.orders.models import Event, Order
from studio.runs.models import Run
from studio.runs.recipe import recipe_of
from studio.workspaces.models import Client, Member

AT_ONCE = 1000
LARGE_AT_ONCE = 50
"""Rows that are read at once."""
AUDITED = ("id", "at", "user_email", "key", "ip", "verb", "object_kind", "object_id", "label", "change", "place", "sha256")
README = """Everything of {client}, as it was on {at} (UTC).

client.json      the client itself, and what stands in this archive
records/         one file for each kind of thing, one JSON object a line: projects, runs with their settings, releases, approvals,
                 evaluations, deployments with their history, deliveries with each download, and so on. They name each other by id.
datasets/        the canonical rows of every version (train.jsonl, validation.jsonl), what was refused (refusals.jsonl), and the file
                 as it was uploaded, where it is kept
uploads/         files that arrived and have not become a version yet
runs/            for each run its settings (run.yaml), all that it reported (events.jsonl, with every metric), and its log
orders/          the same of all other work: imports, builds, evaluations
artifacts/       the files of every adapter, model and build, with SHA256SUMS
lineage.json     what came of what: {{"nodes": [...], "edges": [[from, to], ...]}}
audit.jsonl      who did what and when
manifest.json    the SHA-256 and the size of every file in this archive, and the names of files that were missing

Not in it: keys, invitations and the links of deliveries, which open something; keys of connections to other services; base models, which
belong to the workspace; saved states of runs, which only the studio can go on from; usage for invoices, which has a file of its own.
"""


@dataclass
class Entry:
    name: str
    """With folders, below the archive's own."""
    pieces: Iterable[bytes]


@dataclass
class Archive:
    """One zip on its way."""

    client: Client
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        return f"{self.client.slug}-export"

    def pieces(self) -> Iterator[bytes]:
        sink = Sink()
        with ZipFile(sink, "w") as archive:
            for entry in self.entries():
                yield from self._written(archive, sink, entry)
            about = {"made_at": timezone.now(), "client": self.client.pk, "files": self.files, "missing": self.missing}
            yield from self._written(archive, sink, Entry("manifest.json", [as_json(about)]))
        yield sink.take()

    def _written(self, archive: ZipFile, sink: Sink, entry: Entry) -> Iterator[bytes]:
        info = ZipInfo(f"{self.stem}/{entry.name}", date_time=NO_DATE)
        info.external_attr = 0o644 << 16
        digest, size = hashlib.sha256(), 0
        with archive.open(info, "w", force_zip64=True) as file:
            for piece in entry.pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
                yield sink.take()
        self.files[entry.name] = {"sha256": digest.hexdigest(), "size": size}
        yield sink.take()

    def entries(self) -> Iterator[Entry]:
        at = f"{timezone.now():%d %B %Y, %H:%M}"
        yield Entry("README.txt", [README.format(client=self.client.name, at=at).encode()])
        counts = {holding.name: holding.rows(self.client).count() for holding in HOLDINGS}
        told = {name: getattr(self.client, name) for name in ("id", "name", "slug", "created_at", "archived_at")}
        yield Entry("client.json", [as_json(told | {"holds": counts})])
        people = dict(get_user_model().objects.filter(memberships__workspace=self.client.workspace_id).values_list("pk", "email"))
        for holding in HOLDINGS:
            if holding.model is not Event:  # they stand beside their run
                yield Entry(f"records/{holding.name}.jsonl", lines(holding, self.client, people))
        yield from self._datasets()
        yield from self._uploads()
        yield from self._orders()
        yield from self._artifacts()
        yield Entry("lineage.json", [as_json(lineage(self.client))])
        yield Entry("audit.jsonl", audit_lines(self.client))

    def _datasets(self) -> Iterator[Entry]:
        versions = DatasetVersion.objects.filter(dataset__project__client=self.client).select_related("dataset", "order")
        for version in in_pieces(versions):
            folder = f"datasets/{slugify(version.dataset.name)[:60] or 'dataset'}-{version.dataset_id.hex[:8]}/v{version.number}"
            if version.is_ready and self._is_there(version.rows_path, f"{folder}/train.jsonl"):
                yield Entry(f"{folder}/train.jsonl", row_lines(version, "train"))
                yield Entry(f"{folder}/validation.jsonl", row_lines(version, "validation"))
                yield Entry(f"{folder}/refusals.jsonl", rows.refusal_pieces(version.folder / "refusals.jsonl"))
            if version.upload:
                yield from self._file(f"{folder}/original/{label(version.filename)}", Path(settings.DATA_DIR, "uploads", version.upload))

    def _uploads(self) -> Iterator[Entry]:
        for upload in in_pieces(Upload.objects.filter(project__client=self.client)):
            yield from self._file(f"uploads/{upload.pk.hex[:8]}-{label(upload.filename)}", upload.path)

    def _orders(self) -> Iterator[Entry]:
        for order in in_pieces(Order.objects.filter(client=self.client)):
            run = Run.objects.filter(order=order).select_related("project__client", "base_model", "dataset_version__dataset").first()
            folder = f"orders/{order.kind}-{order.pk.hex[:12]}"
            if run is not None:
                folder = f"runs/{slugify(run.name)[:60] or 'run'}-{run.pk.hex[:12]}"
                yield Entry(f"{folder}/run.yaml", [recipe_of(run).encode()])
            yield Entry(f"{folder}/events.jsonl", event_lines(order))
            for log in sorted(order.folder.parent.glob("attempt-*/log.txt")):
                yield from self._file(f"{folder}/log-{log.parent.name}.txt", log)

    def _artifacts(self) -> Iterator[Entry]:
        for artifact in in_pieces(Artifact.objects.filter(project__client=self.client).select_related("project__client")):
            folder = f"artifacts/{artifact.file_stem or 'artifact'}-{artifact.pk.hex[:12]}"
            for name in sorted(artifact.files):
                yield from self._file(f"{folder}/{name}", artifact.folder / name)
            if SUMS not in artifact.files:
                yield Entry(f"{folder}/{SUMS}", [sums(artifact).encode()])

    def _file(self, name: str, path: Path) -> Iterator[Entry]:
        if self._is_there(path, name):
            yield Entry(name, file_pieces(path))

    def _is_there(self, path: Path, name: str) -> bool:
        if path.is_file():
            return True
        self.missing.append(name)
        return False


def export_response(request: HttpRequest, member: Member, client: Client) -> HttpResponseBase:
    """The zip, on record from its first byte."""
    with transaction.atomic():
        record(member, "client.export", client)
    archive = Archive(client)
    response = attachment(request, sent(archive.pieces()), filename=f"{archive.stem}.zip")
    response["Accept-Ranges"] = "none"
    return response


async def sent(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece is made in the request's own thread, which has the connection to the database, while others are served."""
    while (piece := await sync_to_async(lambda: next(pieces, None))()) is not None:
        if piece:
            yield piece


def as_json(value: Any) -> bytes:
    """What JSON has no word for, such as a price to the last decimal, is told as text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n"


def as_line(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def label(filename: str) -> str:
    """A name that no unzip takes for a path."""
    plain = "".join(letter if letter.isalnum() or letter in " -_." else "-" for letter in filename).strip(" .")
    return plain[:150] or "file"


def in_pieces(found: "models.QuerySet[Any]", *, at_once: int = AT_ONCE) -> Iterator[Any]:
    """All rows, some at a time and by their keys: a slow reader holds no cursor open, which would keep SQLite's log from ending."""
    last = None
    ordered = found.order_by("pk")
    while some := list((ordered if last is None else ordered.filter(pk__gt=last))[:at_once]):
        yield from some
        last = some[-1].pk


def lines(holding: Holding, client: Client, people: dict[int, str]) -> Iterator[bytes]:
    user = get_user_model()
    fields = [each for each in holding.model._meta.concrete_fields if each.name not in holding.without]
    many = holding.model._meta.many_to_many
    rows_of = holding.rows(client).defer(*holding.without).prefetch_related(*(each.name for each in many))
    for row in in_pieces(rows_of, at_once=LARGE_AT_ONCE if holding.large else AT_ONCE):
        told = {each.name: row.serializable_value(each.attname) for each in fields}
        told |= {each.name: people.get(told[each.name]) for each in fields if each.related_model is user}
        yield as_line(told | {each.name: [other.pk for other in getattr(row, each.name).all()] for each in many})


def row_lines(version: DatasetVersion, split: rows.Split) -> Iterator[bytes]:
    found: list[bytes] = []
    size = 0
    for _, text in rows.texts(version.rows_path, split=split):
        found.append(text.encode() + b"\n")
        size += len(found[-1])
        if size > PIECE:
            yield b"".join(found)
            found, size = [], 0
    yield b"".join(found)


def event_lines(order: Order) -> Iterator[bytes]:
    last = 0
    while some := list(Event.objects.filter(order=order, seq__gt=last).order_by("seq")[:AT_ONCE]):
        yield b"".join(as_line(event.wire()) for event in some)
        last = some[-1].seq


def audit_lines(client: Client) -> Iterator[bytes]:
    for each in in_pieces(AuditRecord.objects.filter(workspace=client.workspace_id, client=client.pk)):
        yield as_line({name: getattr(each, name) for name in AUDITED})


def file_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def contents(client: Client, *, to_erase: bool = False) -> dict[str, Any]:
    """What the archive will hold: `{lines: [{title, rows}], size}`; roughly, for rows are stored smaller than they are sent.

    With `to_erase`, without what outlives the client.
    """
    holdings = [holding for holding in HOLDINGS if not (to_erase and holding.stays)]
    told = [{"title": holding.title, "rows": holding.rows(client).count()} for holding in holdings]
    size = Artifact.objects.filter(project__client=client).aggregate(size=Sum("size"))["size"] or 0
    versions = DatasetVersion.objects.filter(dataset__project__client=client)
    for version in versions.only("pk", "upload").iterator():
        kept = [version.rows_path, *([Path(settings.DATA_DIR, "uploads", version.upload)] if version.upload else [])]
        size += sum(path.stat().st_size for path in kept if path.is_file())
    return {"lines": sorted((line for line in told if line["rows"]), key=lambda line: line["title"]), "size": size}
