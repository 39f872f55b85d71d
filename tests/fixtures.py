"""What many tests stand on: workspaces with people and keys, things in them, orders that are really worked off, and a queue.

Plain functions, so that a test can make as many as it needs. Nothing here replaces a part of the studio.
"""

import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import redis
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client as Browser
from django.utils import timezone
from django.utils.text import slugify

from studio.artifacts import kinds
from studio.artifacts.models import AdapterUpload, Artifact, Build
from studio.basemodels.models import BaseModel
from studio.comparisons.models import Arm, ArmRun, Comparison, Extraction, Retrained, Retraining, Survey
from studio.datasets import rows, uploading
from studio.datasets.models import Connection, Dataset, DatasetVersion, Synthesis, SyntheticRow, Upload
from studio.orders.models import Order, Slot
from studio.orders.services import claim
from studio.orders.supervising import Supervisor
from studio.releases.models import Delivery, Evaluation, Release
from studio.runs.models import Run
from studio.serving import keeping
from studio.serving.columns import shown
from studio.serving.models import Call, Deployment, Keeping, KeptAnswer, PromptSet, Talk, Trial, Vote
from studio.serving.traffic import record_call
from studio.storage import commit_folder
from studio.supervisor.redis_server import find_server
from studio.workspaces.models import ApiKey, Client, Erasure, Invitation, Logo, Member, Project, Rate, User, Workspace
from studio.workspaces.services import create_workspace

ALL_SCOPES = ["read", "write", "train", "deploy", "inference", "admin"]
MODEL_FACTS: dict[str, Any] = {
    "name": "Tiny",
    "architecture": "LlamaForCausalLM",
    "family": "llama",
    "parameters": 100_000,
    "hidden_size": 64,
    "layers": 2,
    "intermediate_size": 128,
    "vocabulary": 500,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "context_length": 512,
    "tied": True,
    "dtype": "float32",
    "size": 400_000,
    "linears": [{"name": "q_proj", "inputs": 64, "outputs": 64, "count": 2}],
    "chat_template": True,
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
"""A PNG, in base 64."""
HOST_FACTS: dict[str, Any] = {"name": "test", "cpus": 2, "memory": 8 << 30}


def make_owner(email: str = "ana@example.com", workspace: str = "Acme") -> Member:
    """The owner of a new workspace, with its client In-house and a first project."""
    return create_workspace(user=User.objects.create_user(email), name=workspace)


def make_member(workspace: Workspace, *, role: str, email: str, clients: list[Client] | None = None) -> Member:
    member = Member.objects.create(user=User.objects.create_user(email), workspace=workspace, role=role)
    member.clients.set(clients or [])
    return member


def make_key(member: Member, *, scopes: list[str] | None = None, clients: list[Client] | None = None, **columns: Any) -> str:
    """The secret of a new API key, also of one that the member could not make now: their role may have been another then."""
    secret = ApiKey.new_secret()
    columns = {"name": "test", "scopes": scopes or ALL_SCOPES, "narrowed": clients is not None} | columns
    key = ApiKey.objects.create(member=member, prefix=secret[:8], sha256=ApiKey.hash(secret), **columns)
    key.clients.set(clients or [])
    return secret


class Api:
    """Calls the API as a script does: `Api(secret).post("runs", {...})`."""

    def __init__(self, secret: str | None):
        self.browser = Browser()
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        address = path if path.startswith(("/", "http")) else f"/api/v1/{path}"
        data = json.dumps(body) if body is not None else ""
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.browser.generic(method, address, data, content_type="application/json", headers=sent)

    def get(self, path: str, **headers: str) -> Any:
        return self.call("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.call("POST", path, {} if body is None else body, **headers)

    def patch(self, path: str, body: Any) -> Any:
        return self.call("PATCH", path, body)

    def delete(self, path: str) -> Any:
        return self.call("DELETE", path)

    def upload(self, path: str, content: bytes, *, name: str = "rows.jsonl", headers: dict[str, str] | None = None, **fields: Any) -> Any:
        form = {"file": SimpleUploadedFile(name, content), **fields}
        return self.browser.post(f"/api/v1/{path}", form, headers=self.headers | (headers or {}))


def make_order(member: Member, *, kind: str, client: Client | None, status: str = Order.Status.SUCCEEDED) -> Order:
    """An order that has ended, or stands where `status` says, without having been worked off."""
    now = timezone.now()
    return Order.objects.create(
        workspace=member.workspace,
        client=client,
        kind=kind,
        queue="files",
        status=status,
        created_by=member.user,
        started_at=now,
        ended_at=now,
    )


def make_base_model(member: Member, *, name: str = "Tiny") -> BaseModel:
    """A base model that is ready as far as the database knows; its folder is empty, for a rehearsal reads nothing from it."""
    order = make_order(member, kind="base_model", client=None)
    return BaseModel.objects.create(
        workspace=member.workspace, name=name, source=f"path:/models/{name}", facts=MODEL_FACTS, sha256="0" * 64, order=order
    )


def make_version(member: Member, project: Project, *, name: str = "Replies", count: int = 12) -> DatasetVersion:
    """A version that is ready, with its rows in a file as the import writes them."""
    order = make_order(member, kind="dataset", client=project.client)
    validation = count // 6
    facts = {
        "shape": "chat",
        "rows": count,
        "refused": 0,
        "duplicates": 0,
        "split": {"train": count - validation, "validation": validation},
        "notices": [],
        "warnings": [],
    }
    version = DatasetVersion.objects.create(
        dataset=Dataset.objects.create(project=project, name=name),
        number=1,
        filename="replies.jsonl",
        upload="none",
        upload_sha256="1" * 64,
        sha256="2" * 64,
        facts=facts,
        order=order,
    )
    write_rows(version.folder, count=count, validation=validation)
    return version


def write_rows(folder: Path, *, count: int, validation: int) -> None:
    folder.mkdir(parents=True)
    with rows.RowWriter(folder / "draft.parquet") as writer:
        for number in range(count):
            chat = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Answer {number}."}]
            writer.add(line=number + 1, row=json.dumps({"messages": chat}))
    split = np.arange(count) < validation
    rows.finish(
        folder / "draft.parquet",
        folder / "rows.parquet",
        validation=split,
        flags=np.zeros(count, dtype=np.uint32),
        hashes=np.arange(count, dtype=np.uint64),
    )
    (folder / "refusals.jsonl").touch()


def make_synthesis(member: Member, version: DatasetVersion) -> Synthesis:
    order = make_order(member, kind="synthesis", client=version.audit_client)
    settings = {"writer": "base:none", "name": "Writer", "instruction": "", "shape": "chat", "seeds": [], "target": 2}
    made: Synthesis = Synthesis.objects.create(dataset=version.dataset, version=version, settings=settings, order=order)
    for number in (1, 2):
        chat = [{"role": "user", "content": f"Written {number}?"}, {"role": "assistant", "content": "Yes."}]
        SyntheticRow.objects.create(synthesis=made, number=number, row={"messages": chat})
    return made


def make_upload(
    member: Member, project: Project, *, content: bytes = b"", length: int = 0, filename: str = "replies.jsonl", purpose: str = "dataset"
) -> Upload:
    """A file of which `content` has arrived; all of it, where it has no more than `length` bytes."""
    pk = uuid.uuid4()
    upload = Upload.objects.create(
        pk=pk, project=project, created_by=member.user, filename=filename, length=length or len(content) or 1, name=pk.hex, purpose=purpose
    )
    upload.path.parent.mkdir(exist_ok=True)
    upload.path.write_bytes(content)
    uploading.complete(upload)
    return upload


def make_run(member: Member, project: Project, base: BaseModel, version: DatasetVersion, *, status: str = Order.Status.SUCCEEDED) -> Run:
    order = make_order(member, kind="train", client=project.client, status=status)
    return Run.objects.create(
        project=project, name="Try", plugin="rehearsal", config={"max_steps": 3}, base_model=base, dataset_version=version, order=order
    )


def make_artifact(
    order: Order, project: Project, files: dict[str, bytes], *, kind: str = Artifact.Kind.ADAPTER, **columns: Any
) -> Artifact:
    """A sealed folder with these files, and its row."""
    name = f"{order.pk}-{order.attempt}"
    temp, target = Path(settings.DATA_DIR, "temp", name), Path(settings.DATA_DIR, "artifacts", name)
    temp.mkdir(parents=True)
    for file, content in files.items():
        (temp / file).parent.mkdir(parents=True, exist_ok=True)
        (temp / file).write_bytes(content)
    manifest = commit_folder(temp, target)
    columns = {
        "name": "Try",
        "folder_name": name,
        "files": manifest["files"],
        "sha256": manifest["sha256"],
        "size": manifest["size"],
        **columns,
    }
    return Artifact.objects.create(order=order, project=project, kind=kind, **columns)


def make_build(
    member: Member,
    source: Artifact | BaseModel,
    *,
    quantization: str = "q8_0",
    passed: bool = True,
    content: bytes = b"GGUF",
    project: Project | None = None,
    kind: str = Build.Kind.GGUF,
    importance: bool = False,
    **figures: Any,
) -> Build:
    """A build that has ended, with its file; `figures` stand in its proof. Of a base model as it is, in `project`."""
    made_from = {"source": source} if isinstance(source, Artifact) else {"base_model": source}
    project = project or made_from["source"].project
    order = make_order(member, kind="build", client=project.client)
    build = Build.objects.create(
        project=project,
        kind=kind,
        quantization=quantization,
        importance=importance,
        order=order,
        verification={"passed": passed, "reasons": [], "mean_kl": 0.001} | figures,
        **made_from,
    )
    name = "model.safetensors" if kind == Build.Kind.MERGED else f"{build.file_stem}-{quantization}.gguf"
    folder = kinds.BuildKind().target(order)
    temp = Path(settings.DATA_DIR, "temp", folder.name)
    (temp / quantization).mkdir(parents=True)
    for file, written in {name: content, "README.md": b"# A model\n", "Modelfile": f"FROM ./{name}\n".encode()}.items():
        (temp / quantization / file).write_bytes(written)
    build.artifact = kinds.record_part(order, build, {"folder": str(folder), **commit_folder(temp, folder)})
    build.save()
    return build


def make_failed_build(member: Member, source: Artifact, *, quantization: str = "f16", order: Order | None = None) -> Build:
    """A build of which nothing came, with what it had written so far."""
    order = order or make_order(member, kind="build", client=source.project.client, status=Order.Status.FAILED)
    order.checkpoints.mkdir(parents=True, exist_ok=True)
    (order.checkpoints / "unfinished").write_bytes(b"GG")
    return Build.objects.create(project=source.project, source=source, quantization=quantization, order=order)


def make_release(
    member: Member, artifact: Artifact, *, version: tuple[int, int, int] = (1, 0, 0), shared: bool = False, stage: str = Release.Stage.DRAFT
) -> Release:
    """A release of an artifact; `shared` with the client's guests."""
    major, minor, patch = version
    project = artifact.project
    return Release.objects.create(
        project=project,
        artifact=artifact,
        base_model=artifact.base_model,
        task=project.slug,
        name=f"{project.client.slug}-{project.slug}-tiny-v{major}.{minor}.{patch}",
        major=major,
        minor=minor,
        patch=patch,
        bump=Release.Bump.MAJOR,
        stage=stage,
        shared_at=timezone.now() if shared else None,
        created_by=member.user,
    )


def make_delivery(member: Member, release: Release, build: Build, *, link: str = "", **columns: Any) -> Delivery:
    """A delivery by a link that holds for a week; `link` is its secret."""
    columns = {"expires_at": timezone.now() + timedelta(days=7), "created_by": member.user} | columns
    return Delivery.objects.create(release=release, build=build, sha256=ApiKey.hash(link or uuid.uuid4().hex), **columns)


def make_deployment(project: Project, release: Release | None = None, *, slug: str = "support") -> Deployment:
    return Deployment.objects.create(project=project, client=project.client, slug=slug, release=release)


def make_call(deployment: Deployment, *, at: datetime | None = None, **columns: Any) -> Call:
    """A request that was answered just now, or `at`."""
    told = {"status": 200, "prompt_tokens": 10, "completion_tokens": 5, "seconds": 1.0, "first": 0.2, "release": deployment.release}
    told |= {"client": deployment.client, "deployment": deployment, "route": Call.Route.CHAT, "at": at or timezone.now()}
    call = Call(**told | columns)
    record_call(call)
    return call


def make_kept(deployment: Deployment, release: Release, *, question: str = "When does it come?", answer: str = "Tomorrow.") -> KeptAnswer:
    """Kept as the endpoint keeps it; its project keeps answers."""
    asked, answered = [{"role": "user", "content": question}], {"role": "assistant", "content": answer}
    told = {"pk": uuid.uuid4(), "deployment": deployment, "release": release, "key": None, "at": timezone.now()}
    kept = keeping.keep(messages=asked, answer=answered, **told)
    assert kept is not None
    return kept


def make_invitation(
    member: Member, *, link: str = "", role: str = "member", clients: list[Client] | None = None, **columns: Any
) -> Invitation:
    """An invitation by a link that holds for a week; `link` is its secret."""
    columns = {"expires_at": timezone.now() + timedelta(days=7), "created_by": member.user, "narrowed": clients is not None} | columns
    made = Invitation.objects.create(workspace=member.workspace, role=role, sha256=ApiKey.hash(link or uuid.uuid4().hex), **columns)
    made.clients.set(clients or [])
    return made


@dataclass
class World:
    """A workspace with one of everything, and a key that may do all of it."""

    owner: Member
    api: Api
    client: Client
    project: Project
    base: BaseModel
    version: DatasetVersion
    run: Run
    artifact: Artifact
    build: Build

    @property
    def connection(self) -> Connection:
        """An endpoint that nobody answers at."""
        found = Connection.objects.filter(workspace=self.owner.workspace).first()
        settings = {"url": "https://models.invalid/v1", "model": "large"}
        return found or Connection.objects.create(workspace=self.owner.workspace, kind="openai", name="Elsewhere", settings=settings)

    @property
    def synthesis(self) -> Synthesis:
        """Two rows that a model wrote, to be decided about."""
        return Synthesis.objects.filter(dataset=self.version.dataset).first() or make_synthesis(self.owner, self.version)

    @property
    def upload(self) -> Upload:
        """A file that has arrived, and is no version yet."""
        found = Upload.objects.filter(project=self.project, purpose=Upload.Purpose.DATASET).first()
        return found or make_upload(self.owner, self.project, content=b'{"text": "one"}\n')

    @property
    def adapter_file(self) -> Upload:
        """An adapter that has arrived, and is not taken in yet."""
        found = Upload.objects.filter(project=self.project, purpose=Upload.Purpose.ADAPTER).first()
        return found or make_upload(self.owner, self.project, content=b"PK", filename="adapter.zip", purpose="adapter")

    @property
    def adapter_upload(self) -> AdapterUpload:
        """The look through an adapter, which failed."""
        found = AdapterUpload.objects.filter(project=self.project).first()
        order = None if found else make_order(self.owner, kind="adapter", client=self.client, status=Order.Status.FAILED)
        columns = {"name": "Brought", "base_model": self.base, "filename": "adapter.zip", "sha256": "3" * 64, "order": order}
        return found or AdapterUpload.objects.create(project=self.project, upload=self.adapter_file, **columns)

    @property
    def release(self) -> Release:
        """Of its artifact, and shared with its client's guests."""
        found = Release.objects.filter(project=self.project).first()
        return found or make_release(self.owner, self.artifact, shared=True)

    @property
    def candidate(self) -> Release:
        """Another release of its artifact, which waits for what people say."""
        found = Release.objects.filter(project=self.project, stage=Release.Stage.CANDIDATE).first()
        return found or make_release(self.owner, self.artifact, version=(9, 0, 0), stage=Release.Stage.CANDIDATE)

    @property
    def evaluation(self) -> Evaluation:
        """What the candidate was measured as."""
        found = Evaluation.objects.filter(release__project=self.project).first()
        result = {"rows": 8, "tokens": 80, "loss": 1.0, "before": None, "samples": []}
        columns = {"dataset_version": self.version, "result": result}
        return found or Evaluation.objects.create(
            release=self.candidate, order=make_order(self.owner, kind="evaluation", client=self.client), **columns
        )

    @property
    def delivery(self) -> Delivery:
        found = Delivery.objects.filter(release__project=self.project).first()
        return found or make_delivery(self.owner, self.release, self.build)

    @property
    def deployment(self) -> Deployment:
        found = Deployment.objects.filter(project=self.project).first()
        return found or make_deployment(self.project)

    @property
    def prompt_set(self) -> PromptSet:
        """Two prompts of its client, of which the first is asked twice."""
        prompts = [{"turns": ["Where?", "And when?"], "category": "parcels"}, {"turns": ["Why?"], "category": ""}]
        columns = {"workspace": self.workspace, "client": self.client, "name": "Support", "prompts": prompts, "user": self.owner.user}
        return PromptSet.objects.filter(client=self.client).first() or PromptSet.objects.create(**columns)

    @property
    def trial(self) -> Trial:
        """Of its prompt set, asked of its base and its adapter, and answered."""
        return Trial.objects.filter(client=self.client).first() or make_trial(self)

    @property
    def comparison(self) -> Comparison:
        """Two arms of one run each that have ended, and shared with its client's guests."""
        return Comparison.objects.filter(project=self.project).first() or make_comparison(self)

    @property
    def logo(self) -> Logo:
        """One pixel."""
        found = Logo.objects.filter(client=self.client).first()
        return found or Logo.objects.create(client=self.client, image=PIXEL, width=1, height=1)

    @property
    def survey(self) -> Survey:
        found = Survey.objects.filter(dataset_version=self.version).first()
        columns = {"dataset_version": self.version, "base_model": self.base}
        return found or Survey.objects.create(order=make_order(self.owner, kind="survey", client=self.client), **columns)

    @property
    def extraction(self) -> Extraction:
        """Of its artifact."""
        found = Extraction.objects.filter(source=self.artifact).first()
        columns = {"source": self.artifact, "ranks": [16]}
        return found or Extraction.objects.create(order=make_order(self.owner, kind="extraction", client=self.client), **columns)

    @property
    def retraining(self) -> Retraining:
        """Of its one release, on its base."""
        found = Retraining.objects.filter(client=self.client).first()
        columns = {"client": self.client, "base_model": self.base, "name": "Newer base", "created_by": self.owner.user}
        made = found or Retraining.objects.create(workspace=self.workspace, **columns)
        Retrained.objects.get_or_create(retraining=made, before=self.release)
        return made

    @property
    def newer(self) -> BaseModel:
        """Another base model, with other files."""
        found = BaseModel.objects.filter(workspace=self.workspace, name="Newer").first() or make_base_model(self.owner, name="Newer")
        found.sha256 = "9" * 64
        found.save(update_fields=["sha256"])
        return found

    @property
    def talk(self) -> Talk:
        """Shared by its owner."""
        kept = {"target": f"adapter:{self.artifact.pk}", "title": self.artifact.name, "note": "Adapter", "method": "lora"}
        turns = [{"prompt": "Where is it?", "answers": [{"text": "On its way.", "tokens": 4, "seconds": 0.2, "first": 0.1, "error": ""}]}]
        told = {"workspace": self.workspace, "user": self.owner.user, "columns": [kept], "asked_with": {}, "turns": turns}
        return Talk.objects.filter(client=self.client).first() or Talk.objects.create(client=self.client, **told)

    @property
    def vote(self) -> Vote:
        """Its adapter was found better than its base, by its owner."""
        targets = {"Adapter": f"adapter:{self.artifact.pk}", "Base": f"base:{self.base.pk}"}
        columns = [{"target": target, "title": title, "note": "", "method": "lora"} for title, target in targets.items()]
        told = {"workspace": self.workspace, "user": self.owner.user, "columns": columns, "prompt": "Where is it?", "blind": False}
        found = Vote.objects.filter(client=self.client).first()
        return found or Vote.objects.create(client=self.client, answers=["On its way.", "Who knows."], best=0, **told)

    @property
    def kept(self) -> KeptAnswer:
        """What its deployment was asked and answered, for the project keeps such for a month."""
        Keeping.objects.get_or_create(project=self.project, defaults={"days": 30})
        found = KeptAnswer.objects.filter(project=self.project).first()
        return found or make_kept(self.deployment, self.release)

    @property
    def erasure(self) -> Erasure:
        """The certificate of a client that its workspace had."""
        found = Erasure.objects.filter(workspace=self.workspace).first()
        told = {"by": self.owner.user.email, "erased": [], "kept": []}
        columns = {"client_name": "Gone", "certificate": told, "erased_by": self.owner.user, "finished_at": timezone.now()}
        return found or Erasure.objects.create(workspace=self.workspace, client=uuid.uuid4(), sha256="3" * 64, **columns)

    @property
    def key(self) -> ApiKey:
        """One of the owner's, besides that of `api`."""
        if not self.owner.keys.filter(name="spare").exists():
            make_key(self.owner, name="spare")
        return self.owner.keys.get(name="spare")

    @property
    def rate(self) -> Rate:
        found = Rate.objects.filter(workspace=self.workspace).first()
        return found or Rate.objects.create(workspace=self.workspace, kind="CPU", per_hour="1.20", since="2026-01-01")

    @property
    def invitation(self) -> Invitation:
        """To its client alone."""
        return Invitation.objects.filter(clients=self.client).first() or make_invitation(self.owner, clients=[self.client])

    @property
    def colleague(self) -> Member:
        """A member who sees its client alone."""
        found = Member.objects.filter(clients=self.client, role="member", user__email__startswith="colleague-").first()
        email = f"colleague-{slugify(self.client.name)}-{self.client.pk.hex[:4]}@people.example"
        return found or make_member(self.workspace, role="member", email=email, clients=[self.client])

    @property
    def workspace(self) -> Workspace:
        return self.owner.workspace


def make_world(email: str = "ana@example.com", workspace: str = "Acme") -> World:
    owner = make_owner(email, workspace)
    project = Project.objects.select_related("client").get(client__workspace=owner.workspace)
    base = make_base_model(owner)
    version = make_version(owner, project)
    run = make_run(owner, project, base, version)
    lineage = {"run": {"id": str(run.pk), "name": run.name}}
    files = {"adapter_model.safetensors": bytes(range(256)) * 16, "adapter_config.json": b'{"r": 16}'}
    artifact = make_artifact(run.order, project, files, base_model=base, dataset_version=version, lineage=lineage)
    return World(owner, Api(make_key(owner)), project.client, project, base, version, run, artifact, make_build(owner, artifact))


def make_full_model(world: World, files: dict[str, bytes] | None = None) -> Artifact:
    """What a full fine-tuning of the world's base left; without `files` as far as the database knows."""
    order = make_order(world.owner, kind="train", client=world.client)
    told: dict[str, Any] = {"name": "Whole", "base_model": world.base, "dataset_version": world.version}
    return make_artifact(order, world.project, files or {"model.safetensors": b"none"}, kind=Artifact.Kind.MODEL, **told)


def make_trial(world: World, *, status: str = Order.Status.SUCCEEDED) -> Trial:
    """The world's prompt set asked of its base and its adapter; answered where it has ended."""
    order = make_order(world.owner, kind="trial", client=world.client, status=status)
    said = {"tokens": 12, "seconds": 0.5, "first": 0.1, "error": ""}
    answers = [
        [{"turns": [said | {"text": f"{who} says {turn}"} for turn in prompt["turns"]]} for who in ("Base", "Adapter")]
        for prompt in world.prompt_set.prompts
    ]
    return Trial.objects.create(
        workspace=world.workspace,
        client=world.client,
        order=order,
        name=world.prompt_set.name,
        prompt_set=world.prompt_set.pk,
        prompts=world.prompt_set.prompts,
        columns=[shown(thing).kept for thing in (world.base, world.artifact)],
        asked_with={"system": "", "temperature": 0.0, "top_p": None, "max_tokens": 256, "seed": 0},
        answers=answers if status == Order.Status.SUCCEEDED else None,
    )


def make_comparison(world: World, *, state: str = Comparison.State.DONE, seeds: tuple[int, ...] = (1,)) -> Comparison:
    """Two arms, "LoRA" and "Full", each trained once with each seed."""
    columns = {"project": world.project, "name": "LoRA or full", "differs": Comparison.Differs.METHOD, "seeds": list(seeds)}
    made = Comparison.objects.create(**columns, state=state, shared_at=timezone.now(), created_by=world.owner.user)
    for number, name in enumerate(("LoRA", "Full")):
        arm = Arm.objects.create(
            comparison=made,
            number=number,
            name=name,
            plugin=world.run.plugin,
            config=world.run.config,
            base_model=world.base,
            dataset_version=world.version,
            is_reference=name == "Full",
        )
        for seed in seeds:
            ArmRun.objects.create(arm=arm, seed=seed, run=make_run(world.owner, world.project, world.base, world.version))
    return made


def make_slot() -> Slot:
    """A worker that has just said what machine it runs on, so that runs can be forecast and started."""
    return Slot.objects.create(name="test", queue="train", facts=dict(HOST_FACTS), seen_at=timezone.now())


def work_off(order: Order) -> Order:
    """Does an order as a worker does, in a process of its own, and returns the row as it then stands."""
    claimed = claim(str(order.pk), attempt=order.attempt, worker="test")
    assert claimed is not None, f"{order} was {order.status}"
    Supervisor(claimed).run()
    order.refresh_from_db()
    return order


@contextmanager
def redis_on_a_socket() -> Iterator[str]:
    """The embedded Redis on a temporary unix socket; yields its address. Nothing is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="studio-test-"))
    address = f"unix://{folder}/redis.sock"
    command = [
        find_server(),
        "--port",
        "0",
        "--unixsocket",
        f"{folder}/redis.sock",
        "--dir",
        str(folder),
        "--save",
        "",
        "--loglevel",
        "warning",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_redis(address)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=10)
        shutil.rmtree(folder)


def wait_for_redis(address: str) -> None:
    with redis.Redis.from_url(address) as client:
        for _ in range(200):
            try:
                client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
    raise TimeoutError("Redis did not start within ten seconds.")
