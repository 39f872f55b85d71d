"""What there is of clients, for their list and for the page of one. A constant number of queries, however much there is."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.urls import NoReverseMatch, reverse

from studio.clients.usage import Bill, Sums, bill_of
from studio.comparisons.models import Comparison
from studio.datasets.models import Dataset
from studio.datasets.services import with_newest
from studio.orders.models import Order
from studio.orders.quotas import in_all, quotas_of, stored, telling
from studio.releases.models import Release
from studio.runs.models import Run
from studio.serving.charts import requests_chart
from studio.serving.models import Deployment, DeploymentState, Trial
from studio.serving.periods import period_named
from studio.serving.reading import Asked, traffic_of
from studio.workspaces.models import Client, Member, Project
from studio.workspaces.months import Month

FEW = 8
"""Runs and datasets that the page of a client shows."""
RELEASES = 12
PROJECTS = 50


@dataclass(frozen=True)
class Row:
    """A client in the list."""

    client: Client
    projects: int
    live: Deployment | None
    """What answers of it, the first by name."""
    others: int
    """How many more do."""
    cost: Sums | None
    """Of this month; None for whoever may not see that."""
    active_at: datetime | None


def rows_of(member: Member, clients: list[Client]) -> list[Row]:
    ids = [client.pk for client in clients]
    projects = counted(Project.objects.for_action(member, "project.view").filter(client__in=ids), by="client")
    live: dict[Any, list[Any]] = {}
    running = Deployment.objects.for_action(member, "deployment.view").filter(client__in=ids, archived_at=None, release__isnull=False)
    for pk, client in running.order_by("slug", "pk").values_list("pk", "client"):
        live.setdefault(client, []).append(pk)
    shown = ("slug", "client__slug", "release__major", "release__minor", "release__patch")
    first = Deployment.objects.select_related("client", "release").only(*shown).in_bulk([pks[0] for pks in live.values()])
    latest = dict(Order.objects.filter(client__in=ids).order_by().values_list("client").annotate(at=Max("created_at")))
    bill = this_month(member, clients)
    return [
        Row(
            client,
            projects=projects.get(client.pk, 0),
            live=next((first.get(pk) for pk in live.get(client.pk, [])), None),
            others=max(0, len(live.get(client.pk, [])) - 1),
            cost=bill.by_client.get(client.pk, Sums()) if bill else None,
            active_at=latest.get(client.pk),
        )
        for client in clients
    ]


def counted(rows: "QuerySet[Any]", *, by: str) -> dict[Any, int]:
    return dict(rows.order_by().values_list(by).annotate(number=Count("pk")))


def this_month(member: Member, clients: Iterable[Client], *, stored: dict[UUID, int] | None = None) -> Bill | None:
    if not member.may("usage.view"):
        return None
    return bill_of(member.workspace, Month.now(member.workspace), [client.pk for client in clients], stored=stored)


@dataclass(frozen=True)
class Running:
    """A deployment, and who last changed what it points at."""

    deployment: Deployment
    state: DeploymentState | None


def running(member: Member, client: Client) -> list[Running]:
    """What answers before what does not yet."""
    last = DeploymentState.objects.filter(deployment=OuterRef("pk")).order_by("-number").values("pk")[:1]
    mine = Deployment.objects.for_action(member, "deployment.view").filter(client=client, archived_at=None)
    found = list(mine.select_related("release", "canary").annotate(last_state=Subquery(last)))
    states = DeploymentState.objects.select_related("user").in_bulk([deployment.last_state for deployment in found])
    for deployment in found:
        deployment.client = client
    found.sort(key=lambda deployment: deployment.release_id is None)
    return [Running(deployment, states.get(deployment.last_state)) for deployment in found]


def asked_now(member: Member, client: Client) -> list[Trial]:
    """Trials of its models that are under way."""
    mine = Trial.objects.for_action(member, "prompts.view").filter(client=client, order__status__in=Order.LIVE)
    return list(mine.select_related("order").only("name", "created_at", "order")[:FEW])


def comparisons(member: Member, client: Client) -> list[Comparison]:
    """The newest, with what they came to."""
    mine = Comparison.objects.for_action(member, "comparison.view").filter(project__client=client)
    return list(mine.select_related("project").defer("metrics", "sweep")[:FEW])


def releases(member: Member, client: Client) -> list[Release]:
    """The newest first, by when their stage was reached."""
    seen = Release.objects.for_action(member, "release.view").filter(project__client=client).select_related("project", "created_by")
    return list(seen.annotate(at=Coalesce("retired_at", "approved_at", "created_at")).order_by("-at", "-pk")[:RELEASES])


def projects(member: Member, client: Client) -> list[Project]:
    """Each with how many `datasets_there` and `runs_there` it has."""
    found = list(Project.objects.for_action(member, "project.view").filter(client=client)[:PROJECTS])
    ids = [project.pk for project in found]
    datasets = counted(Dataset.objects.filter(project__in=ids), by="project")
    runs = counted(Run.objects.filter(project__in=ids), by="project")
    for project in found:
        project.datasets_there, project.runs_there = datasets.get(project.pk, 0), runs.get(project.pk, 0)  # type: ignore[attr-defined]
    return found


def shown_runs(client: Client, pks: Iterable[UUID]) -> list[Run]:
    """These runs of a client in their order, with no more than a table shows of what they are made from."""
    columns = ("name", "created_at", "project__name", "base_model__name", "dataset_version__number", "dataset_version__dataset__name")
    rows = Run.objects.select_related("order", "project", "base_model", "dataset_version__dataset").only("order", *columns)
    pks = list(pks)
    found = rows.in_bulk(pks)
    for run in found.values():
        run.project.client = client
    return [found[pk] for pk in pks if pk in found]


def people(member: Member, client: Client) -> dict[str, Any]:
    """Those who are assigned to the client, guests among them, and how many more see it since nothing binds them."""
    if not member.may("member.view"):
        return {}
    rest = Member.objects.filter(workspace=client.workspace_id).exclude(role=Member.Role.GUEST).filter(clients=None, narrowed=False)
    assigned = Member.objects.filter(clients=client).select_related("user").order_by("role", "user__email")
    return {"assigned": list(assigned), "others": rest.count()}


def page_of(member: Member, client: Client) -> dict[str, Any]:
    """Everything that the page of a client shows."""
    datasets = Dataset.objects.for_action(member, "dataset.view").filter(project__client=client).order_by("-created_at")
    runs = Run.objects.for_action(member, "run.view").filter(project__client=client)
    sizes = stored([client.pk]) if member.may("usage.view") else {}
    taken = in_all(sizes)
    bill = this_month(member, [client], stored=taken)
    quotas = quotas_of(client) if bill else []  # what is used is told to whom costs are
    return {
        "running": running(member, client),
        "trials": asked_now(member, client),
        "comparisons": comparisons(member, client),
        "releases": releases(member, client),
        "projects": projects(member, client),
        "datasets": with_newest(datasets[:FEW]),
        "runs": shown_runs(client, runs.values_list("pk", flat=True)[:FEW]),
        "bill": bill,
        "sums": bill.by_client.get(client.pk, Sums()) if bill else None,
        "stores": [{"name": name, "value": by_client.get(client.pk, 0)} for name, by_client in sizes.items()],
        "stored": taken[client.pk],
        "quotas": {quota.name: quota for quota in quotas},
        "told": telling(quotas),
        "traffic": traffic(member, client),
        "people": people(member, client),
        "people_url": address("people:list"),
    }


def traffic(member: Member, client: Client) -> dict[str, Any]:
    """What was asked of it in the last day; empty for whoever may not see that."""
    if not member.may("traffic.view"):
        return {}
    told = traffic_of(Asked(member, {"client": client.pk}), period_named("day", member.workspace.zone), "deployment_id")
    return {"total": told.total, "chart": requests_chart(told)}


def address(name: str, *args: Any) -> str:
    """Empty where there is no such page."""
    try:
        return reverse(name, args=args)
    except NoReverseMatch:
        return ""
