"""What is to answer, as the engine is told: the files and their hashes. Reads rows, touches no file."""

from typing import Any

from django.http import Http404

from studio.artifacts.models import Artifact, Build
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.releases.models import Release

Answering = Release | Artifact | BaseModel | Build
Subject = dict[str, str]
"""`{workspace, base, base_sha256, adapter, adapter_sha256}`; without an adapter the last two are empty."""


def subject_of(found: Answering) -> Subject:
    """Raises UserError where it cannot answer yet, and Http404 where it never will."""
    if isinstance(found, Release):
        return subject_of(found.artifact)
    if isinstance(found, BaseModel):
        return of_base(found)
    if isinstance(found, Build):
        if found.artifact is None:
            raise UserError(f"{found} is not built yet. Wait for its build to end.", code="gone")
        return of_artifact(found.artifact)
    return of_artifact(found)


def of_base(found: BaseModel) -> Subject:
    if not found.is_ready:
        raise UserError(f"{found.name} is not ready yet. Wait until it has been looked through.", code="gone")
    return whole(found.workspace_id, str(found.folder), found.sha256)


def of_artifact(found: Artifact) -> Subject:
    workspace = found.project.client.workspace_id
    if found.kind == Artifact.Kind.MODEL:
        return whole(workspace, str(found.folder), found.sha256)
    if found.kind == Artifact.Kind.GGUF:
        return whole(workspace, *one_file(found))
    if found.base_model is None or found.kind not in (Artifact.Kind.ADAPTER, Artifact.Kind.GGUF_ADAPTER):
        raise Http404
    adapter, sha256 = one_file(found) if found.kind == Artifact.Kind.GGUF_ADAPTER else (str(found.folder), found.sha256)
    return of_base(found.base_model) | {"adapter": adapter, "adapter_sha256": sha256}


def whole(workspace: Any, base: str, sha256: str) -> Subject:
    return {"workspace": str(workspace), "base": base, "base_sha256": sha256, "adapter": "", "adapter_sha256": ""}


def one_file(found: Artifact) -> tuple[str, str]:
    """The path and the hash of the one GGUF file of a build."""
    files = [name for name in found.files if name.endswith(".gguf")]
    if len(files) != 1:
        raise UserError(f"{found.name} came in {len(files)} files, so it cannot answer here. Build it as one.", code="unsupported")
    return str(found.folder / files[0]), found.files[files[0]]["sha256"]
