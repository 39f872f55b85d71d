"""Takes in adapters that were trained elsewhere: asks for an upload to be looked through, and records what was kept of it."""

from collections.abc import Iterable
from typing import Any

from django.db import transaction

from studio.artifacts.models import AdapterUpload
from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.datasets import uploading
from studio.datasets.models import Upload
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.quotas import refuse_storage
from studio.orders.services import place, request_stop
from studio.workspaces.models import Member, Project, hold

LARGEST_CONFIG = 1 << 20
"""Bytes of adapter_config.json."""


def take_in(member: Member, upload: Upload, *, base: BaseModel, name: str = "", config: bytes = b"") -> AdapterUpload:
    """The upload as an adapter that is being looked through. The file stays until it is taken, so another base can be tried."""
    if upload.purpose != Upload.Purpose.ADAPTER:
        raise UserError("This file was uploaded as a dataset. Upload the adapter on the page of artifacts.")
    if not uploading.complete(upload):
        raise UserError("The file has not arrived completely yet. Wait until it has.")
    if not upload.path.is_file():
        raise UserError(uploading.GONE, code="gone")
    if not base.is_ready:
        raise UserError(
            "The base model is not ready.", fields={"base_model": "This one is not ready. Choose another, or wait until it is."}
        )
    text = config_text(config)
    name = " ".join(name.split())[:160] or uploading.stem(upload)
    with transaction.atomic():
        refuse_storage(upload.project.client)
        hold(upload.project)
        if AdapterUpload.objects.filter(upload=upload, order__status__in=Order.LIVE).exists():
            raise UserError("This file is being looked through already. Wait until that has ended.")
        order = place(member, kind="adapter", client=upload.project.client)
        made: AdapterUpload = AdapterUpload.objects.create(
            project=upload.project,
            name=name,
            base_model=base,
            upload=upload,
            filename=upload.filename,
            sha256=upload.sha256,
            config=text,
            order=order,
        )
        record(member, "artifact.upload", made, change={"base_model": [None, base.name], "sha256": [None, upload.sha256]})
    return made


def take_in_whole(
    member: Member,
    *,
    project: Project,
    filename: str,
    pieces: Iterable[bytes],
    length: int,
    base: BaseModel,
    name: str = "",
    config: bytes = b"",
) -> AdapterUpload:
    """A file that came in one request, as an adapter that is being looked through. Where it is refused, nothing of it stays."""
    upload = uploading.whole(member, project=project, filename=filename, pieces=pieces, length=length, purpose=Upload.Purpose.ADAPTER)
    try:
        return take_in(member, upload, base=base, name=name, config=config)
    except UserError:
        uploading.remove_files(upload)
        upload.delete()
        raise


def config_text(content: bytes) -> str:
    """A config that came apart, as text that every database takes; what it says is judged where the adapter is looked through."""
    if len(content) > LARGEST_CONFIG:
        raise UserError("The config is too large.", fields={"config": "adapter_config.json has at most 1 MB."})
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("The config cannot be read.", fields={"config": "This is no adapter_config.json: it is not UTF-8 text."}) from None
    if "\x00" in text:
        raise UserError("The config cannot be read.", fields={"config": "This is no adapter_config.json: it holds a NUL character."})
    return text


def stop(member: Member, asked: AdapterUpload) -> None:
    with transaction.atomic():
        request_stop(asked.order)
        record(member, "artifact.upload_stop", asked)


def lineage_of(asked: AdapterUpload, report: dict[str, Any]) -> dict[str, Any]:
    """What it was made from: a file that somebody brought, and the base that it stands on."""
    base = asked.base_model
    return {
        "uploaded": {
            "filename": asked.filename,
            "sha256": asked.sha256,
            "made_with": report["made_with"],
            "says_base": report["says_base"],
            "parameters": report["parameters"],
        },
        "config": report["settings"],
        "base_model": {"id": str(base.pk), "name": base.name, "source": base.source, "revision": base.revision, "sha256": base.sha256},
        "client": asked.project.client.name,
        "project": asked.project.name,
    }
