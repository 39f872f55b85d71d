"""What datasets and uploads take on the disk, by client, as the columns tell; no folder is walked."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from uuid import UUID

from django.conf import settings
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Sum

from studio.datasets.models import DatasetVersion, Upload
from studio.workspaces.models import Client


def datasets(clients: Collection[UUID]) -> dict[UUID, int]:
    whose = "dataset__project__client"
    rows = DatasetVersion.objects.filter(**{f"{whose}__in": clients}).order_by()
    return dict(rows.values_list(whose).annotate(size=Sum("size")))


def uploads(clients: Collection[UUID]) -> dict[UUID, int]:
    """Files that no version has taken over yet, with all that they were announced to have; one that a version keeps as well is counted
    there. Only of those that arrived and that a version was read from already, the file is looked at.
    """
    whose = "project__client"
    read = DatasetVersion.objects.filter(dataset__project__client=OuterRef(whose), upload_sha256=OuterRef("sha256")).exclude(upload="")
    rows = Upload.objects.filter(**{f"{whose}__in": clients}).order_by().annotate(read=~Q(sha256="") & Exists(read))
    sizes: Counter[UUID] = Counter()
    for client, length, name, is_read in rows.values_list(whose, "length", "name", "read"):
        if not (is_read and is_linked(Path(settings.DATA_DIR, "uploads", name))):
            sizes[client] += length
    return sizes


def is_linked(path: Path) -> bool:
    """Whether its bytes have another name on the disk, too."""
    try:
        return path.stat().st_nlink > 1
    except FileNotFoundError:
        return False


def sharing(path: Path, sha256: str, client: Client) -> "QuerySet[DatasetVersion]":
    """The versions of a client whose uploaded file is this very one."""
    alike = DatasetVersion.objects.filter(dataset__project__client=client, upload_sha256=sha256).exclude(upload="")
    if not is_linked(path):
        return alike.filter(upload=path.name)
    folder = Path(settings.DATA_DIR, "uploads")
    names = [name for name in alike.values_list("upload", flat=True) if (folder / name).is_file() and path.samefile(folder / name)]
    return alike.filter(upload__in=names).order_by("created_at")


def hand_down(gone: Collection[DatasetVersion], client: Client) -> None:
    """Versions that are being deleted leave files that others keep, too: of each file the first that stays counts it from now on."""
    for version in gone:
        path = Path(settings.DATA_DIR, "uploads", version.upload)
        if version.upload and is_linked(path) and counts_its_file(version):
            heirs = list(sharing(path, version.upload_sha256, client).exclude(pk__in=[each.pk for each in gone]))
            if heirs and not any(counts_its_file(heir) for heir in heirs):
                DatasetVersion.objects.filter(pk=heirs[0].pk).update(size=F("size") + path.stat().st_size)


def counts_its_file(version: DatasetVersion) -> bool:
    """Or its rows alone, since another keeps the same file."""
    return version.size > (version.facts or {}).get("size", 0)
