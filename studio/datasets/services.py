"""Takes files in as new versions, and asks for their rows to be read and measured."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Max, OuterRef, QuerySet, Subquery

from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.datasets.models import Dataset, DatasetVersion, Measurement
from studio.datasets.shapes import detect
from studio.datasets.stored import sharing
from studio.errors import UserError
from studio.orders.quotas import refuse_storage
from studio.orders.services import place, request_stop
from studio.workspaces.models import Client, Member, Project, hold

SPARE = 1 << 30
"""Bytes of disk that an upload leaves free."""


READING: dict[str, tuple[type, tuple[Any, ...]]] = {
    "encoding": (str, ("utf-8", "cp1252")),
    "sheet": (str, ()),
    "refused": (str, ("skip", "stop")),
}
RULES: dict[str, tuple[type, tuple[Any, ...]]] = {"stratify": (str, ()), "together": (str, ()), "near_duplicates": (bool, ())}
"""What can be chosen about reading and splitting: the type of each value, and its values where they are few."""
LONGEST_WORD = 200


def check_words(place: str, chosen: dict[str, Any], known: dict[str, tuple[type, tuple[Any, ...]]]) -> None:
    """Raises UserError for a choice that does not exist."""
    for name, value in chosen.items():
        if name not in known:
            raise UserError("Some values cannot be used.", fields={f"{place}.{name[:40]}": f"Choose from {', '.join(known)}."})
        kind, values = known[name]
        if not isinstance(value, kind) or (values and value not in values) or len(str(value)) > LONGEST_WORD:
            allowed = f"one of {', '.join(values)}" if values else "true or false" if kind is bool else "a short text"
            raise UserError("Some values cannot be used.", fields={f"{place}.{name}": f"Must be {allowed}."})


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file as it is sent, and how its rows are to be read."""

    filename: str
    """What the person calls it; a label, never a path."""
    chunks: Iterable[bytes]
    size: int
    mapping: dict[str, str] = field(default_factory=dict)
    validation_percent: float = 5.0
    seed: int = 42
    reading: dict[str, Any] = field(default_factory=dict)
    """Where a person chose: `encoding`, `sheet`, `refused` (skip or stop)."""
    rules: dict[str, Any] = field(default_factory=dict)
    """What the split goes by, beyond share and seed: `stratify`, `together`, `near_duplicates`."""

    def check(self) -> None:
        check_words("reading", self.reading, READING)
        check_words("rules", self.rules, RULES)
        if not 0 <= self.validation_percent <= 50:
            raise UserError("The validation share is off.", fields={"validation_percent": "Must be from 0 to 50 per cent."})
        if not 0 <= self.seed <= 4_294_967_295:
            raise UserError("The seed is off.", fields={"seed": "Seed must be 0 to 4 294 967 295."})


@dataclass(frozen=True)
class Stored:
    """An upload that lies on the disk."""

    upload: Upload
    name: str
    sha256: str


def create_dataset(member: Member, *, project: Project, name: str) -> Dataset:
    name = plain_name(name)
    with transaction.atomic():
        hold(project)
        refuse_taken_name(project, name)
        dataset: Dataset = Dataset.objects.create(project=project, name=name)
        record(member, "dataset.create", dataset)
    return dataset


def plain_name(name: str) -> str:
    name = " ".join(name.split())[:80]
    if not name:
        raise UserError("Give the dataset a name.", fields={"name": "Give the dataset a name."})
    return name


def refuse_taken_name(project: Project, name: str) -> None:
    if Dataset.objects.filter(project=project, name=name).exists():
        text = "Another dataset of this project has this name. Add a version to it, or choose another."
        raise UserError("The name is taken.", fields={"name": text})


def create_with_version(member: Member, *, project: Project, name: str, upload: Upload) -> DatasetVersion:
    """A new dataset with its first version, or neither. The file is written first, so that nothing waits for it in a transaction."""
    refuse_taken_name(project, plain_name(name))
    refuse_full(project.client, upload.size)
    stored = store(upload)
    with kept_only_if_recorded(stored), transaction.atomic():
        refuse_storage(project.client, more=upload.size)
        return record_version(member, dataset=create_dataset(member, project=project, name=name), stored=stored)


def refuse_full(client: Client, size: int) -> None:
    """Before anything is written; what others take meanwhile is counted when it is recorded."""
    with transaction.atomic():
        refuse_storage(client, more=size)


@contextmanager
def kept_only_if_recorded(stored: Stored) -> Iterator[None]:
    """Removes the file of an upload that is refused after all."""
    try:
        yield
    except UserError:
        Path(settings.DATA_DIR, "uploads", stored.name).unlink(missing_ok=True)
        raise


def store(upload: Upload) -> Stored:
    """Writes an upload below DATA_DIR/uploads, after it was judged."""
    upload.check()
    size = upload.size
    if size > settings.MAX_UPLOAD:
        raise UserError("The file is too large.", fields={"file": f"At most {settings.MAX_UPLOAD >> 20} MB."})
    folder = Path(settings.DATA_DIR, "uploads")
    folder.mkdir(exist_ok=True, mode=0o700)
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise UserError("The disk is full.", fields={"file": f"Needs {size >> 20} MB, {max(0, free - SPARE) >> 20} MB left on the server."})
    name, digest = uuid.uuid4().hex, hashlib.sha256()
    with (folder / name).open("wb") as file:
        for chunk in upload.chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Stored(upload, name, digest.hexdigest())


def add_version(member: Member, *, dataset: Dataset, upload: Upload) -> DatasetVersion:
    """A version that is being read. The same bytes with the same settings again answer with the version that has them."""
    refuse_full(dataset.project.client, upload.size)
    stored = store(upload)
    with kept_only_if_recorded(stored), transaction.atomic():
        refuse_storage(dataset.project.client, more=upload.size)
        return record_version(member, dataset=dataset, stored=stored)


def record_version(member: Member, *, dataset: Dataset, stored: Stored, origin: dict[str, Any] | None = None) -> DatasetVersion:
    """The row for a stored upload, or the one that has the same already. Called inside a transaction."""
    upload = stored.upload
    hold(dataset)
    wanted = {
        "upload_sha256": stored.sha256,
        "mapping": upload.mapping,
        "validation_percent": upload.validation_percent,
        "seed": upload.seed,
        "reading": upload.reading,
        "rules": upload.rules,
    }
    for same in DatasetVersion.objects.filter(dataset=dataset, **wanted).select_related("order"):
        if same.is_ready or same.order.is_live:
            Path(settings.DATA_DIR, "uploads", stored.name).unlink()
            return same
    number = (DatasetVersion.objects.filter(dataset=dataset).aggregate(Max("number"))["number__max"] or 0) + 1
    version: DatasetVersion = DatasetVersion.objects.create(
        dataset=dataset,
        number=number,
        filename=Path(upload.filename).name[:255] or "upload",
        upload=stored.name,
        size=size_of(stored, dataset.project.client),
        origin=origin or {},
        order=place(member, kind="dataset", client=dataset.project.client),
        **wanted,
    )
    record(member, "dataset.add_version", version, change={"sha256": [None, stored.sha256]})
    return version


def size_of(stored: Stored, client: Client) -> int:
    """Bytes that an upload takes on the disk; none where another version keeps the same file, which counts it."""
    kept = Path(settings.DATA_DIR, "uploads", stored.name)
    return kept.stat().st_size if kept.is_file() and not sharing(kept, stored.sha256, client).exists() else 0


def map_columns(member: Member, version: DatasetVersion, *, mapping: dict[str, str]) -> DatasetVersion:
    """The file of a refused version, read again with the columns that a person named: the dataset's next version."""
    if version.status != "refused":
        raise UserError("This version is not refused. Upload the file again to read it in another way.")
    if not mapping:
        raise UserError("Say what at least one column means.", fields={"mapping": "Choose the question and the answer, or the text."})
    detect([dict.fromkeys(version.columns)], mapping=mapping)
    kept = Path(settings.DATA_DIR, "uploads", version.upload)
    if not kept.is_file():
        raise UserError("The uploaded file is gone. Upload it again.")
    upload = Upload(
        filename=version.filename,
        chunks=(),
        size=kept.stat().st_size,
        mapping=mapping,
        validation_percent=version.validation_percent,
        seed=version.seed,
        reading=version.reading,
        rules=version.rules,
    )
    refuse_full(version.audit_client, 0)
    name = uuid.uuid4().hex
    kept.with_name(name).hardlink_to(kept)
    with transaction.atomic():
        return record_version(member, dataset=version.dataset, stored=Stored(upload, name, version.upload_sha256), origin=version.origin)


def stop_version(member: Member, version: DatasetVersion) -> None:
    with transaction.atomic():
        request_stop(version.order)
        record(member, "dataset.stop", version)


def with_newest(datasets: "QuerySet[Dataset]") -> list[tuple[Dataset, DatasetVersion | None]]:
    """Each dataset with its newest version; two queries, however many there are."""
    versions = DatasetVersion.objects.filter(dataset=OuterRef("pk")).order_by("-number")
    found = list(datasets.annotate(newest_version=Subquery(versions.values("pk")[:1])))
    newest = DatasetVersion.objects.select_related("order").in_bulk([dataset.newest_version for dataset in found])
    return [(dataset, newest.get(dataset.newest_version)) for dataset in found]


def newest_base(workspace: Any) -> BaseModel | None:
    return BaseModel.objects.filter(workspace=workspace, facts__isnull=False).order_by("-created_at").first()


def measure(version: DatasetVersion, base: BaseModel, *, member: Member) -> Measurement | None:
    """Asks for the version's token lengths under a base model, unless they are known or on their way."""
    if not version.is_ready or str(base.pk) in version.tokens:
        return None
    with transaction.atomic():
        hold(version)
        for known in Measurement.objects.filter(version=version, base=base).select_related("order"):
            if known.order.is_live or known.order.status == known.order.Status.FAILED:
                return known
        order = place(member, kind="tokens", client=version.audit_client)
        return Measurement.objects.create(version=version, base=base, order=order)
