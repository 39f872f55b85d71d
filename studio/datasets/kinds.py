"""The orders that read a file into rows, and that measure rows with a tokenizer."""

from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from studio.basemodels.kinds import LISTENERS
from studio.basemodels.models import BaseModel
from studio.datasets import elsewhere, synthesis, uploading
from studio.datasets.drafting import changes_path
from studio.datasets.endpoints import KEY
from studio.datasets.fetching import TOKEN
from studio.datasets.models import DatasetVersion, Draft, Synthesis, TokenView, Upload
from studio.datasets.services import measure, newest_base
from studio.datasets.tokenviews import BLOCK
from studio.errors import UserError
from studio.orders.kinds import SWEEPS, OrderKind, register
from studio.orders.models import Order
from studio.training.orders import (
    DatasetPayload,
    MixPart,
    MixPayload,
    RevisionPayload,
    SplitRules,
    SynthesisPayload,
    TokensPayload,
    TokenViewPayload,
)
from studio.workspaces.models import Member
from studio.workspaces.secrets import opened

CONTEXT = 4096
"""Tokens of a conversation with a model that writes rows."""
MEASURING = "Measuring datasets"
NEWEST_VERSIONS = 20
"""How many versions are measured when a base model arrives; older ones are when somebody opens them."""


class DatasetKind(OrderKind):
    kind = "dataset"
    called = "Making datasets"
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
            rules=SplitRules(**version.rules),
        ).model_dump()

    def target(self, order: Order) -> Path:
        folder: Path = order.dataset_version.folder
        return folder

    def project(self, order: Order) -> UUID | None:
        version: DatasetVersion = order.dataset_version
        return version.dataset.project_id

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        version: DatasetVersion = order.dataset_version
        version.facts = {key: value for key, value in result.items() if key not in ("folder", "files", "tokens")}
        version.sha256 = result["rows_sha256"]
        version.size += result.get("size", 0)
        version.save()
        base = newest_base(order.workspace)
        member = Member.objects.filter(workspace=order.workspace, user=order.created_by).first()
        if base is not None and member is not None:
            measure(version, base, member=member)


class MixKind(DatasetKind):
    """Rows of versions that are there: mixed, or split anew."""

    kind = "mix"

    def payload(self, order: Order) -> dict[str, Any]:
        version: DatasetVersion = order.dataset_version
        origin, named = version.origin, DatasetVersion.objects.filter(dataset__project__client=version.audit_client)
        parts = [(part, named.get(pk=part["version"])) for part in origin["parts"]]
        return MixPayload(
            shape=(parts[0][1].facts or {})["shape"],
            parts=[
                MixPart(
                    version=part["version"],
                    name=part["name"],
                    rows=str(found.rows_path),
                    train=part["train"],
                    validation=part["validation"],
                    origin=str(found.dataset_id) if len(parts) > 1 else "",
                )
                for part, found in parts
            ],
            without=[str(found.rows_path) for found in named.filter(pk__in=origin.get("without", []))],
            keep=origin["kind"] != "split",
            validation_percent=version.validation_percent,
            seed=version.seed,
            near_duplicates=version.rules.get("near_duplicates", True),
            strata={int(stratum["hash"]): stratum["name"] for _, found in parts for stratum in (found.facts or {}).get("strata", [])},
        ).model_dump(mode="json")


class RevisionKind(DatasetKind):
    """A version's rows with what a person changed in them."""

    kind = "revision"

    def payload(self, order: Order) -> dict[str, Any]:
        version: DatasetVersion = order.dataset_version
        parent = version.parent
        if parent is None or not parent.rows_path.is_file():
            raise UserError("The version that was edited is gone. Edit another one.")
        changes = changes_path(version)
        return RevisionPayload(
            rows=str(parent.rows_path),
            number=parent.number,
            shape=(parent.facts or {})["shape"],
            changes=str(changes) if changes.is_file() else "",
            validation_percent=version.validation_percent,
            seed=version.seed,
            rules=version.rules,
            strata={int(stratum["hash"]): stratum["name"] for stratum in (parent.facts or {}).get("strata", [])},
        ).model_dump(mode="json")

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        version: DatasetVersion = order.dataset_version
        others = DatasetVersion.objects.filter(dataset=version.dataset_id, sha256=result["rows_sha256"]).exclude(pk=version.pk)
        if (same := others.order_by("-number").first()) is not None:
            told = {"same_as": same.number, "notices": [f"This is the same as v{same.number}.", *result["notices"]]}
            result = result | told
        super().succeeded(order, result)
        for draft in Draft.objects.filter(version=version.parent, created_by=order.created_by):
            if draft.changes.get("saved_as") == str(version.pk):
                draft.delete()


class TokensKind(OrderKind):
    kind = "tokens"
    called = MEASURING
    time_limit = 3600

    def payload(self, order: Order) -> dict[str, Any]:
        measurement = order.measurement
        rows, base = str(measurement.version.rows_path), measurement.base
        return TokensPayload(rows=rows, base=str(base.folder), limit=base.model_facts.context_length, first=BLOCK).model_dump()

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def project(self, order: Order) -> UUID | None:
        measured: DatasetVersion = order.measurement.version
        return measured.dataset.project_id

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        version = DatasetVersion.objects.select_for_update().get(pk=order.measurement.version_id)
        version.tokens[str(order.measurement.base_id)] = result["tokens"]
        version.save(update_fields=["tokens"])


class TokenViewKind(OrderKind):
    kind = "token_view"
    called = MEASURING
    memory_limit = 8 << 30
    time_limit = 600

    def payload(self, order: Order) -> dict[str, Any]:
        view = order.token_view
        rows, base = str(view.version.rows_path), str(view.base.folder)
        return TokenViewPayload(rows=rows, base=base, begin=view.begin, count=BLOCK).model_dump()

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def project(self, order: Order) -> UUID | None:
        return TokenView.objects.filter(order=order).values_list("version__dataset__project", flat=True).first()  # it may be thrown away

    def succeeded(self, order: Order, result: dict[str, Any]) -> None: ...


class SynthesisKind(OrderKind):
    kind = "synthesis"
    called = "Writing rows"
    time_limit = 3600

    def payload(self, order: Order) -> dict[str, Any]:
        wanted: Synthesis = order.synthesis
        told = wanted.settings
        return SynthesisPayload(
            shape=told["shape"],
            seeds=synthesis.seed_rows(wanted),
            instruction=told["instruction"],
            target=told["target"],
            temperature=told["temperature"],
            seed=told["seed"],
            seconds=self.time_limit / 2,
            rows=wanted.version.rows_path if wanted.version else None,
            writer_name=told["name"],
            base=Path(told["base"]),
            adapter=Path(told["adapter"]) if told["adapter"] else None,
            cache=synthesis.cache_folder(order.workspace),
            context=min(told["context"] or CONTEXT, CONTEXT),
            **synthesis.endpoint_of(wanted),
        ).model_dump(mode="json")

    def secrets(self, order: Order) -> dict[str, str]:
        connection = order.synthesis.connection
        return {KEY: opened(connection.secret)} if connection else {}

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def project(self, order: Order) -> UUID | None:
        wanted: Synthesis = order.synthesis
        return wanted.dataset.project_id

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        if result.get("folder"):
            synthesis.take_in(order.synthesis, Path(result["folder"]))


class FetchKind(OrderKind):
    kind = "fetch"
    called = "Fetching files"
    memory_limit = 2 << 30
    time_limit = 6 * 3600
    environment = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

    def payload(self, order: Order) -> dict[str, Any]:
        return elsewhere.payload(order.upload).model_dump()

    def secrets(self, order: Order) -> dict[str, str]:
        connection = elsewhere.connection_of(order.upload)
        hub = connection is not None and connection.kind == connection.Kind.HUB
        return {TOKEN: opened(connection.secret)} if connection and hub else {}

    def target(self, order: Order) -> Path:
        return order.folder / "result"

    def project(self, order: Order) -> UUID | None:
        return Upload.objects.filter(order=order).values_list("project", flat=True).first()  # none where it was discarded meanwhile

    def succeeded(self, order: Order, result: dict[str, Any]) -> None:
        if (upload := Upload.objects.filter(order=order).first()) is not None:  # else it was discarded meanwhile
            elsewhere.arrived(upload, result)


def measure_newest(base: BaseModel) -> None:
    """A base model has arrived: the newest versions get their token lengths under it."""
    member = Member.objects.filter(workspace=base.workspace, user=base.order.created_by).first()
    if member is None:
        return
    versions = DatasetVersion.objects.filter(dataset__project__client__workspace=base.workspace, facts__isnull=False)
    for version in versions.order_by("-created_at")[:NEWEST_VERSIONS]:
        measure(version, base, member=member)


register(DatasetKind())
register(MixKind())
register(RevisionKind())
register(TokensKind())
register(TokenViewKind())
register(SynthesisKind())
register(FetchKind())
LISTENERS.append(measure_newest)
SWEEPS.append(uploading.expire)
