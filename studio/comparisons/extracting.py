"""Takes adapters out of a fully trained model: what may be asked for, and asking, stopping and deleting."""

from collections.abc import Sequence

from django.db import transaction
from django.http import Http404

from studio.artifacts.models import Artifact
from studio.audit.services import record
from studio.comparisons.models import Extraction
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.quotas import held, refuse_storage
from studio.orders.services import place, request_stop
from studio.storage import remove_folder
from studio.training.extraction import FULL, LARGEST, called, highest_rank, in_order
from studio.workspaces.models import Member, hold

USUAL = (8, 16, 32, 64, FULL)
"""What is taken where nobody chose."""
MOST = 8
"""Ranks at a time: each adapter is measured."""


def obstacle(source: Artifact) -> str:
    """Why no adapter can be taken out of it, as a sentence; empty where it can."""
    if source.kind != Artifact.Kind.MODEL or source.was_built:
        return "Adapters are taken out of a model whose every weight was trained. Choose the model of a full fine-tuning."
    if source.base_model is None or not source.base_model.is_ready:
        return "The base model that it was trained from is not here, so there is nothing to compare it with."
    if not highest_rank(source.base_model.model_facts):
        return "Its base model has no linear layers that are known here, so no adapter can be taken out of it."
    return ""


def usual_ranks(source: Artifact) -> list[int]:
    """Those of USUAL that its layers have."""
    assert source.base_model is not None  # else there is an obstacle
    highest = highest_rank(source.base_model.model_facts)
    return [rank for rank in USUAL if rank < highest]


def request(member: Member, source: Artifact, *, ranks: Sequence[int] | None = None, keeps_tables: bool = False) -> Extraction:
    """In the queue: an adapter for each rank, all of one order, for each layer is taken apart once."""
    if why := obstacle(source):
        raise UserError(why)
    chosen = in_order(list(usual_ranks(source) if ranks is None else ranks))
    refuse_odd(source, chosen)
    client = source.project.client
    with transaction.atomic():
        held(client)
        hold(source)
        if Extraction.objects.filter(source=source, order__status__in=Order.LIVE).exists():
            raise UserError("Adapters are being taken out of this model already. Wait until that has ended, or stop it.")
        refuse_storage(client)
        order = place(member, kind="extraction", client=client)
        made: Extraction = Extraction.objects.create(source=source, order=order, ranks=chosen, keeps_tables=keeps_tables)
        record(member, "extraction.create", made, change={"ranks": [None, ", ".join(called(rank) for rank in chosen)]})
    return made


def refuse_odd(source: Artifact, ranks: list[int]) -> None:
    assert source.base_model is not None  # else there is an obstacle
    highest = min(LARGEST, highest_rank(source.base_model.model_facts))
    text = ""
    if not ranks:
        text = "Choose at least one rank."
    elif len(ranks) > MOST:
        text = f"At most {MOST} ranks are taken at a time."
    elif any(rank < 0 for rank in ranks):
        text = "A rank is a whole number above 0."
    elif high := [rank for rank in ranks if rank >= highest]:
        text = f"The layers of this model have rank {highest:,}, so {high[0]:,} leaves nothing out. Choose the full rank instead."
    if text:
        raise UserError("These ranks cannot be taken.", fields={"ranks": text})


def stop(member: Member, extraction: Extraction) -> None:
    """Nothing of it is kept."""
    with transaction.atomic():
        request_stop(extraction.order)
        record(member, "extraction.stop", extraction)


def delete(member: Member, extraction: Extraction) -> None:
    """Deletes one that failed or was stopped. What came of another stays in the registry, and so does where it came from."""
    with transaction.atomic():
        order: Order | None = Order.objects.select_for_update(no_key=True).filter(pk=extraction.order_id).first()
        if order is None:  # somebody else has just deleted it
            raise Http404
        if order.is_live:
            raise UserError("The adapters are still being taken out. Stop that first, then delete it.")
        if order.artifacts.exists():
            raise UserError("Adapters came of it, which stay in the registry. Only one that failed or was stopped can be deleted.")
        record(member, "extraction.delete", extraction, change={"ranks": [", ".join(called(rank) for rank in extraction.ranks), None]})
        folder = order.folder.parent
        extraction.delete()
        order.delete()
        transaction.on_commit(lambda: remove_folder(folder))
