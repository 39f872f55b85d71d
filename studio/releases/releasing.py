"""Makes releases, notes what is to be known of them, and lets a client's own people see them."""

from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from studio.artifacts.models import Artifact
from studio.audit.services import record
from studio.errors import UserError
from studio.releases import asking
from studio.releases.models import Release
from studio.releases.naming import release_name, short_base
from studio.releases.proposing import Proposal, Version, chosen_bump, latest, propose
from studio.workspaces.models import Member, Project, hold

LONGEST_NOTES = 10_000


def proposed(project: Project, artifact: Artifact, *, task: str = "", asked_with: dict[str, Any] | None = None) -> Proposal:
    """What the rule says of a release that nobody has made yet. Without `asked_with` it is asked as the one before."""
    refuse_mute(artifact, project)
    previous = latest(project, task_slug(project, task))
    return propose(previous, artifact=artifact, asked_with=settings_after(previous, asked_with))


def create_release(
    member: Member,
    *,
    project: Project,
    artifact: Artifact,
    task: str = "",
    bump: str = "",
    asked_with: dict[str, Any] | None = None,
    notes: str = "",
) -> Release:
    """A draft with the next number of its task. Without `asked_with` it is asked as the one before.

    Raises UserError for what does not answer or is of another project, for a bump below the rule's, and where nothing changed.
    """
    refuse_mute(artifact, project)
    slug, notes = task_slug(project, task), plain_notes(notes)
    with transaction.atomic():
        hold(project.client)  # not the project alone: of two projects of a client, only one may release under a task's name
        refuse_task_of_another(project, slug)
        previous = latest(project, slug)
        settings = settings_after(previous, asked_with)
        proposal = propose(previous, artifact=artifact, asked_with=settings)
        chosen = chosen_bump(proposal, bump)
        major, minor, patch = version = proposal.version(chosen)
        release: Release = Release.objects.create(
            project=project,
            artifact=artifact,
            base_model=artifact.base_model,
            previous=previous,
            task=slug,
            name=name_of(project, slug, artifact, version),
            major=major,
            minor=minor,
            patch=patch,
            bump=chosen,
            asked_with=settings,
            notes=notes,
            created_by=member.user,
        )
        change = {"version": [previous.version if previous else None, release.version], "artifact": [None, artifact.name]}
        record(member, "release.create", release, change=change)
    return release


def name_of(project: Project, task: str, artifact: Artifact, version: Version) -> str:
    base = short_base(artifact.base_model.name if artifact.base_model else artifact.name)
    return release_name(client=project.client.slug, task=task, base=base, version=version)


def task_slug(project: Project, task: str) -> str:
    """The task as it stands in the name; the project's short name where nobody named one."""
    slug = slugify(task)[:60].strip("-_")
    if task.strip() and not slug:
        raise UserError("The task cannot be called so.", fields={"task": "Use letters, digits and dashes."})
    return slug or project.slug


def settings_after(previous: Release | None, told: dict[str, Any] | None) -> dict[str, Any]:
    if told is not None:
        return asking.asked_with(told)
    return dict(previous.asked_with) if previous else {}


def refuse_mute(artifact: Artifact, project: Project) -> None:
    """Raises UserError for what no release can be made of."""
    if artifact.project_id != project.pk:
        raise UserError("This was made in another project.", fields={"artifact": "Choose one of this project."})
    if not artifact.is_chattable:
        kind = "merged model" if artifact.kind == Artifact.Kind.MODEL else artifact.get_kind_display()
        text = f"A release is made of an adapter or a model that answers; this is a {kind}."
        if artifact.was_built:
            text += " Release what it was built from: its files are delivered with it."
        raise UserError(text, fields={"artifact": text})


def refuse_task_of_another(project: Project, task: str) -> None:
    others = Release.objects.filter(project__client=project.client_id, task=task).exclude(project=project)
    if other := others.select_related("project").first():
        text = f"The project {other.project} of this client releases under this name already. Choose another task."
        raise UserError(text, fields={"task": text})


def plain_notes(notes: str) -> str:
    notes = notes.replace("\r\n", "\n").strip()
    if "\0" in notes or len(notes) > LONGEST_NOTES:
        raise UserError("The notes cannot be kept so.", fields={"notes": f"At most {LONGEST_NOTES:,} characters of text."})
    return notes


def edit_notes(member: Member, release: Release, *, notes: str) -> None:
    """The one thing of a release that may change; what it answers never does."""
    before, after = release.notes, plain_notes(notes)
    if before == after:
        return
    with transaction.atomic():
        release.notes = after
        release.save(update_fields=["notes"])
        record(member, "release.edit", release, change={"notes": [before, after]})


def share(member: Member, release: Release) -> None:
    """Lets the client's guests see it, and say what they think of it. Shared once, it stays shared."""
    with transaction.atomic():
        hold(release)
        release.refresh_from_db(fields=["shared_at", "stage"])
        if release.shared_at is not None:
            return
        if release.stage not in (Release.Stage.CANDIDATE, Release.Stage.APPROVED):
            raise UserError(f"This release is {release.standing}. Make it a candidate first, then share it.")
        release.shared_at = timezone.now()
        release.save(update_fields=["shared_at"])
        record(member, "release.share", release, change={"shared_at": [None, release.shared_at.isoformat()]})
