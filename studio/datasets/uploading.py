"""Takes a file in, piece by piece, and keeps it until a version takes it over. How pieces travel is told in `tus`; rows are not read."""

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BufferedRandom
from pathlib import Path, PurePath
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from studio.audit.services import record
from studio.datasets.models import Dataset, DatasetVersion, Upload
from studio.datasets.services import Stored, create_dataset, record_version
from studio.datasets.services import Upload as Wanted
from studio.errors import UserError
from studio.orders.quotas import refuse_storage
from studio.orders.services import request_stop
from studio.storage import remove_folder, sha256_file
from studio.workspaces.models import Member, Project
from studio.workspaces.templatetags.studio import filesize

KEPT = timedelta(days=7)
"""How long an upload waits for whoever began it."""
MOST_OPEN = 200
"""Uploads that one project may have under way."""
SPARE = 1 << 30
"""Bytes of disk that are left free."""


GONE = "What had arrived of this file is gone. Send it again from the beginning."


class OffsetConflict(UserError):
    """The piece does not begin where the file ends."""


class Locked(UserError):
    """Another piece of the same file is being written."""


class WrongChecksum(UserError):
    """The bytes are not those that were sent."""


class TooMuch(UserError):
    """More bytes than there may be."""


def begin(
    member: Member,
    *,
    project: Project,
    filename: str,
    length: int,
    sha256: str = "",
    origin: dict[str, Any] | None = None,
    purpose: str = Upload.Purpose.DATASET,
) -> Upload:
    """An upload of `length` bytes of which none has arrived. What there is no room for is refused before anything is sent."""
    expire()
    with transaction.atomic():
        upload = _placed(member, project, filename, length, sha256=sha256, origin=origin or {}, purpose=purpose)
        record(member, "upload.create", upload, change={"bytes": [None, length]})
    return _touched(upload)


def whole(member: Member, *, project: Project, filename: str, pieces: Iterable[bytes], length: int, purpose: str) -> Upload:
    """A file that came in one request, as an upload that has arrived. On record is what is made of it."""
    with transaction.atomic():
        upload = _placed(member, project, filename, length, sha256="", origin={}, purpose=purpose)
    append(_touched(upload), pieces, offset=0)
    return upload


def _placed(member: Member, project: Project, filename: str, length: int, *, sha256: str, origin: dict[str, Any], purpose: str) -> Upload:
    if length < 1:
        raise UserError("The file is empty.", fields={"file": "The file is empty."})
    if purpose not in Upload.Purpose.values:
        raise UserError("The purpose is not known.", fields={"purpose": f"Choose from {', '.join(Upload.Purpose.values)}."})
    if sha256 and not (len(sha256) == 64 and all(letter in "0123456789abcdef" for letter in sha256)):
        raise UserError("The hash is off.", fields={"sha256": "Must be the SHA-256 of the file, in 64 hex digits."})
    if Upload.objects.filter(project=project).count() >= MOST_OPEN:
        raise UserError(f"{MOST_OPEN} uploads of this project are under way. Finish or discard some first.")
    refuse_without_room(length)
    refuse_storage(project.client, more=length)
    pk = uuid.uuid4()
    upload: Upload = Upload.objects.create(
        pk=pk,
        project=project,
        created_by=member.user,
        filename=label(filename),
        length=length,
        claimed_sha256=sha256,
        name=pk.hex,
        origin=origin,
        purpose=purpose,
    )
    return upload


def _touched(upload: Upload) -> Upload:
    """With its empty file."""
    upload.path.parent.mkdir(exist_ok=True, mode=0o700)
    upload.path.touch(mode=0o600)
    return upload


def label(filename: str) -> str:
    """What people call a file; no path, and nothing that a database cannot take."""
    plain = "".join(letter for letter in PurePath(filename.replace("\\", "/")).name if letter.isprintable())
    return plain[:255] or "upload"


def refuse_without_room(length: int) -> None:
    if length > settings.MAX_UPLOAD:
        sentence = f"The file has {filesize(length)}; at most {filesize(settings.MAX_UPLOAD)} are taken."
        raise TooMuch(sentence, fields={"file": sentence})
    promised = sum(upload.length - upload.offset for upload in Upload.objects.filter(sha256=""))
    left = max(0, shutil.disk_usage(settings.DATA_DIR).free - SPARE - promised)
    if length > left:
        sentence = f"Needs {filesize(length)}, {filesize(left)} left."
        raise TooMuch(sentence, fields={"file": sentence})


@contextmanager
def locked(upload: Upload) -> Iterator[BufferedRandom]:
    """The file, opened for whoever is the only one to write it. Holds between all processes of this machine."""
    try:
        file = upload.path.open("r+b")
    except FileNotFoundError:
        raise UserError(GONE, code="gone") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked("Another piece of this file is just being written. Try again in a moment.") from None
        yield file


def append(upload: Upload, pieces: Iterable[bytes], *, offset: int, checksum: tuple[str, bytes] | None = None) -> int:
    """Writes bytes behind those that are there, in flat memory; returns how many are there then. All of them count, or none.

    `checksum` is an algorithm's name and the digest that the bytes must have.
    """
    with locked(upload) as file:
        end = file.seek(0, os.SEEK_END)
        if end != offset:
            raise OffsetConflict(f"{end} bytes are here; the piece begins at {offset}.")
        digest = hashlib.new(checksum[0]) if checksum else None
        try:
            for piece in pieces:
                if file.tell() + len(piece) > upload.length:
                    raise TooMuch(f"The file was to have {upload.length} bytes, and more were sent.")
                file.write(piece)
                if digest:
                    digest.update(piece)
            if checksum and digest and digest.digest() != checksum[1]:
                raise WrongChecksum("The piece arrived damaged. Send it again.")
        except BaseException:
            file.truncate(offset)
            raise
        file.flush()
        os.fsync(file.fileno())
        reached = file.tell()
        upload.save(update_fields=["touched_at"])
        if reached == upload.length:
            _hash(upload)
    return reached


def complete(upload: Upload) -> bool:
    """True once all bytes are there and their hash is known; the last piece may have come just before a power cut."""
    if not upload.is_complete and upload.order_id is None and upload.offset == upload.length:
        with locked(upload):
            _hash(upload)
    return upload.is_complete


def _hash(upload: Upload) -> None:
    """Counted once, over the whole file. A file that is not what was announced is thrown away."""
    found = sha256_file(upload.path)
    if upload.claimed_sha256 and found != upload.claimed_sha256:
        upload.path.unlink()
        upload.delete()
        raise WrongChecksum("The file that arrived is not the one that was announced: its SHA-256 differs. Send it again.")
    upload.sha256 = found
    upload.save(update_fields=["sha256", "touched_at"])


def discard(member: Member, upload: Upload) -> None:
    """Throws away what has arrived."""
    with transaction.atomic():
        record(member, "upload.delete", upload)
        if upload.order is not None and upload.order.is_live:
            request_stop(upload.order)
        upload.delete()
    remove_files(upload)


def remove_files(upload: Upload) -> None:
    upload.path.unlink(missing_ok=True)
    remove_folder(parts_folder(upload))


def parts_folder(upload: Upload) -> Path:
    """Where what is fetched lies until it is whole."""
    return Path(f"{upload.path}.parts")


def expire() -> list[str]:
    """Throws away what nobody has gone on with for a while. Returns what it did, in words."""
    did = []
    for upload in Upload.objects.filter(touched_at__lt=timezone.now() - KEPT).select_related("order"):
        if upload.order is None or not upload.order.is_live:
            remove_files(upload)
            did.append(f"{upload.filename[:40]}: nobody went on with it for {KEPT.days} days, so it was removed")
            upload.delete()
    return did


def under_way(member: Member, project: Project) -> "QuerySet[Upload]":
    """What this person has begun to send to a project, or sent and not imported yet."""
    mine: QuerySet[Upload] = Upload.objects.for_action(member, "dataset.create").filter(project=project, created_by=member.user)
    mine = mine.filter(purpose=Upload.Purpose.DATASET)
    return mine.select_related("order")


def same_bytes(member: Member, upload: Upload) -> DatasetVersion | None:
    """The newest version of the project that was read from the same bytes."""
    seen = DatasetVersion.objects.for_action(member, "dataset.view").filter(dataset__project=upload.project_id)
    found: DatasetVersion | None = (
        seen.filter(upload_sha256=upload.sha256, facts__isnull=False).select_related("dataset").order_by("-created_at").first()
    )
    return found


def import_upload(member: Member, upload: Upload, *, dataset: Dataset | None, name: str, wanted: Wanted) -> DatasetVersion:
    """The upload as a version that is being read: of `dataset`, or of a new one. The version takes the file over."""
    wanted.check()
    if upload.purpose != Upload.Purpose.DATASET:
        raise UserError("This file was uploaded as an adapter, so it holds no rows.")
    if not complete(upload):
        raise UserError("The file has not arrived completely yet. Wait until it has.")
    if not upload.path.is_file():
        raise UserError(GONE, code="gone")
    with transaction.atomic():
        Upload.objects.filter(pk=upload.pk).delete()  # first: its own bytes are not what fills the client
        refuse_storage(upload.project.client)
        target = dataset or create_dataset(member, project=upload.project, name=name)
        return record_version(member, dataset=target, stored=Stored(wanted, upload.name, upload.sha256), origin=upload.origin)


def again(member: Member, version: DatasetVersion) -> Upload:
    """The file of a version once more, to be read in another way; it takes no room on the disk."""
    kept = Path(settings.DATA_DIR, "uploads", version.upload)
    if not version.upload or not kept.is_file():
        raise UserError("The file of this version is not kept. Upload it again.")
    pk = uuid.uuid4()
    kept.with_name(pk.hex).hardlink_to(kept)
    with transaction.atomic():
        upload: Upload = Upload.objects.create(
            pk=pk,
            project=version.dataset.project,
            created_by=member.user,
            filename=version.filename,
            length=kept.stat().st_size,
            sha256=version.upload_sha256,
            name=pk.hex,
            origin=version.origin,
        )
        record(member, "upload.create", upload, change={"version": [None, str(version)]})
    return upload


def stem(upload: Upload) -> str:
    """What a dataset of this file is called unless somebody says otherwise."""
    name = Path(upload.filename).name
    for ending in (".gz", ".zst", ".zip"):
        name = name.removesuffix(ending)
    return PurePath(name).stem[:80] or "Dataset"
