"""Who may see what: users, workspaces, members, clients, projects, keys, and the only way to reach a row."""

import hashlib
import secrets
import uuid
from datetime import UTC, time, tzinfo
from typing import Any, ClassVar, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.apps import apps
from django.contrib.auth.models import AbstractBaseUser, BaseUserManager
from django.db import models, transaction
from django.db.models import Q
from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404
from django.utils import timezone

from studio.workspaces.policy import ON_ARCHIVED, ROLE_ACTIONS, SCOPE_ACTIONS


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, *, verified: bool = True) -> "User":
        """A person, with their address as the sign-in looks it up; `verified` where it is known to be theirs."""
        user = self.model(email=self.normalize_email(email).lower())
        user.set_password(password)
        with transaction.atomic(using=self._db):
            user.save(using=self._db)
            addresses = apps.get_model("account", "EmailAddress")._default_manager
            addresses.create(user=user, email=user.email, verified=verified, primary=True)
        return user

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(AbstractBaseUser):
    """A person. What they may do is said by their memberships alone."""

    email = models.EmailField("e-mail address", unique=True)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[UserManager] = UserManager()
    USERNAME_FIELD = "email"

    def __str__(self) -> str:
        return self.email


class Workspace(models.Model):
    """The tenant. Nothing ever crosses it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80)
    created_at = models.DateTimeField(auto_now_add=True)
    run_limit = models.PositiveSmallIntegerField(null=True)
    """How many runs of one client may run at once; None sets no limit. A client can have its own."""
    night_from = models.TimeField(default=time(20))
    night_until = models.TimeField(default=time(6))
    """The hours in which runs go that are for the night only, in `time_zone`."""
    time_zone = models.CharField(max_length=60, default="UTC")
    """A name of the IANA database. Times that people type for the queue are meant in it."""
    currency = models.CharField(max_length=3, default="EUR")
    """ISO 4217; what every rate of the workspace is in."""
    storage_price = models.DecimalField(max_digits=10, decimal_places=4, null=True)
    """Of one GB (10^9 bytes) for a month; None where storage costs nothing."""
    second_factor_required = models.BooleanField(default=False)
    """Whoever has no second factor (TOTP or a passkey) is asked to add one before anything else."""

    def __str__(self) -> str:
        return self.name

    @property
    def zone(self) -> tzinfo:
        """UTC where this machine does not know the zone."""
        try:
            return ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            return UTC


class Member(models.Model):
    """A user in a workspace with a role: the one who acts, in a page or through a key."""

    class Role(models.TextChoices):
        OWNER = "owner", "Owner"
        ADMIN = "admin", "Admin"
        MEMBER = "member", "Member"
        VIEWER = "viewer", "Viewer"
        GUEST = "guest", "Guest"

    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="members")
    role = models.CharField(max_length=10, choices=Role.choices)
    clients: "models.ManyToManyField[Client, models.Model]" = models.ManyToManyField("Client", blank=True, related_name="members")
    """The only clients they see; none means all, except for a guest, who then sees nothing."""
    narrowed = models.BooleanField(default=False)
    """Only `clients` are seen, also once none of them is left."""
    created_at = models.DateTimeField(auto_now_add=True)

    key: "ApiKey | None" = None
    ip: str | None = None
    asks_once: bool = False
    """Within one request: what bounds it is read once."""

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "workspace"], name="one_membership_per_workspace")]

    def __str__(self) -> str:
        return f"{self.user} ({self.role})"

    @property
    def audit_client(self) -> "Client | None":
        """The client that a record about them is of: the only one that they see."""
        return only_client(self)

    def may(self, action: str) -> bool:
        """True where the role allows the action and, for a key, one of its scopes does too."""
        if action not in ROLE_ACTIONS[self.role]:
            return False
        if self.key is None:
            return True
        if self.key.by_deployment and action not in SCOPE_ACTIONS["inference"]:
            return False
        return any(action in SCOPE_ACTIONS[scope] for scope in self.key.scopes)

    def client_ids(self) -> list[uuid.UUID] | None:
        """The clients that bound this member, or None where nothing does. A request asks once, whatever it then looks for."""
        if not self.asks_once:
            return self._client_ids()
        if not hasattr(self, "_bound_by"):
            self._bound_by = self._client_ids()
        return self._bound_by

    def _client_ids(self) -> list[uuid.UUID] | None:
        own = list(self.clients.values_list("pk", flat=True))
        bound = own if own or self.narrowed or self.role == self.Role.GUEST else None
        if self.key is None:
            return bound
        narrow = list(self.key.clients.values_list("pk", flat=True))
        if not narrow and not self.key.narrowed:
            return bound
        return narrow if bound is None else [pk for pk in narrow if pk in bound]


def hold(row: models.Model, *, to_delete: bool = False) -> None:
    """Locks a row until the transaction ends: of two requests that look whether something is there and then make it, one waits.

    Rows that point at it can be made meanwhile, or two that each hold one and make a row that points at the other's would wait for each
    other for ever; not so where it is held `to_delete`. SQLite has one writer at a time anyway.
    """
    type(row)._base_manager.select_for_update(no_key=not to_delete).get(pk=row.pk)


class ScopedQuerySet(models.QuerySet[Any]):
    """The only way in which views, sockets, forms and the API reach rows."""

    def for_action(self, who: HttpRequest | Member, action: str) -> Self:
        """The rows on which `who` may do `action`; none where the role says no."""
        member = who if isinstance(who, Member) else getattr(who, "member", None)
        if member is None or not member.may(action):
            return self.none()
        rows = self.filter(**{self.model.WORKSPACE: member.workspace_id})
        if member.role == Member.Role.GUEST:
            if not self.model.GUEST:
                return self.none()
            rows = rows.filter(**{f"{self.model.GUEST}__isnull": False}).distinct()
        if member.key is not None and member.key.by_deployment:
            if not self.model.KEYS:
                return self.none()
            rows = rows.filter(**{self.model.KEYS: member.key})
        if self.model.CLIENT and (ids := member.client_ids()) is not None:
            path = self.model.CLIENT
            allowed = Q(**{f"{path}__in": ids})
            if self.model.SHARED:  # what belongs to no client, such as a base model, is the whole workspace's
                allowed |= Q(**{f"{path}__isnull": True})
            rows = rows.filter(allowed)
        if self.model.CLIENT and action not in ON_ARCHIVED:
            rows = rows.current()
        return rows

    def current(self) -> Self:
        """Without what belongs to archived clients: what a list shows unless it is asked for a client's own."""
        path = "" if self.model.CLIENT == "pk" else f"{self.model.CLIENT}__"
        return self.filter(**{f"{path}archived_at__isnull": True})

    def named(self, typed: object) -> Any:
        """The row whose id a form or a query holds. What is no id at all is not found, as what is another's."""
        try:
            pk = uuid.UUID(str(typed))
        except ValueError as problem:
            raise Http404 from problem
        return get_object_or_404(self, pk=pk)


class Tenant(models.Model):
    """A row that belongs to a workspace and mostly to a client. A new model cannot forget to say by which path."""

    WORKSPACE: ClassVar[str] = ""
    CLIENT: ClassVar[str] = ""
    SHARED: ClassVar[bool] = False
    """True where rows without a client exist."""
    GUEST: ClassVar[str] = ""
    """The path that is not null on what a client's own people may see; empty where they see none of it."""
    KEYS: ClassVar[str] = ""
    """The path to the keys that reach it though they are narrowed to deployments; empty where such keys see none of it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    objects = ScopedQuerySet.as_manager()

    class Meta:
        abstract = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("WORKSPACE"):
            raise TypeError(f"{cls.__name__} must say by which path it belongs to a workspace.")


class Client(Tenant):
    """A customer of the workspace. Every workspace starts with one, In-house."""

    WORKSPACE, CLIENT, GUEST = "workspace", "pk", "pk"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="clients")
    name = models.CharField(max_length=80)
    slug = models.SlugField(max_length=60)
    colour = models.PositiveSmallIntegerField(default=1)
    """1 to 8: the dot that goes wherever this client's things are shown."""
    run_limit = models.PositiveSmallIntegerField(null=True)
    """How many of its runs may run at once; None leaves it to the workspace."""
    storage_limit = models.BigIntegerField(null=True)
    """Bytes that its datasets and artifacts may take; None sets no limit."""
    gpu_hours_limit = models.FloatField(null=True)
    """GPU hours in a calendar month of the workspace's time zone; None sets no limit."""
    archived_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["workspace", "slug"], name="client_slug_per_workspace")]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> "Client":
        return self


class Logo(Tenant):
    """What stands at the head of a client's reports. Apart from its client, which is read in many lists that show no picture."""

    WORKSPACE, CLIENT = "client__workspace", "client"

    client = models.OneToOneField(Client, models.CASCADE, related_name="logo")
    image = models.TextField()
    """A PNG that the studio itself has encoded, in base64."""
    width = models.PositiveSmallIntegerField()
    height = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"Logo of {self.client}"

    @property
    def audit_client(self) -> Client:
        return self.client

    @property
    def address(self) -> str:
        """For an `img`: the picture itself, so that a page that was saved still has it."""
        return f"data:image/png;base64,{self.image}"


class Project(Tenant):
    """One task for one client: its datasets, runs and artifacts."""

    WORKSPACE, CLIENT = "client__workspace", "client"

    client = models.ForeignKey(Client, models.CASCADE, related_name="projects")
    name = models.CharField(max_length=80)
    slug = models.SlugField(max_length=60)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["client", "slug"], name="project_slug_per_client")]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client:
        return self.client


class ApiKey(Tenant):
    """Opens the API in its member's name. Only the hash is kept."""

    WORKSPACE = "member__workspace"

    member = models.ForeignKey(Member, models.CASCADE, related_name="keys")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=12)
    sha256 = models.CharField(max_length=64, unique=True)
    scopes = models.JSONField(default=list)
    clients = models.ManyToManyField(Client, blank=True, related_name="+")
    narrowed = models.BooleanField(default=False)
    """Only `clients` are reached, also once none of them is left."""
    by_deployment = models.BooleanField(default=False)
    """Only the deployments that name it are reached, also once none of them is left."""
    requests_per_minute = models.PositiveIntegerField(null=True)
    """Of the endpoint; None sets no limit."""
    tokens_per_minute = models.PositiveIntegerField(null=True)
    """Read and written by the endpoint together; None sets no limit."""
    at_once = models.PositiveSmallIntegerField(null=True)
    """Answers of the endpoint that may be under way; None sets no limit."""
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def hash(secret: str) -> str:
        # 256 random bits need no slow hash.
        return hashlib.sha256(secret.encode()).hexdigest()

    @staticmethod
    def new_secret() -> str:
        return "as_" + secrets.token_urlsafe(32)

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > timezone.now())


class Invitation(Tenant):
    """A link by which one person becomes a member, once. Only its hash is kept."""

    WORKSPACE = "workspace"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="invitations")
    role = models.CharField(max_length=10, choices=Member.Role.choices)
    clients = models.ManyToManyField(Client, blank=True, related_name="+")
    narrowed = models.BooleanField(default=False)
    """As of the member that comes of it."""
    email = models.EmailField(blank=True)
    """Where set, only this address can use the link."""
    sha256 = models.CharField(max_length=64, unique=True)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)
    """When it was sent by e-mail; None where it was only shown."""
    used_at = models.DateTimeField(null=True)
    used_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.email or f"{self.get_role_display()} by link"

    @property
    def audit_client(self) -> Client | None:
        return only_client(self)

    @property
    def is_open(self) -> bool:
        return self.used_at is None and self.revoked_at is None and self.expires_at > timezone.now()


def only_client(row: Member | Invitation) -> Client | None:
    clients = list(row.clients.all()[:2])
    return clients[0] if len(clients) == 1 else None


class Rate(Tenant):
    """What an hour of a kind of worker costs from a day on. An invoice of an earlier month keeps the rates of its time."""

    WORKSPACE = "workspace"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="rates")
    kind = models.CharField(max_length=80)
    """As `orders.Usage.worker_kind`: the name of a GPU, or CPU."""
    per_hour = models.DecimalField(max_digits=10, decimal_places=4)
    """Of one GPU, or of one worker without any, in the workspace's currency."""
    since = models.DateField()

    class Meta:
        ordering = ["kind", "-since"]
        constraints = [models.UniqueConstraint(fields=["workspace", "kind", "since"], name="rate_per_kind_and_day")]

    def __str__(self) -> str:
        return f"{self.kind} {self.per_hour}"


class Erasure(Tenant):
    """The certificate of what was erased for a client. It names no row and no text of what is gone."""

    WORKSPACE = "workspace"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="erasures")
    client = models.UUIDField()
    """The id that the client had."""
    client_name = models.CharField(max_length=80)
    reason = models.TextField(blank=True)
    erased_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    erased_at = models.DateTimeField(auto_now_add=True)
    """When it was asked for; from then on nobody reaches anything of it."""
    certificate = models.JSONField(default=dict)
    """Counts, bytes and hashes of what was there, by kind, and what was kept and why."""
    sha256 = models.CharField(max_length=64, blank=True)
    """Of the certificate as canonical JSON, once all is gone."""
    paths = models.JSONField(null=True)
    """Files and folders below DATA_DIR that are still to be removed, once the rows that named them are gone; None before."""
    finished_at = models.DateTimeField(null=True)
    """When nothing was left. An erasure that was cut short is finished by the hourly sweep, or by asking again."""

    class Meta:
        ordering = ["-erased_at"]

    def __str__(self) -> str:
        return self.client_name


class SetupToken(models.Model):
    """Lets the first owner in, once, before anybody has an account."""

    sha256 = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
