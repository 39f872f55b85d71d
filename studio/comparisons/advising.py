"""What the advisor is told of a case, and surveys: which worker, which prices, what earlier runs and the last survey have taught."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.http import Http404

from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.comparisons.models import Survey
from studio.datasets.models import DatasetVersion
from studio.datasets.shaping import HELD_OUT
from studio.errors import UserError
from studio.orders.models import Order, Slot
from studio.orders.services import place, request_stop
from studio.runs.accuracy import accuracy_on, corrected
from studio.runs.costs import tariff_of
from studio.training import Estimate, HostFacts
from studio.training.advisor import WAYS, Advice, Goal, Price, Surveyed, advise
from studio.training.registry import canonical, load_plugins
from studio.workspaces.models import Member, Workspace, hold

MOST_HOSTS = 8
"""Workers that stand side by side; more of the same kind say the same."""


@dataclass(frozen=True)
class Alike:
    """Workers of which an advice says the same."""

    hosts: list[HostFacts]

    @property
    def names(self) -> list[str]:
        return [host.name for host in self.hosts]

    def among(self, on: Collection[str] | None) -> HostFacts | None:
        """The one that stands for all: of those in `on`, where that is given; None where none of them is in it."""
        return next((host for host in self.hosts if on is None or host.name in on), None)


@dataclass(frozen=True)
class Advised:
    """An advice, and the survey that it leans on."""

    advice: Advice
    survey: Survey | None
    """The newest one that was measured."""
    live: Survey | None
    """One that is on its way."""
    failed: Survey | None
    """The newest of all, where it failed."""


def advice_for(*, base: BaseModel, version: DatasetVersion, goal: Goal, clients: int, on: Collection[str] | None = None) -> Advised:
    """`on` names the workers that count; None counts all. Raises UserError where base or rows are not there yet, or are held out, and
    where there is no such worker.
    """
    refuse_unready(base, version)
    there = workers_alike()
    if on is not None:
        refuse_gone(on, there)
    newest = list(surveys_of(base, version)[:10])
    measured = next((survey for survey in newest if survey.result), None)
    surveyed = Surveyed.model_validate(measured.result) if measured else None
    hosts = workers(on, among=there)
    plugins = dict(wanted_plugins())
    corrections = {
        (plugin, host.name): accuracy_on(host.name, plugin=plugin, workspace=base.workspace).correction
        for plugin in plugins
        for host in hosts
    }

    def as_learnt(plugin: str, host: str, estimate: Estimate) -> Estimate:
        return corrected(estimate, corrections[plugin, host])

    found = advise(
        base.model_facts,
        version.dataset_facts(base),
        hosts,
        goal=goal,
        clients=clients,
        plugins=plugins,
        surveyed=surveyed,
        copies=share_of_copies(version),
        prices=dict(prices_of(base.workspace, hosts)),
        corrected=as_learnt,
        left_out=[name for alike in there if alike.among(on) is None for name in alike.names],
    )
    live = next((survey for survey in newest if survey.order.is_live), None)
    failed = newest[0] if newest and newest[0].order.status == Order.Status.FAILED else None
    return Advised(found, measured, live, failed)


def refuse_unready(base: BaseModel, version: DatasetVersion) -> None:
    if not base.is_ready:
        raise UserError("The base model is not here yet.", fields={"base_model": "Wait until it is ready, or choose another."})
    if not version.is_ready:
        text = "Wait until its rows have been read, or choose another version."
        raise UserError("The dataset is not ready.", fields={"dataset_version": text})
    if version.dataset.held_out:
        raise UserError(HELD_OUT, fields={"dataset_version": HELD_OUT})


def surveys_of(base: BaseModel, version: DatasetVersion) -> Any:
    return Survey.objects.filter(base_model=base, dataset_version=version).select_related("order").order_by("-created_at")


def refuse_gone(on: Collection[str], there: list[Alike]) -> None:
    running = sorted(name for alike in there for name in alike.names)
    if gone := sorted(set(on).difference(running)):
        text = f"No worker {gone[0][:60]} takes runs now. " + (f"These do: {', '.join(running[:20])}." if running else "Start one first.")
        raise UserError("A worker that was chosen is not here.", fields={"worker": text})


def workers(on: Collection[str] | None = None, *, among: list[Alike] | None = None) -> list[HostFacts]:
    """One of each kind that would take a run, the largest first; of those in `on` alone, where it is given."""
    there = workers_alike() if among is None else among
    return [host for alike in there if (host := alike.among(on))][:MOST_HOSTS]


def workers_alike() -> list[Alike]:
    """All that would take a run, by kind, the largest first. What a way to train needs tells kinds apart too."""
    needed = sorted({"bitsandbytes", *(package for _, plugin in wanted_plugins() for package in plugin.requires)})
    found: dict[tuple[Any, ...], Alike] = {}
    for slot in Slot.objects.filter(queue="train").order_by("name"):
        if slot.is_alive and slot.facts:
            host = HostFacts.model_validate(slot.facts)
            there = {canonical(name) for name in host.packages}
            has = tuple(canonical(name) in there for name in needed)
            kind = (host.memory, tuple((gpu.name, gpu.memory) for gpu in host.gpus), host.bf16, has)
            found.setdefault(kind, Alike([])).hosts.append(host)
    return sorted(found.values(), key=lambda alike: -max([gpu.memory for gpu in alike.hosts[0].gpus], default=alike.hosts[0].memory))


def wanted_plugins() -> Iterator[tuple[str, Any]]:
    names = {way.plugin for way in WAYS}
    for name, loaded in load_plugins().items():
        if name in names and loaded.plugin is not None:
            yield name, loaded.plugin


def prices_of(workspace: Workspace, hosts: list[HostFacts]) -> Iterator[tuple[str, Price]]:
    for host in hosts:
        if (tariff := tariff_of(workspace, host)) is not None:
            yield host.name, Price(per_hour=float(tariff.per_hour), gpus=tariff.gpus, currency=tariff.currency)


def share_of_copies(version: DatasetVersion) -> float:
    """Of rows that repeat others exactly, as the import found them."""
    facts = version.facts or {}
    return min(1.0, facts.get("duplicates", 0) / max(1, facts.get("rows", 0)))


def begin_survey(member: Member, *, base: BaseModel, version: DatasetVersion) -> Survey:
    """A survey in the queue; the one that is on its way is answered instead of another."""
    refuse_unready(base, version)
    with transaction.atomic():
        hold(version.dataset.project)  # which whoever deletes the dataset holds too: no order is left without its rows
        if not DatasetVersion.objects.filter(pk=version.pk).exists():
            raise Http404
        live: Survey | None = surveys_of(base, version).filter(order__status__in=Order.LIVE).first()
        if live is not None:
            return live
        order = place(member, kind="survey", client=version.audit_client)
        made: Survey = Survey.objects.create(dataset_version=version, base_model=base, order=order)
        record(member, "survey.create", made, change={"rows": [None, str(version)], "base_model": [None, base.name]})
    return made


def stop_survey(member: Member, survey: Survey) -> None:
    with transaction.atomic():
        request_stop(survey.order)
        record(member, "survey.stop", survey)
