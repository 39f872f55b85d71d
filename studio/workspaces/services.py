"""Makes workspaces, clients and projects. Each change writes its audit record."""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import Client, Erasure, Member, Project, SetupToken, User, Workspace, hold
from studio.workspaces.people import refuse_bound

SETUP_HOURS = 24
LIMITS: dict[str, tuple[float, str]] = {
    "storage_limit": (10**15, "Give more than nothing and at most 1,000,000 GB; nothing sets no limit."),
    "gpu_hours_limit": (1_000_000, "Give more than 0 and at most 1,000,000 hours; nothing sets no limit."),
    "run_limit": (1000, "Give a number from 1 to 1000; nothing leaves it to the workspace."),
}
"""What can be limited of a client: the most that can be set, and how to mend what cannot be meant."""


def is_set_up() -> bool:
    return User.objects.exists()


def setup_url(base_url: str) -> str | None:
    """A fresh link for the first owner, or None once there is one. Older links stop working."""
    if is_set_up():
        return None
    token = secrets.token_urlsafe(32)
    with transaction.atomic():
        SetupToken.objects.all().delete()
        SetupToken.objects.create(
            sha256=hashlib.sha256(token.encode()).hexdigest(), expires_at=timezone.now() + timedelta(hours=SETUP_HOURS)
        )
    return f"{base_url.rstrip('/')}/setup/{token}/"


def setup_token_holds(token: str) -> bool:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return not is_set_up() and SetupToken.objects.filter(sha256=digest, expires_at__gt=timezone.now()).exists()


def set_up(*, email: str, password: str, workspace: str, token: str | None) -> Member:
    """The first owner, their workspace, its client In-house and a first project, in one transaction.

    `token` is the one from the link; None is for the operator's own command line.
    """
    errors = {}
    try:
        validate_email(email)
    except ValidationError:
        errors["email"] = "This is not an e-mail address."
    try:
        validate_password(password, User(email=email))
    except ValidationError as error:
        errors["password"] = " ".join(error.messages)
    if not workspace.strip():
        errors["workspace"] = "Give the workspace a name, such as your company's."
    if errors:
        raise UserError("The account could not be made.", fields=errors)
    with transaction.atomic():
        holds = token is None or setup_token_holds(token)
        ended, _ = SetupToken.objects.all().delete()
        if token is not None and not (holds and ended):  # none to end: another request with this link was faster
            raise UserError("This link has been used or has expired. Restart the server, or run manage.py setup_link, for a new one.")
        if is_set_up():
            raise UserError("This studio has been set up already.")
        user = User.objects.create_user(email, password)
        return create_workspace(user=user, name=workspace)


def create_workspace(*, user: User, name: str, ip: str | None = None) -> Member:
    with transaction.atomic():
        workspace = Workspace.objects.create(name=name.strip()[:80])
        member = Member.objects.create(user=user, workspace=workspace, role=Member.Role.OWNER)
        member.ip = ip
        record(member, "workspace.create", workspace)
        client = create_client(member, name="In-house")
        create_project(member, client=client, name="First project")
    return member


def free_slug(taken: set[str], name: str) -> str:
    slug = slugify(name)[:50] or "project"
    if slug not in taken:
        return slug
    return next(f"{slug}-{number}" for number in range(2, len(taken) + 3) if f"{slug}-{number}" not in taken)


def chosen_slug(taken: set[str], slug: str, *, owner: str) -> str:
    """The short name as it is stored; empty where none was chosen. Raises UserError where another one has it."""
    own = slugify(slug)[:60]
    if slug.strip() and not own:
        raise UserError("The short name cannot be used.", fields={"slug": "Use letters, digits and dashes."})
    if own in taken:
        raise UserError("The short name is taken.", fields={"slug": f"Another {owner} has this short name."})
    return own


def plain_name(name: str) -> str:
    name = " ".join(name.split())
    if not name:
        raise UserError("Give it a name.", fields={"name": "Give it a name."})
    if len(name) > 80:
        raise UserError("The name is too long.", fields={"name": "At most 80 characters."})
    return name


def create_client(member: Member, *, name: str, slug: str = "") -> Client:
    refuse_bound(member, "make another one")  # a client that they would not see, under a name that tells which others there are
    name = plain_name(name)
    with transaction.atomic():
        hold(member.workspace)
        taken = set(Client.objects.filter(workspace=member.workspace).values_list("slug", flat=True))
        own = chosen_slug(taken, slug, owner="client") or free_slug(taken, name)
        client: Client = Client.objects.create(workspace=member.workspace, name=name, slug=own, colour=len(taken) % 8 + 1)
        record(member, "client.create", client)
    return client


def create_project(member: Member, *, client: Client, name: str, slug: str = "") -> Project:
    name = plain_name(name)
    if client.archived_at is not None:
        raise UserError("This client is archived.", fields={"client": "This client is archived. Choose another."})
    with transaction.atomic():
        hold(client)
        taken = set(Project.objects.filter(client=client).values_list("slug", flat=True))
        own = chosen_slug(taken, slug, owner="project of this client") or free_slug(taken, name)
        project: Project = Project.objects.create(client=client, name=name, slug=own)
        record(member, "project.create", project)
    return project


def update_client(
    member: Member, client: Client, *, name: str | None = None, slug: str | None = None, limits: dict[str, Any] | None = None
) -> None:
    """`limits`: those of `LIMITS` that change; None as a value takes one away."""
    if slugify(slug or "")[:60] not in ("", client.slug):
        refuse_bound(member, "change the short name, which no other one may have")
    taken = set(Client.objects.filter(workspace=client.workspace_id).exclude(pk=client.pk).values_list("slug", flat=True))
    rename(member, client, taken, name=name, slug=slug, owner="client", more=checked_limits(limits or {}))


def checked_limits(limits: dict[str, Any]) -> dict[str, Any]:
    """Raises UserError with a sentence beside each that cannot be meant."""
    wrong = {name: LIMITS[name][1] for name, value in limits.items() if value is not None and not 0 < value <= LIMITS[name][0]}
    if wrong:
        raise UserError("Some limits cannot be used.", fields=wrong)
    return limits


def update_project(member: Member, project: Project, *, name: str | None = None, slug: str | None = None) -> None:
    taken = set(Project.objects.filter(client=project.client_id).exclude(pk=project.pk).values_list("slug", flat=True))
    rename(member, project, taken, name=name, slug=slug, owner="project of this client")


def rename(
    member: Member,
    thing: Client | Project,
    taken: set[str],
    *,
    name: str | None,
    slug: str | None,
    owner: str,
    more: dict[str, Any] | None = None,
) -> None:
    """Changes what is given and leaves the rest; the record says what it was before."""
    wanted = {
        "name": plain_name(name) if name is not None else thing.name,
        "slug": chosen_slug(taken, slug or "", owner=owner) or thing.slug,
        **(more or {}),
    }
    change = {field: [getattr(thing, field), value] for field, value in wanted.items() if getattr(thing, field) != value}
    if not change:
        return
    with transaction.atomic():
        for field, value in wanted.items():
            setattr(thing, field, value)
        thing.save(update_fields=[*change])
        record(member, f"{thing._meta.model_name}.update", thing, change=change)


def archive_client(member: Member, client: Client, *, change: dict[str, Any] | None = None) -> None:
    """Takes a client out of the lists. What was made for it stays readable. `change` is what else the record tells."""
    if client.archived_at is not None:
        return
    with transaction.atomic():
        hold(client.workspace)  # of two that archive the last two, one waits
        refuse_last_client(client, "archived")
        client.archived_at = timezone.now()
        client.save(update_fields=["archived_at"])
        record(member, "client.archive", client, change=change)


def refuse_last_client(client: Client, verb: str) -> None:
    if not Client.objects.filter(workspace=client.workspace_id, archived_at=None).exclude(pk=client.pk).exists():
        raise UserError(f"The last client cannot be {verb}. Make another one first.")


def restore_client(member: Member, client: Client) -> None:
    """Brings an archived client back, with everything that was made for it."""
    if client.archived_at is None:
        return
    with transaction.atomic():
        if Erasure.objects.filter(client=client.pk, finished_at=None).exists():
            raise UserError("This client is being erased, so it cannot be restored.")
        client.archived_at = None
        client.save(update_fields=["archived_at"])
        record(member, "client.restore", client)
