"""Deletes a dataset that nothing was made of, with all its versions and files. What is used says by what, and stays."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import CASCADE, ForeignObjectRel, Model, Q

from studio.audit.services import record
from studio.datasets.models import Dataset, DatasetVersion, Measurement, Synthesis, TokenView
from studio.datasets.stored import hand_down
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.services import request_stop
from studio.storage import remove_folder
from studio.workspaces.models import Member, hold

LOOKING = ("tokens", "token_view")
"""Kinds of orders that only look at rows: opening a page asks for them, so nobody is made to wait for them."""
NAMED = 5
"""Things that use a dataset and are named; the rest is counted."""


def delete_dataset(member: Member, dataset: Dataset) -> None:
    with transaction.atomic():  # of its own: what was asked to stop stays so where the rest is refused
        hold(dataset.project)
        refuse_used(dataset)
        refuse_busy(orders_of(dataset))
        stop_looking(orders_of(dataset))
    with transaction.atomic():
        hold(dataset.project)
        refuse_used(dataset)
        orders = orders_of(dataset)
        refuse_busy(orders)
        if any(order.is_live for order in orders):
            raise UserError("Its rows are just being measured, which is being stopped. Try again in a moment.")
        versions = list(dataset.versions.all())
        paths = [path for version in versions for path in files_of_version(version)] + [order.folder.parent for order in orders]
        record(member, "dataset.delete", dataset, change={"versions": [len(versions), 0]})
        hand_down(versions, dataset.project.client)
        for model, path in ((TokenView, "version__dataset"), (Measurement, "version__dataset"), (Synthesis, "dataset")):
            model._base_manager.filter(**{path: dataset}).delete()
        DatasetVersion.objects.filter(dataset=dataset).delete()
        dataset.delete()
        Order.objects.filter(pk__in=[order.pk for order in orders]).delete()
        transaction.on_commit(lambda: remove_all(paths))


def orders_of(dataset: Dataset) -> list[Order]:
    of_it = Q(dataset_version__dataset=dataset) | Q(synthesis__dataset=dataset)
    of_it |= Q(measurement__version__dataset=dataset) | Q(token_view__version__dataset=dataset)
    of_it |= Q(survey__dataset_version__dataset=dataset)  # surveys go with their version, and would leave their orders behind
    return list(Order.objects.filter(of_it))


def refuse_busy(orders: list[Order]) -> None:
    if any(order.is_live and order.kind not in LOOKING for order in orders):
        raise UserError("Something is still being done with this dataset. Stop it, or wait until it has ended, then delete the dataset.")


def stop_looking(orders: list[Order]) -> None:
    for order in orders:
        if order.is_live:
            with suppress(UserError):  # it ended just now
                request_stop(order, discard=True)


def files_of_version(version: DatasetVersion) -> Iterator[Path]:
    """Where its rows are, its tokens, and the file that was uploaded."""
    yield version.folder
    yield Path(settings.DATA_DIR, "cache", "tokens", str(version.pk))
    if version.upload:
        yield Path(settings.DATA_DIR, "uploads", version.upload)


def remove_all(paths: list[Path]) -> None:
    for path in paths:
        remove_folder(path)


def refuse_used(dataset: Dataset) -> None:
    used = used_by(dataset)
    if used:
        rest = f", and {len(used) - NAMED} more" if len(used) > NAMED else ""
        raise UserError(
            f"{dataset.name} is used, so it stays: by {', '.join(used[:NAMED])}{rest}. Only what nothing was made of can be deleted.",
            code="in_use",
        )


def used_by(dataset: Dataset) -> list[str]:
    """What was made of it or goes by it, in words: whatever names it or one of its versions from outside of datasets, and mixes."""
    versions = [str(pk) for pk in dataset.versions.values_list("pk", flat=True)]
    rows = sorted(rows_that_name(dataset, versions), key=lambda row: not hasattr(row, "part_of"))  # what has parts comes first
    found = list(dict.fromkeys(words_for(row) for row in rows))
    others = DatasetVersion.objects.filter(dataset__project__client=dataset.project.client_id).exclude(dataset=dataset).exclude(origin={})
    for other in others.select_related("dataset"):
        told = json.dumps(other.origin)
        if any(pk in told for pk in versions):
            found.append(f"{other}, which was made of its rows")
    return found


def words_for(row: Model) -> str:
    """What it is called; a part of something, such as an arm of a comparison, says of what."""
    whole: Model = getattr(row, "part_of", row)
    return f"{whole._meta.verbose_name} {whole}"


def rows_that_name(dataset: Dataset, versions: list[str]) -> Iterator[Model]:
    for model, pks in ((Dataset, [dataset.pk]), (DatasetVersion, versions)):
        for relation in model._meta.get_fields(include_hidden=True):  # also those that have no name on this side
            if isinstance(relation, ForeignObjectRel) and relation.on_delete is not CASCADE:
                related: Any = relation.related_model
                if related._meta.app_label != "datasets":
                    yield from related._base_manager.filter(**{f"{relation.field.name}__in": pks})
