"""What datasets and uploads take on the disk, by client, as the columns tell; no folder is walked."""

from collections.abc import Collection
from uuid import UUID

from django.db.models import Sum

from studio.datasets.models import DatasetVersion, Upload


def datasets(clients: Collection[UUID]) -> dict[UUID, int]:
    whose = "dataset__project__client"
    rows = DatasetVersion.objects.filter(**{f"{whose}__in": clients}).order_by()
    return dict(rows.values_list(whose).annotate(size=Sum("size")))


def uploads(clients: Collection[UUID]) -> dict[UUID, int]:
    """Files that no version has taken over yet, with all that they were announced to have."""
    rows = Upload.objects.filter(project__client__in=clients).order_by()
    return dict(rows.values_list("project__client").annotate(size=Sum("length")))
