"""The order that looks an uploaded adapter through, in a locked-in process, and leaves it as it is kept."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from studio.artifacts.models import AdapterUpload, Artifact
from studio.artifacts.services import record_artifact
from studio.artifacts.taking_in import lineage_of
from studio.datasets import uploading
from studio.errors import UserError
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order
from studio.orders.quotas import room_left
from studio.training.orders import AdapterPayload


class AdapterKind(OrderKind):
    kind = "adapter"
    called = "Taking in adapters"
    time_limit = 3600

    def payload(self, order: Order) -> dict[str, Any]:
        asked: AdapterUpload = order.adapter_upload
        if asked.upload is None:
            raise UserError(uploading.GONE)
        base = asked.base_model
        return AdapterPayload(
            upload=str(asked.upload.path),
            config=asked.config,
            base=str(base.folder),
            model=base.model_facts,
            room=room_left(asked.project.client, freed=asked.upload.length),  # the adapter takes the place of the file that came
        ).model_dump()

    def target(self, order: Order) -> Path:
        return Path(settings.DATA_DIR, "artifacts", f"{order.pk}-{order.attempt}")

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        asked: AdapterUpload = order.adapter_upload
        record_artifact(
            order,
            result,
            project=asked.project,
            kind=Artifact.Kind.ADAPTER,
            name=asked.name,
            base_model=asked.base_model,
            lineage=lineage_of(asked, result["report"]),
        )
        if (upload := asked.upload) is not None:
            upload.delete()
            transaction.on_commit(lambda: uploading.remove_files(upload))

    def title(self, order: Order) -> str:
        return f"{order.adapter_upload.name} (uploaded)"


register(AdapterKind())
