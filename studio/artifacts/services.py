"""Records what orders left, and asks for builds."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import OuterRef, Subquery, Sum

from studio.artifacts import buildable
from studio.artifacts.models import Artifact, Build
from studio.artifacts.quantizations import uses_importance
from studio.audit.services import record
from studio.basemodels.models import BaseModel
from studio.datasets.writers import Writer
from studio.errors import UserError
from studio.orders.models import Order
from studio.orders.quotas import held, refuse_storage
from studio.orders.services import go_back, place, request_stop
from studio.storage import remove_folder
from studio.workspaces.models import Client, Member, Project, hold


def record_artifact(order: Order, result: dict[str, Any], **columns: Any) -> Artifact:
    """The row for a folder that was sealed by the worker; its hash is the manifest's."""
    artifact: Artifact = Artifact.objects.create(
        order=order, folder_name=Path(result["folder"]).name, sha256=result["sha256"], size=result["size"], files=result["files"], **columns
    )
    return artifact


def stored(clients: Collection[UUID]) -> dict[UUID, int]:
    """What artifacts take on the disk, by client."""
    # Added up project by project, along an index that has no more than this: joined first, each row would be looked at on its own.
    mine = Artifact.objects.filter(project=OuterRef("pk")).order_by().values("project").annotate(bytes=Sum("size")).values("bytes")
    rows = Project.objects.filter(client__in=clients).order_by().values_list("client").annotate(bytes=Sum(Subquery(mine)))
    return {client: size for client, size in rows if size is not None}


def writers(member: Member, client: Client) -> Iterable[Writer]:
    """The client's own models, which can write rows for its datasets."""
    found = Artifact.objects.for_action(member, "artifact.view").filter(project__client=client).select_related("base_model", "project")
    for artifact in found:
        if artifact.is_chattable:
            base = artifact.base_model
            context = base.model_facts.context_length if base and base.is_ready else 0
            yield Writer(
                f"artifact:{artifact.pk}",
                artifact.name,
                f"Models of {client.name}",
                base=artifact.answering["base"],
                adapter=artifact.answering["adapter"],
                context=context,
            )


def request_builds(
    member: Member,
    *,
    source: Artifact | None = None,
    base_model: BaseModel | None = None,
    project: Project | None = None,
    kind: str = Build.Kind.GGUF,
    quantizations: list[str],
    importance: bool = False,
) -> list[Build]:
    """Builds in the queue, in the order of `quantizations`, all of one order: the weights are read once.

    What succeeded or is on its way is answered instead of being made again. Give a `source`, or a `base_model` as it is; that one goes
    to `project`, or where none is named to the in-house one. Types that do not use the importance of weights are built without.
    """
    quantizations = list(dict.fromkeys(quantizations))
    buildable.refuse(source, base_model, kind=kind, names=quantizations, importance=importance)
    if source is not None:
        project, base_model = source.project, None
    project = project or in_house_project(member)
    common: dict[str, Any] = {"project": project, "source": source, "base_model": base_model, "kind": kind}
    wanted = {name: common | {"quantization": name, "importance": importance and uses_importance(kind, name)} for name in quantizations}
    with transaction.atomic():
        held(project.client)
        hold(source or project)
        found = {name: _there(wanted[name]) for name in quantizations}
        missing = [name for name, build in found.items() if build is None]
        if missing:
            refuse_storage(project.client)
            order = place(member, kind="build", client=project.client)
        for name in missing:
            found[name] = build = Build.objects.create(**wanted[name], order=order)
            record(member, "build.create", build, change={"kind": [None, kind], "quantization": [None, name]})
    return [build for build in found.values() if build is not None]


def _there(wanted: dict[str, Any]) -> Build | None:
    """The same build where it passed or is on its way; the one that passed first."""
    same = Build.objects.filter(**wanted).select_related("order", "artifact", "source", "base_model")
    kept: list[Build] = sorted((build for build in same if build.passed or build.order.is_live), key=lambda build: not build.passed)
    return kept[0] if kept else None


def in_house_project(member: Member) -> Project:
    """Where what is built from a base model goes, unless somebody says otherwise: the first project that the member may build in."""
    mine = Project.objects.for_action(member, "build.create").filter(client__archived_at=None).select_related("client")
    found: Project | None = mine.filter(client__slug="in-house").order_by("created_at").first() or mine.order_by("created_at").first()
    if found is None:
        raise UserError("There is no project to put it in. Make one first.", fields={"project": "Choose a project."})
    return found


def retry_build(member: Member, build: Build) -> Build:
    """Builds again what failed or was stopped, and all that was asked for with it, going on with what an earlier attempt had written.

    A file that was made and did not pass is built anew, as another build. Returns the build to watch.
    """
    order = build.order
    if order.is_live or build.passed:
        raise UserError("This build has not failed, so there is nothing to build again.")
    if order.status == Order.Status.SUCCEEDED:
        return request_builds(
            member,
            source=build.source,
            base_model=build.base_model,
            project=build.project,
            kind=build.kind,
            quantizations=[build.quantization],
            importance=build.importance,
        )[0]
    buildable.refuse(build.source, build.base_model, kind=build.kind, names=[build.quantization], importance=build.importance)
    with transaction.atomic():
        refuse_storage(build.project.client)
        if not go_back(order, why="Started again; it waits for a worker."):
            raise UserError("Somebody else has just started this again.")
        record(member, "build.retry", build)
    return build


def stop_build(member: Member, build: Build) -> None:
    """Stops the whole order: what was asked for together is made together."""
    with transaction.atomic():
        request_stop(build.order)
        record(member, "build.stop", build)


def delete_build(member: Member, build: Build) -> None:
    """Deletes a build that failed, with its file; its order goes with the last of those that were asked for together."""
    order, artifact = build.order, build.artifact
    if build.passed:
        raise UserError("This build has passed its verification, so it stays. Only what failed can be deleted.")
    with transaction.atomic():
        hold(order)
        order.refresh_from_db(fields=["status"])
        if order.is_live:
            raise UserError("This is still being built. Stop it first, then delete it.")
        record(member, "build.delete", build, change={"quantization": [build.quantization, None]})
        build.delete()
        if artifact is not None:
            artifact.delete()
            transaction.on_commit(lambda: remove_part(artifact.folder))
        if not order.builds.exists():
            order.delete()
            transaction.on_commit(lambda: remove_folder(order.folder.parent))


def remove_part(folder: Path) -> None:
    """Removes one type's folder, and the sealed folder that it shared with others once it was the last."""
    remove_folder(folder)
    shared = folder.parent
    is_shared = shared.parent == Path(settings.DATA_DIR, "artifacts") and shared.is_dir()
    if is_shared and not any(path.is_dir() for path in shared.iterdir()):
        remove_folder(shared)
