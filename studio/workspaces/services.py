"""Makes workspaces, clients, projects and keys. Each change writes its audit record."""

import hashlib
import secrets
from datetime import timedelta

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify

from studio.audit.services import record
from studio.errors import UserError
from studio.workspaces.models import ApiKey, Client, Member, Project, SetupToken, User, Workspace, hold
from studio.workspaces.policy import SCOPE_ACTIONS

SETUP_HOURS = 24


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


def create_workspace(*, user: User, name: str) -> Member:
    with transaction.atomic():
        workspace = Workspace.objects.create(name=name.strip()[:80])
        member = Member.objects.create(user=user, workspace=workspace, role=Member.Role.OWNER)
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


def update_client(member: Member, client: Client, *, name: str | None = None, slug: str | None = None) -> None:
    taken = set(Client.objects.filter(workspace=client.workspace_id).exclude(pk=client.pk).values_list("slug", flat=True))
    rename(member, client, taken, name=name, slug=slug, owner="client")


def update_project(member: Member, project: Project, *, name: str | None = None, slug: str | None = None) -> None:
    taken = set(Project.objects.filter(client=project.client_id).exclude(pk=project.pk).values_list("slug", flat=True))
    rename(member, project, taken, name=name, slug=slug, owner="project of this client")


def rename(member: Member, thing: Client | Project, taken: set[str], *, name: str | None, slug: str | None, owner: str) -> None:
    """Changes what is given and leaves the rest; the record says what it was before."""
    wanted = {
        "name": plain_name(name) if name is not None else thing.name,
        "slug": chosen_slug(taken, slug or "", owner=owner) or thing.slug,
    }
    change = {field: [getattr(thing, field), value] for field, value in wanted.items() if getattr(thing, field) != value}
    if not change:
        return
    with transaction.atomic():
        for field, value in wanted.items():
            setattr(thing, field, value)
        thing.save(update_fields=[*change])
        record(member, f"{thing._meta.model_name}.update", thing, change=change)


def archive_client(member: Member, client: Client) -> None:
    """Takes a client out of the lists. What was made for it stays readable."""
    if client.archived_at is not None:
        return
    with transaction.atomic():
        if not Client.objects.filter(workspace=client.workspace_id, archived_at=None).exclude(pk=client.pk).exists():
            raise UserError("The last client cannot be archived. Make another one first.")
        client.archived_at = timezone.now()
        client.save(update_fields=["archived_at"])
        record(member, "client.archive", client)


def create_api_key(member: Member, *, name: str, scopes: list[str]) -> tuple[ApiKey, str]:
    """The key and its secret, which is shown this once and kept only as a hash."""
    unknown = [scope for scope in scopes if scope not in SCOPE_ACTIONS]
    if unknown or not scopes:
        raise UserError("Choose what the key may do.", fields={"scopes": f"Choose from {', '.join(SCOPE_ACTIONS)}."})
    secret = ApiKey.new_secret()
    with transaction.atomic():
        key = ApiKey.objects.create(member=member, name=plain_name(name), prefix=secret[:8], sha256=ApiKey.hash(secret), scopes=scopes)
        record(member, "key.create", key, change={"scopes": [None, scopes]})
    return key, secret


def revoke_api_key(member: Member, key: ApiKey) -> None:
    with transaction.atomic():
        ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
        record(member, "key.revoke", key)
