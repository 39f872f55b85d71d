"""The orders that read a file into rows, and that measure rows with a tokenizer."""

from pathlib import Path
from typing import Any

from django.conf import settings

from studio.basemodels.kinds import LISTENERS
from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.datasets.services import measure, newest_base
from studio.datasets.tokenviews import BLOCK
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order
from studio.training.orders import DatasetPayload, TokensPayload, TokenViewPayload
from studio.workspaces.models import Member

NEWEST_VERSIONS = 20
"""How many versions are measured when a base model arrives; older ones are when somebody opens them."""


class DatasetKind(OrderKind):
    kind = "dataset"
    memory_limit = 4 << 30
    time_limit = 2 * 3600

    def payload(self, order: Order) -> dict[str, Any]:
        version: DatasetVersion = order.dataset_version
        return DatasetPayload(
            file=str(Path(settings.DATA_DIR, "uploads", version.upload)),
            filename=version.filename,
            mapping=version.mapping,
            validation_percent=version.validation_percent,
            seed=version.seed,
            **{name: version.reading[name] for name in ("encoding", "refused", "sheet") if version.reading.get(name)},
        ).model_dump()

    def target(self, order: Order) -> Path:
        folder: Path = order.dataset_version.folder
        return folder

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        version: DatasetVersion = order.dataset_version
        version.facts = {key: value for key, value in result.items() if key not in ("folder", "files", "tokens")}
        version.sha256 = result["rows_sha256"]
        version.save()
        base = newest_base(order.workspace)
        member = Member.objects.filter(workspace=order.workspace, user=order.created_by).first()
        if base is not None and member is not None:
            measure(version, base, member=member)


class TokensKind(OrderKind):
    kind = "tokens"
    time_limit = 3600

    def payload(self, order: Order) -> dict[str, Any]:
        measurement = order.measurement
        return TokensPayload(rows=str(measurement.version.rows_path), base=str(measurement.base.folder)).model_dump()

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        version = DatasetVersion.objects.select_for_update().get(pk=order.measurement.version_id)
        version.tokens[str(order.measurement.base_id)] = result["tokens"]
        version.save(update_fields=["tokens"])


class TokenViewKind(OrderKind):
    kind = "token_view"
    memory_limit = 8 << 30
    time_limit = 600

    def payload(self, order: Order) -> dict[str, Any]:
        view = order.token_view
        rows, base = str(view.version.rows_path), str(view.base.folder)
        return TokenViewPayload(rows=rows, base=base, begin=view.begin, count=BLOCK).model_dump()

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def succeeded(self, order: Order, result: dict[str, Any]) -> None: ...


def measure_newest(base: BaseModel) -> None:
    """A base model has arrived: the newest versions get their token lengths under it."""
    member = Member.objects.filter(workspace=base.workspace, user=base.order.created_by).first()
    if member is None:
        return
    versions = DatasetVersion.objects.filter(dataset__project__client__workspace=base.workspace, facts__isnull=False)
    for version in versions.order_by("-created_at")[:NEWEST_VERSIONS]:
        measure(version, base, member=member)


register(DatasetKind())
register(TokensKind())
register(TokenViewKind())
LISTENERS.append(measure_newest)
