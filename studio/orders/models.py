"""Work that a worker process does: one row per order, and the numbered events it reported."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone

from studio.checkpoints import states, step_of
from studio.workspaces.models import Client, Tenant, Workspace


def last_rank() -> int:
    """The place behind everything that waits: microseconds since 1970, so that whatever came earlier stands before it."""
    return time.time_ns() // 1000


class Order(Tenant):
    """A training, an import, a build: queued, claimed by one worker, watched live, ended once."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    class Status(models.TextChoices):
        QUEUED = "queued", "Queued"
        STARTING = "starting", "Starting"
        RUNNING = "running", "Running"
        FINISHING = "finishing", "Finishing"
        PAUSING = "pausing", "Pausing"
        PAUSED = "paused", "Paused"
        RECOVERING = "recovering", "Recovering"
        SUCCEEDED = "succeeded", "Done"
        FAILED = "failed", "Failed"
        STOPPED = "stopped", "Stopped"

    class Priority(models.IntegerChoices):
        LOW = 0, "Low"
        NORMAL = 1, "Normal"
        HIGH = 2, "High"

    ACTIVE: ClassVar[tuple[str, ...]] = (Status.STARTING, Status.RUNNING, Status.FINISHING, Status.PAUSING)
    """A worker holds it."""
    WAITING: ClassVar[tuple[str, ...]] = (Status.QUEUED, Status.RECOVERING)
    """A worker will take it."""
    LIVE: ClassVar[tuple[str, ...]] = (*WAITING, *ACTIVE)
    """It goes on by itself."""
    RESTING: ClassVar[tuple[str, ...]] = (Status.PAUSED, Status.FAILED)
    """It may be resumed, where a state was saved."""
    MAX_LOSSES: ClassVar[int] = 3

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="orders")
    client = models.ForeignKey(Client, models.CASCADE, null=True, related_name="orders")
    kind = models.CharField(max_length=20)
    queue = models.CharField(max_length=20)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.QUEUED, db_index=True)
    priority = models.PositiveSmallIntegerField(choices=Priority.choices, default=Priority.NORMAL)
    rank = models.BigIntegerField(default=last_rank)
    """Its place among those of the same priority, the lowest first. It is kept while the order runs or is paused."""
    start_at = models.DateTimeField(null=True)
    """Not before this moment."""
    at_night = models.BooleanField(default=False)
    """Only between the hours that its workspace calls night."""
    attempt = models.PositiveIntegerField(default=1)
    """The fencing number: a late worker's writes carry an old one and change nothing."""
    losses = models.PositiveIntegerField(default=0)
    """How many attempts ended because their worker was lost; an orderly stop of the server does not count."""
    phase = models.CharField(max_length=20, blank=True)
    phase_text = models.CharField(max_length=300, blank=True)
    done = models.FloatField(default=0)
    total = models.FloatField(default=0)
    unit = models.CharField(max_length=20, blank=True)
    latest = models.JSONField(default=dict)
    """The last value of every metric."""
    last_seq = models.PositiveIntegerField(default=0)
    result = models.JSONField(null=True)
    error = models.TextField(blank=True)
    stop_requested_at = models.DateTimeField(null=True)
    discard = models.BooleanField(default=False)
    """The stop throws away what was learnt."""
    pausing = models.BooleanField(default=False)
    """The stop is a pause: a state is saved, and the order can be resumed."""
    comes_back = models.CharField(max_length=200, blank=True)
    """Why the studio itself pauses it: a sentence. It then goes back into the queue by itself. Empty where a person did."""
    worked = models.FloatField(default=0)
    """Seconds of the attempts before this one."""
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    heartbeat_at = models.DateTimeField(null=True)
    worker = models.CharField(max_length=120, blank=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["workspace", "kind", "status"], name="orders_by_status"),
            models.Index(fields=["workspace", "kind", "-ended_at"], name="orders_lately"),
            models.Index(fields=["client", "created_at"], name="orders_of_a_client"),
            # Few among very many that are over: a database that knows them by their status alone takes them for a good part of all.
            models.Index(fields=["workspace", "client"], condition=models.Q(ended_at=None), name="orders_not_over"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"

    @property
    def is_live(self) -> bool:
        return self.status in self.LIVE

    @property
    def folder(self) -> Path:
        """The attempt's own folder: order.json, events.jsonl, log.txt."""
        return Path(settings.DATA_DIR, "orders", str(self.pk), f"attempt-{self.attempt}")

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """The states that all its attempts save, and the next one goes on from."""
        return self.folder.parent / "checkpoints"

    @property
    def saved_step(self) -> int | None:
        """The step that another attempt would go on from; None where it would have to start anew."""
        saved = states(self.checkpoints)
        return step_of(saved[-1]) if saved else None

    @property
    def can_resume(self) -> bool:
        return self.status == self.Status.PAUSED or (self.status == self.Status.FAILED and self.saved_step is not None)

    @property
    def seconds(self) -> float:
        """How long it has worked in all attempts, without the wait in the queue."""
        return self.worked + self.seconds_until(self.ended_at or timezone.now())

    def seconds_until(self, end: datetime | None) -> float:
        """How long this attempt had worked at a moment."""
        return max(0.0, (end - self.started_at).total_seconds()) if self.started_at and end else 0.0

    @property
    def share(self) -> float:
        """How far it is, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


class Event(models.Model):
    """What a worker reported, numbered per order without gaps."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField()
    at = models.DateTimeField()
    type = models.CharField(max_length=12)
    body = models.JSONField()

    class Meta:
        ordering = ["seq"]
        constraints = [models.UniqueConstraint(fields=["order", "seq"], name="event_seq_per_order")]

    def __str__(self) -> str:
        return f"{self.seq} {self.type}"

    def wire(self) -> dict[str, Any]:
        """The event as a browser, a socket and the API see it."""
        return {"seq": self.seq, "attempt": self.attempt, "at": self.at.isoformat(), "type": self.type, **self.body}


class Usage(Tenant):
    """What one attempt of an order took, for quotas and invoices. It outlives the order, so a month's bill never shrinks."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="usage")
    client = models.ForeignKey(Client, models.SET_NULL, null=True, related_name="usage")
    project = models.UUIDField(null=True)
    order = models.ForeignKey(Order, models.SET_NULL, null=True, related_name="usage")
    attempt = models.PositiveIntegerField()
    kind = models.CharField(max_length=20)
    """As the order's."""
    title = models.CharField(max_length=200, blank=True)
    """What people called it, for the invoice."""
    worker_kind = models.CharField(max_length=80)
    """The name of the GPU, or CPU."""
    gpus = models.PositiveSmallIntegerField(default=0)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()

    class Meta:
        ordering = ["-started_at"]
        constraints = [models.UniqueConstraint(fields=["order", "attempt"], name="usage_per_attempt")]
        indexes = [
            models.Index(fields=["workspace", "client", "ended_at"], name="usage_of_a_month"),
            models.Index(fields=["workspace", "ended_at"], name="usage_of_all_in_a_month"),
        ]

    def __str__(self) -> str:
        return self.title or self.kind

    @property
    def hours(self) -> float:
        """Of wall-clock time; GPU hours are this times `gpus`."""
        return (self.ended_at - self.started_at).total_seconds() / 3600


class StoredDay(Tenant):
    """How much was stored for a client on a day, and what storage cost then: what a month's bill adds up. It outlives the client."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="stored_days")
    client = models.ForeignKey(Client, models.SET_NULL, null=True, related_name="stored_days")
    day = models.DateField()
    """In the workspace's time zone."""
    size = models.BigIntegerField()
    """Bytes."""
    price = models.DecimalField(max_digits=10, decimal_places=4, null=True)
    """Of one GB for a month, as the workspace had set it."""

    class Meta:
        ordering = ["day"]
        constraints = [models.UniqueConstraint(fields=["client", "day"], name="one_stored_size_per_day")]

    def __str__(self) -> str:
        return f"{self.client or 'An erased client'} on {self.day}"


class Slot(models.Model):
    """A worker process that takes orders from one queue, as it last said of itself."""

    name = models.CharField(max_length=120, unique=True)
    queue = models.CharField(max_length=20)
    facts = models.JSONField(default=dict)
    """A training.HostFacts."""
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["queue", "name"]

    def __str__(self) -> str:
        return self.name

    @property
    def is_alive(self) -> bool:
        return (timezone.now() - self.seen_at).total_seconds() < 60
