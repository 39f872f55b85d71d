"""What there is of a client: every model whose rows are a client's, and the files of each.

Its export and its erasure both go by this list, so that no app can be forgotten: a test fails where a model leads to a client and stands
in neither HOLDINGS nor KEPT.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db.models import Model, QuerySet

from studio.artifacts.models import AdapterUpload, Artifact, Build
from studio.audit.models import AuditRecord
from studio.basemodels.models import BaseModel
from studio.clients.disk import SERVED, Disk, below
from studio.comparisons.models import Arm, ArmRun, Comparison, Extraction, Rating, Retrained, Retraining, Survey
from studio.datasets.deleting import files_of_version
from studio.datasets.models import (
    Dataset,
    DatasetVersion,
    Draft,
    Measurement,
    RowMark,
    Synthesis,
    SyntheticRow,
    TokenView,
    Upload,
)
from studio.datasets.uploading import parts_folder
from studio.orders.models import Event, Order, StoredDay, Usage
from studio.releases.models import Approval, Delivery, Download, Evaluation, Gate, Release
from studio.runs.models import Run
from studio.serving.models import (
    Call,
    CallDay,
    CallHour,
    CallTotal,
    ClientDay,
    ClientHour,
    Deployment,
    DeploymentState,
    Keeping,
    KeptAnswer,
    PromptSet,
    Talk,
    Trial,
    Vote,
)
from studio.workspaces.models import ApiKey, Client, Invitation, Logo, Member, Project


def no_files(row: Any, disk: Disk) -> Iterable[Path]:
    return ()


def files_of_upload(upload: Upload, disk: Disk) -> Iterator[Path]:
    yield upload.path
    yield parts_folder(upload)


def files_of_dataset_version(version: DatasetVersion, disk: Disk) -> Iterator[Path]:
    return files_of_version(version)


def files_of_order(order: Order, disk: Disk) -> Iterator[Path]:
    """Its own folder with logs, events and states, and what its attempts sealed."""
    yield below("orders", str(order.pk))
    yield from disk.artifacts.get(str(order.pk), ())


def files_of_artifact(artifact: Artifact, disk: Disk) -> Iterator[Path]:
    yield below("artifacts", artifact.folder_name.partition("/")[0])
    yield from disk.served.get(artifact.sha256[:SERVED], ())


def files_of_project(project: Project, disk: Disk) -> Iterator[Path]:
    """What trackers on this machine keep of its runs together."""
    yield from disk.tracked.get(project.pk.hex[:8], ())


def files_of_run(run: Run, disk: Disk) -> Iterator[Path]:
    """What trackers on this machine keep of it alone; projects of the same name share a folder where that is older than their ids in it."""
    yield from disk.tracked.get(run.pk.hex, ())
    yield from disk.tracked.get(run.pk.hex[:8], ())


@dataclass(frozen=True)
class Holding:
    """One model of which a client has rows."""

    name: str
    """Of its file in an export, and of its line in a certificate."""
    title: str
    model: type[Model]
    client: str
    """The path from a row to its client."""
    files: Callable[[Any, Disk], Iterable[Path]] = no_files
    hashed: str = ""
    """The column with the SHA-256 of what a row stands for, which a certificate names."""
    without: tuple[str, ...] = ()
    """Columns that no export holds: what opens something, and what only repeats the others for a search."""
    stays: bool = False
    """Its rows outlive the client, without it: KEPT says why."""
    large: bool = False
    """One of them may be a megabyte, so few are read at once."""
    bulky: bool = False
    """There are so many that they are erased by the order or the writing that they belong to, in pieces."""

    @property
    def has_files(self) -> bool:
        return self.files is not no_files

    def rows(self, client: Client) -> "QuerySet[Any]":
        found: QuerySet[Any] = self.model._base_manager.filter(**{self.client: client.pk})
        return found


PROJECT, RELEASE, DATASET = "project__client", "release__project__client", "dataset__project__client"
COMPARISON = "comparison__project__client"
HOLDINGS = (
    Holding("logos", "Logo", Logo, "client"),
    Holding("ratings", "Blind ratings", Rating, COMPARISON),
    Holding("arm_runs", "Runs of comparisons", ArmRun, f"arm__{COMPARISON}"),
    Holding("arms", "Arms of comparisons", Arm, COMPARISON),
    Holding("comparisons", "Comparisons", Comparison, PROJECT),
    Holding("surveys", "Surveys of rows", Survey, f"dataset_version__{DATASET}"),
    Holding("extractions", "Adapters taken out of models", Extraction, "source__project__client"),
    Holding("retrained", "Releases that were trained anew", Retrained, "before__project__client"),
    Holding("retrainings", "Retraining of its releases alone", Retraining, "client"),
    Holding("votes", "Votes for answers", Vote, "client"),
    Holding("talks", "Shared conversations", Talk, "client"),
    Holding("trials", "Prompt sets that were asked", Trial, "client"),
    Holding("prompt_sets", "Prompt sets", PromptSet, "client"),
    Holding("kept_answers", "Kept answers of the endpoint", KeptAnswer, PROJECT, without=("words",), large=True),
    Holding("keepings", "How long answers are kept", Keeping, PROJECT),
    Holding("calls", "Requests to the endpoint", Call, "client", bulky=True),
    Holding("call_hours", "Requests to the endpoint, by the hour", CallHour, "client", stays=True),
    Holding("call_days", "Requests to the endpoint, by the day", CallDay, "client"),
    Holding("client_hours", "Requests to the endpoint, all together, by the hour", ClientHour, "client"),
    Holding("client_days", "Requests to the endpoint, all together, by the day", ClientDay, "client"),
    Holding("call_totals", "Requests to the endpoint, in all", CallTotal, "client"),
    Holding("deployment_states", "Entries of deployments' histories", DeploymentState, "deployment__client"),
    Holding("deployments", "Deployments", Deployment, "client"),
    Holding("downloads", "Downloads of deliveries", Download, f"delivery__{RELEASE}"),
    Holding("deliveries", "Deliveries", Delivery, RELEASE, without=("sha256",)),
    Holding("approvals", "Approvals", Approval, RELEASE),
    Holding("evaluations", "Evaluations", Evaluation, RELEASE),
    Holding("releases", "Releases", Release, PROJECT),
    Holding("gates", "Gates", Gate, PROJECT),
    Holding("builds", "Builds", Build, PROJECT),
    Holding("runs", "Runs", Run, PROJECT, files=files_of_run),
    Holding("artifacts", "Artifacts", Artifact, PROJECT, files=files_of_artifact, hashed="sha256"),
    Holding("adapter_uploads", "Adapters that were trained elsewhere", AdapterUpload, PROJECT, hashed="sha256"),
    Holding("written_rows", "Rows that a model wrote", SyntheticRow, f"synthesis__{DATASET}", bulky=True),
    Holding("syntheses", "Requests for written rows", Synthesis, DATASET),
    Holding("drafts", "Drafts of changes", Draft, f"version__{DATASET}"),
    Holding("row_marks", "Marked rows", RowMark, DATASET),
    Holding("token_views", "Views of tokens", TokenView, f"version__{DATASET}"),
    Holding("measurements", "Measurements of tokens", Measurement, f"version__{DATASET}"),
    Holding("uploads", "Uploads under way", Upload, PROJECT, files=files_of_upload, hashed="sha256"),
    Holding("dataset_versions", "Dataset versions", DatasetVersion, DATASET, files=files_of_dataset_version, hashed="sha256"),
    Holding("datasets", "Datasets", Dataset, PROJECT),
    Holding("events", "Events of orders", Event, "order__client", bulky=True),
    Holding("orders", "Orders with their logs and states", Order, "client", files=files_of_order),
    Holding("stored_days", "Sizes by day", StoredDay, "client", stays=True),
    Holding("projects", "Projects", Project, "client", files=files_of_project),
)
"""In the order in which they are erased: what names another row goes before it."""

KEPT: dict[type[Model], str] = {
    AuditRecord: "Audit records stay. They say who did what and when, by the names that things had; no row's text is in them.",
    Usage: "The hours that its work took stay for the invoices of past months, without its name and without titles.",
    CallHour: "How many requests and tokens its hours had stays for the invoices of past months, without its name and what answered.",
    StoredDay: "How much it stored on each day stays for the invoices of past months, without its name.",
    BaseModel: "Base models belong to the workspace, and so do the words that were added to one's vocabulary.",
    Member: "Whoever saw only this client sees nothing instead, and stays a member.",
    ApiKey: "Keys that reached only this client are revoked.",
    Invitation: "Invitations to only this client are revoked.",
}
"""Models with a way to a client whose rows stay, and why."""

FORGET: list[Callable[[Client, set[str]], None]] = []
"""Apps above add what else is to be forgotten, in the transaction that erases the rows: the client, and the ids of all that was its own."""
