"""Fills a workspace of its own with very many things, to see whether every page stays quick. Rows only: no files, no orders in work."""

import hashlib
import random
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.datasets.models import Dataset, DatasetVersion
from studio.orders.models import Order, Usage
from studio.releases.models import Release
from studio.runs.models import Run
from studio.serving.models import Call, CallDay, CallHour, ClientDay, ClientHour, Deployment, DeploymentState
from studio.serving.rollup import OF, day_of, hour_of, put, roll_up
from studio.serving.steps import STEPS
from studio.serving.traffic import Sums
from studio.workspaces.models import Client, Member, Project, User
from studio.workspaces.services import create_workspace

FACTS: dict[str, Any] = {
    "architecture": "LlamaForCausalLM", "family": "llama", "parameters": 134_515_008, "hidden_size": 576, "layers": 30, "heads": 9,
    "intermediate_size": 1536, "vocabulary": 49_152, "kv_heads": 3, "head_size": 64, "context_length": 8192, "tied": True,
    "dtype": "bfloat16", "size": 269_060_552, "linears": [{"name": "q_proj", "inputs": 576, "outputs": 576, "count": 30}],
    "chat_template": True,
}  # fmt: skip
"""What every base model is said to be."""
AT_ONCE = 2000
"""Rows of one INSERT."""
BASES = ("SmolLM2-135M-Instruct", "Qwen3-4B-Instruct", "Llama-3.2-3B-Instruct")
TASKS = ("support", "summaries", "contracts", "offers", "triage", "minutes", "letters", "reports", "answers", "notes")
TRADES = ("Bakery", "Clinic", "Garage", "Hotel", "Museum", "Nursery", "Press", "School", "Theatre", "Winery")
LOSSES = ("succeeded",) * 17 + ("failed",) * 2 + ("stopped",)
"""How runs end, as often as they do."""

OUTCOMES = ((200, ""),) * 95 + ((429, "rate_limit_exceeded"),) * 3 + ((499, ""), (503, "no_memory"))
"""What comes of requests."""


@dataclass(frozen=True)
class Amounts:
    clients: int = 200
    projects: int = 2_000
    runs: int = 20_000
    artifacts: int = 50_000
    calls: int = 50_000
    """One by one; as many hours again of a month are added up."""


def fill(user: User, name: str, amounts: Amounts, *, seed: int = 6) -> Member:
    """A new workspace of this user with so much in it. The same seed gives the same names, states and moments relative to now."""
    with transaction.atomic():
        member = create_workspace(user=user, name=name)
        Filling(member, amounts, random.Random(seed)).everything()
    return member


class Filling:
    def __init__(self, member: Member, amounts: Amounts, chance: random.Random):
        self.member, self.amounts, self.chance = member, amounts, chance
        self.now = timezone.now()

    def everything(self) -> None:
        clients = self.clients()
        projects = self.projects(clients)
        bases = self.bases()
        versions = self.datasets(projects)
        runs = self.runs(projects, bases, versions)
        artifacts = self.results(runs)
        self.builds(runs, artifacts)
        self.releases(artifacts)

    def clients(self) -> list[Client]:
        names = [f"{TRADES[number % len(TRADES)]} {number // len(TRADES) + 1}" for number in range(self.amounts.clients)]
        rows = [
            Client(workspace=self.member.workspace, name=name, slug=slugify(name), colour=number % 8 + 1)
            for number, name in enumerate(names)
        ]
        return Client.objects.bulk_create(rows, AT_ONCE)

    def projects(self, clients: list[Client]) -> list[Project]:
        found = []
        for number in range(self.amounts.projects):
            task, round_ = TASKS[number // len(clients) % len(TASKS)], number // len(clients) // len(TASKS)
            name = task.capitalize() if not round_ else f"{task.capitalize()} {round_ + 1}"
            found.append(Project(client=clients[number % len(clients)], name=name, slug=slugify(name)))
        return Project.objects.bulk_create(found, AT_ONCE)

    def bases(self) -> list[BaseModel]:
        orders = self.orders("base_model", [None] * len(BASES))
        common = {"workspace": self.member.workspace, "size": FACTS["size"]}
        rows = [
            BaseModel(
                name=name, facts={"name": name, **FACTS}, source=f"package:{slugify(name)}", sha256=self.hash(), order=order, **common
            )
            for name, order in zip(BASES, orders, strict=True)
        ]
        return BaseModel.objects.bulk_create(rows)

    def datasets(self, projects: list[Project]) -> dict[uuid.UUID, DatasetVersion]:
        """One dataset with one version for each project."""
        rows = Dataset.objects.bulk_create([Dataset(project=project, name=f"{project.name} rows") for project in projects], AT_ONCE)
        orders = self.orders("dataset", [project.client_id for project in projects])
        facts = {
            "shape": "chat",
            "rows": 1200,
            "refused": 3,
            "duplicates": 0,
            "split": {"train": 1140, "validation": 60},
            "notices": [],
            "warnings": [],
        }
        common = {"number": 1, "filename": "rows.jsonl", "upload": "", "facts": facts}
        made = [
            DatasetVersion(dataset=dataset, upload_sha256=self.hash(), sha256=self.hash(), order=order, **common)
            for dataset, order in zip(rows, orders, strict=True)
        ]
        versions = DatasetVersion.objects.bulk_create(made, AT_ONCE)
        return {dataset.project_id: version for dataset, version in zip(rows, versions, strict=True)}

    def runs(self, projects: list[Project], bases: list[BaseModel], versions: dict[uuid.UUID, DatasetVersion]) -> list[Run]:
        count = self.amounts.runs
        of = [projects[number % len(projects)] for number in range(count)]
        orders = self.orders("train", [project.client_id for project in of], endings=LOSSES)
        rows = [
            Run(
                project=project,
                name=f"{project.name} {number // len(projects) + 1}",
                plugin="peft_lora",
                config={"rank": 16, "epochs": 3},
                base_model=bases[number % len(bases)],
                dataset_version=versions[project.pk],
                order=order,
                created_at=order.created_at,
            )
            for number, (project, order) in enumerate(zip(of, orders, strict=True))
        ]
        made = Run.objects.bulk_create(rows, AT_ONCE)
        Usage.objects.bulk_create(list(self.usage(made)), AT_ONCE)
        return made

    def usage(self, runs: list[Run]) -> Iterator[Usage]:
        for run in runs:
            assert run.order.started_at and run.order.ended_at  # they are all over
            yield Usage(
                workspace=self.member.workspace,
                client_id=run.project.client_id,
                project=run.project_id,
                order=run.order,
                attempt=1,
                kind="train",
                title=run.name,
                worker_kind="NVIDIA L4",
                gpus=1,
                started_at=run.order.started_at,
                ended_at=run.order.ended_at,
            )

    def results(self, runs: list[Run]) -> list[Artifact]:
        """An adapter of each run that left one."""
        ended = [run for run in runs if run.order.status == Order.Status.SUCCEEDED]
        return Artifact.objects.bulk_create(
            [self.artifact(run, run.order, Artifact.Kind.ADAPTER, run.name, 20 << 20) for run in ended], AT_ONCE
        )

    def artifact(self, run: Run, order: Order, kind: str, name: str, size: int) -> Artifact:
        sha256 = self.hash()
        return Artifact(
            project=run.project,
            kind=kind,
            name=name,
            base_model=run.base_model,
            dataset_version=run.dataset_version,
            order=order,
            folder_name=f"{order.pk}-1-{sha256[:8]}",
            sha256=sha256,
            size=size,
            files={f"{kind}.bin": {"size": size, "sha256": sha256}},
            lineage={"run": {"id": str(run.pk), "name": run.name}},
        )

    def builds(self, runs: list[Run], adapters: list[Artifact]) -> None:
        """GGUF files, until there are as many artifacts as were asked for."""
        of_order = {run.order_id: run for run in runs}
        types, missing = ("q4_k_m", "q8_0", "f16", "q5_k_m"), max(0, self.amounts.artifacts - len(adapters))
        sources = [adapters[number % len(adapters)] for number in range(missing)] if adapters else []
        names = [types[number // len(adapters) % len(types)] for number in range(len(sources))]
        orders = self.orders("build", [source.project.client_id for source in sources])
        files = [
            self.artifact(of_order[source.order_id], order, Artifact.Kind.GGUF, f"{source.name} {name}", 90 << 20)
            for source, name, order in zip(sources, names, orders, strict=True)
        ]
        Artifact.objects.bulk_create(files, AT_ONCE)
        proof = {"passed": True, "reasons": [], "mean_kl": 0.01}
        Build.objects.bulk_create(
            [
                Build(project=source.project, source=source, quantization=name, order=file.order, artifact=file, verification=proof)
                for source, name, file in zip(sources, names, files, strict=True)
            ],
            AT_ONCE,
        )
        through = Artifact.parents.through
        links = [through(from_artifact=file, to_artifact=source) for file, source in zip(files, sources, strict=True)]
        through._default_manager.bulk_create(links, AT_ONCE)

    def releases(self, adapters: list[Artifact]) -> None:
        """Of each project's newest adapters three versions, the last of them live."""
        newest: dict[uuid.UUID, list[Artifact]] = {}
        for adapter in adapters:
            newest.setdefault(adapter.project_id, []).append(adapter)
        made, live = [], []
        for found in newest.values():
            for minor, adapter in enumerate(found[-3:]):
                made.append(self.release(adapter, minor, stage="approved" if adapter is found[-1] else "retired"))
            live.append(made[-1])
        Release.objects.bulk_create(made, AT_ONCE)
        slots = [
            Deployment(project=release.project, client=release.project.client, slug=release.project.slug, release=release)
            for release in live
        ]
        Deployment.objects.bulk_create(slots, AT_ONCE)
        states = [
            DeploymentState(deployment=slot, number=1, change="promote", release=slot.release, user=self.member.user) for slot in slots
        ]
        DeploymentState.objects.bulk_create(states, AT_ONCE)
        self.calls([slot for slot in slots if slot.release])

    def calls(self, slots: list[Deployment]) -> None:
        """Of the last day one by one, a few deployments asked far more than the rest; of the month before by the hour."""
        for begin in range(0, self.amounts.calls if slots else 0, AT_ONCE):
            rows = [self.call(slots) for _ in range(min(AT_ONCE, self.amounts.calls - begin))]
            Call.objects.bulk_create(rows, AT_ONCE)
        roll_up()
        this_hour = hour_of(self.now)
        seen: set[tuple[Any, datetime]] = set()
        hours = []
        for _ in range(self.amounts.calls if slots else 0):
            slot, hour = self.asked(slots), this_hour - timedelta(hours=self.chance.randrange(25, 24 * 30))
            if (slot.pk, hour) not in seen:
                seen.add((slot.pk, hour))
                hours.append(self.call_hour(slot, hour))
        CallHour.objects.bulk_create(hours, AT_ONCE)
        self.add_up(hours)

    def add_up(self, hours: list[CallHour]) -> None:
        """The days of these hours, and what all of a client were asked."""
        alike: dict[tuple[Any, datetime], dict[tuple[Any, ...], Sums]] = defaultdict(lambda: defaultdict(Sums))
        for hour in hours:
            key = tuple(getattr(hour, name) for name in OF)
            for model, moment in ((CallDay, day_of(hour.hour)), (ClientDay, day_of(hour.hour)), (ClientHour, hour.hour)):
                alike[model, moment][key].add_hour(hour)
        for (model, moment), found in alike.items():
            workspaces = {key[0]: self.member.workspace_id for key in found}
            put(model, found, workspaces, **{"hour" if model is ClientHour else "day": moment})

    def asked(self, slots: list[Deployment]) -> Deployment:
        return slots[int(len(slots) * self.chance.random() ** 4)]

    def call(self, slots: list[Deployment]) -> Call:
        slot, outcome = self.asked(slots), self.chance.choice(OUTCOMES)
        call = Call(
            client_id=slot.client_id,
            deployment=slot,
            release=slot.release,
            route=Call.Route.CHAT,
            at=self.now - timedelta(seconds=self.chance.randrange(24 * 3600)),
            status=outcome[0],
            error=outcome[1],
            prompt_tokens=self.chance.randrange(20, 2000),
            completion_tokens=self.chance.randrange(1, 400),
            seconds=round(self.chance.lognormvariate(1, 0.7), 3),
            first=round(self.chance.lognormvariate(-1, 0.7), 3),
        )
        call.find_steps()
        return call

    def call_hour(self, slot: Deployment, hour: datetime) -> CallHour:
        sums = Sums()
        for _ in range(4):
            step, first_step = self.chance.randrange(35, 50), self.chance.randrange(25, 40)
            sums.add_calls(200, "", step, first_step, 5, 3000, 500, 800, 5 * STEPS[step], 5 * STEPS[first_step])
        shown = {"client_id": slot.client_id, "deployment": slot, "release": slot.release}
        return CallHour(workspace=self.member.workspace, hour=hour, **shown, **vars(sums))

    def release(self, adapter: Artifact, minor: int, *, stage: str) -> Release:
        project = adapter.project
        return Release(
            project=project,
            artifact=adapter,
            base_model=adapter.base_model,
            task=project.slug,
            name=f"{project.client.slug}-{project.slug}-smollm2-v1.{minor}.0",
            major=1,
            minor=minor,
            patch=0,
            bump="minor" if minor else "major",
            stage=stage,
            approved_at=self.now,
            created_by=self.member.user,
        )

    def orders(self, kind: str, clients: "list[Any]", *, endings: tuple[str, ...] = ("succeeded",)) -> list[Order]:
        """Orders that ended within the last year, each after a few minutes."""
        rows = []
        for client in clients:
            began = self.now - timedelta(minutes=self.chance.randrange(60, 365 * 24 * 60))
            ended = began + timedelta(minutes=self.chance.randrange(2, 50))
            rows.append(
                Order(
                    workspace=self.member.workspace,
                    client_id=client,
                    kind=kind,
                    queue="train" if kind == "train" else "files",
                    status=self.chance.choice(endings),
                    created_by=self.member.user,
                    started_at=began,
                    ended_at=ended,
                    latest={"loss": 1.2, "step": 300} if kind == "train" else {},
                )
            )
        return Order.objects.bulk_create(rows, AT_ONCE)

    def hash(self) -> str:
        return hashlib.sha256(self.chance.randbytes(16)).hexdigest()
