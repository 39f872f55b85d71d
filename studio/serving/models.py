"""Named places that answer, what they were asked and what it took; and what people try in the playground."""

from typing import ClassVar

from django.conf import settings
from django.db import models

from studio.datasets.models import DatasetVersion
from studio.orders.models import Order
from studio.releases.models import Release
from studio.serving.fields import WrittenJSON
from studio.serving.steps import step_of
from studio.workspaces.models import ApiKey, Client, Project, Tenant, Workspace

LEFT = 499
"""The status of a call whose caller left before the end."""


class Deployment(Tenant):
    """A named slot of a client ("acme/support") that points at a release, and may try another on a share of the requests."""

    WORKSPACE, CLIENT, KEYS = "project__client__workspace", "project__client", "keys"

    project = models.ForeignKey(Project, models.CASCADE, related_name="deployments")
    client = models.ForeignKey(Client, models.CASCADE, related_name="deployments")
    """The project's, so that the name is unique."""
    slug = models.SlugField(max_length=60)
    release = models.ForeignKey(Release, models.PROTECT, null=True, related_name="deployments")
    """What answers; None before the first promotion."""
    canary = models.ForeignKey(Release, models.PROTECT, null=True, related_name="canaries")
    canary_percent = models.PositiveSmallIntegerField(default=0)
    """Share of the requests that the canary answers."""
    keys = models.ManyToManyField(ApiKey, related_name="deployments", blank=True)
    """Keys that are narrowed to deployments, and reach this one."""
    changed_at = models.DateTimeField(auto_now=True)
    created_at = models.DateTimeField(auto_now_add=True)
    archived_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["slug"]
        constraints = [models.UniqueConstraint(fields=["client", "slug"], name="deployment_slug_per_client")]

    def __str__(self) -> str:
        return f"{self.client.slug}/{self.slug}"

    @property
    def audit_client(self) -> Client:
        return self.client

    @property
    def main_percent(self) -> int:
        """Share of the requests that the release answers, where a canary is tried."""
        return 100 - self.canary_percent


class DeploymentState(Tenant):
    """One entry of a deployment's history: what it pointed at from then on, who changed it and why."""

    WORKSPACE, CLIENT = "deployment__client__workspace", "deployment__client"

    class Change(models.TextChoices):
        PROMOTE = "promote", "Promoted"
        CANARY = "canary", "Canary"
        ROLLBACK = "rollback", "Rolled back"
        CLEAR = "clear", "Cleared"

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="states")
    number = models.PositiveIntegerField()
    change = models.CharField(max_length=10, choices=Change.choices)
    release = models.ForeignKey(Release, models.PROTECT, null=True, related_name="states")
    canary = models.ForeignKey(Release, models.PROTECT, null=True, related_name="+")
    canary_percent = models.PositiveSmallIntegerField(default=0)
    back_to = models.ForeignKey("self", models.SET_NULL, null=True, related_name="+")
    """The state that a rollback brought back."""
    why = models.TextField(blank=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    key = models.CharField(max_length=80, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["deployment", "number"], name="state_number_per_deployment")]

    def __str__(self) -> str:
        return f"{self.deployment} {self.number}"


class Call(Tenant):
    """One request to the endpoint: what it took, and nothing of what was said."""

    WORKSPACE, CLIENT = "client__workspace", "client"

    class Route(models.TextChoices):
        CHAT = "chat", "Chat"
        COMPLETION = "completion", "Completion"
        EMBEDDING = "embedding", "Embedding"

    client = models.ForeignKey(Client, models.CASCADE, related_name="calls", db_index=False)
    deployment = models.ForeignKey(Deployment, models.SET_NULL, null=True, related_name="calls", db_index=False)
    """None where a release was asked by its own name."""
    release = models.ForeignKey(Release, models.SET_NULL, null=True, related_name="calls")
    key = models.ForeignKey(ApiKey, models.SET_NULL, null=True, related_name="calls")
    canary = models.BooleanField(default=False)
    """Whether the release was the deployment's canary then."""
    route = models.CharField(max_length=10, choices=Route.choices)
    streamed = models.BooleanField(default=False)
    at = models.DateTimeField(db_index=True)
    status = models.PositiveSmallIntegerField()
    """As HTTP has it; 499 where the caller left before the end."""
    error = models.CharField(max_length=40, blank=True)
    """The error's code in OpenAI's shape."""
    prompt_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    """Of the prompt's tokens, those that were still in memory."""
    completion_tokens = models.PositiveIntegerField(default=0)
    seconds = models.FloatField()
    """From the request to the end of the answer."""
    first = models.FloatField(null=True)
    """Seconds to the first token; None where there was none."""
    seconds_step = models.PositiveSmallIntegerField(null=True, editable=False)
    """Of `studio.serving.steps`, so that a database can count them; None where the call failed, for that says nothing of the model."""
    first_step = models.PositiveSmallIntegerField(null=True, editable=False)
    counted_at = models.DateTimeField(null=True, editable=False)
    """When its hour took it. One moment for all that were taken together; reads add what none has taken yet."""

    class Meta:
        ordering = ["-at"]
        # Both of the last hour and of what no hour has taken, or SQLite looks through every call of a deployment for the few that count.
        indexes = [
            models.Index(fields=["counted_at", "at"]),
            models.Index(fields=["client", "at"]),
            models.Index(fields=["client", "counted_at", "at"]),
            models.Index(fields=["deployment", "at"]),
            models.Index(fields=["deployment", "counted_at", "at"]),
        ]

    def __str__(self) -> str:
        return f"Call at {self.at:%Y-%m-%d %H:%M:%S}"

    def find_steps(self) -> None:
        answered = self.status < 400
        self.seconds_step = step_of(self.seconds) if answered else None
        self.first_step = step_of(self.first) if answered and self.first is not None else None


PLAIN = ("calls", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds_sum", "first_sum")
"""Columns of what is added up that are plain sums."""


class Figures(Tenant):
    """Calls, added up."""

    WORKSPACE = "workspace"
    BY: ClassVar[tuple[str, ...]] = ("client_id",)
    """What they are added up by, beside the time."""

    calls = models.PositiveBigIntegerField(default=0)
    errors = models.PositiveBigIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    outcomes = WrittenJSON(default=dict)
    """`{"200": 40, "429 rate_limit_exceeded": 2}`: how many calls had each outcome."""
    seconds = WrittenJSON(default=list)
    """How many answered calls lasted as long as each step of `studio.serving.steps`."""
    first = WrittenJSON(default=list)
    """The same for the time to the first token."""
    seconds_sum = models.FloatField(default=0)
    """Of the answered calls."""
    first_sum = models.FloatField(default=0)

    class Meta:
        abstract = True


class AddedUp(Figures):
    """Calls to one release, added up."""

    WORKSPACE = "workspace"
    BY = ("client_id", "deployment_id", "release_id", "canary")

    deployment = models.ForeignKey(Deployment, models.SET_NULL, null=True, related_name="%(class)ss")
    release = models.ForeignKey(Release, models.SET_NULL, null=True, related_name="%(class)ss")
    canary = models.BooleanField(default=False)

    class Meta:
        abstract = True


class CallHour(AddedUp):
    """The calls of one hour to one release. It outlives them, and its client, for the invoices of past months."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="call_hours")
    client = models.ForeignKey(Client, models.SET_NULL, null=True, related_name="call_hours")
    """None where it was erased."""
    hour = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-hour"]
        constraints = [models.UniqueConstraint(fields=["client", "deployment", "release", "canary", "hour"], name="calls_of_an_hour")]
        indexes = [
            models.Index(
                fields=["workspace", "hour", "client", "deployment", *PLAIN], name="sums_of_hours"
            ),  # nothing else is read for a list
            models.Index(fields=["client", "hour"]),
            models.Index(fields=["workspace", "deployment", "hour"], name="hours_of_deployments"),
            models.Index(fields=["workspace", "hour", "client", *PLAIN], condition=models.Q(client=None), name="hours_of_erased_clients"),
        ]

    def __str__(self) -> str:
        return f"Calls of {self.hour:%Y-%m-%d %H}:00"


class CallDay(AddedUp):
    """The hours of one day, from midnight UTC, so that a month of thousands of deployments is quick to read. It goes with its client."""

    WORKSPACE, CLIENT = "workspace", "client"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="call_days")
    client = models.ForeignKey(Client, models.CASCADE, related_name="call_days")
    day = models.DateTimeField()

    class Meta:
        ordering = ["-day"]
        constraints = [models.UniqueConstraint(fields=["client", "deployment", "release", "canary", "day"], name="calls_of_a_day")]
        indexes = [
            models.Index(fields=["workspace", "day", "client", "deployment", *PLAIN], name="sums_of_days"),
            models.Index(fields=["workspace", "deployment", "day"], name="days_of_deployments"),
        ]

    def __str__(self) -> str:
        return f"Calls of {self.day:%Y-%m-%d}"


class ClientHour(Figures):
    """The calls of one hour to everything of a client: there may be many times as many deployments as clients. It goes with its client."""

    WORKSPACE, CLIENT = "workspace", "client"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="client_hours")
    client = models.ForeignKey(Client, models.CASCADE, related_name="client_hours")
    hour = models.DateTimeField()

    class Meta:
        ordering = ["-hour"]
        constraints = [models.UniqueConstraint(fields=["client", "hour"], name="hours_of_a_client")]
        indexes = [models.Index(fields=["workspace", "hour", "client", *PLAIN], name="sums_of_clients_hours")]

    def __str__(self) -> str:
        return f"Calls of {self.hour:%Y-%m-%d %H}:00"


class ClientDay(Figures):
    """The same of one day, from midnight UTC."""

    WORKSPACE, CLIENT = "workspace", "client"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="client_days")
    client = models.ForeignKey(Client, models.CASCADE, related_name="client_days")
    day = models.DateTimeField()

    class Meta:
        ordering = ["-day"]
        constraints = [models.UniqueConstraint(fields=["client", "day"], name="days_of_a_client")]
        indexes = [models.Index(fields=["workspace", "day", "client", *PLAIN], name="sums_of_clients_days")]

    def __str__(self) -> str:
        return f"Calls of {self.day:%Y-%m-%d}"


class CallTotal(AddedUp):
    """All hours of one release so far, so that counters which never fall need not add up years."""

    WORKSPACE, CLIENT = "workspace", "client"

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="call_totals")
    client = models.ForeignKey(Client, models.CASCADE, related_name="call_totals")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["client", "deployment", "release", "canary"], name="calls_in_all")]

    def __str__(self) -> str:
        return f"{self.calls} calls"


class Keeping(Tenant):
    """A project's word that the texts of its endpoint's requests and answers are kept, and for how long. Without one nothing is."""

    WORKSPACE, CLIENT = "project__client__workspace", "project__client"

    project = models.OneToOneField(Project, models.CASCADE, related_name="keeping")
    days = models.PositiveSmallIntegerField()
    changed_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.days} days"

    @property
    def audit_client(self) -> Client:
        return self.project.client


class KeptAnswer(Tenant):
    """What a deployment was asked and what it answered, with what people think of it, until its time is over."""

    WORKSPACE, CLIENT, KEYS = "project__client__workspace", "project__client", "key"

    project = models.ForeignKey(Project, models.CASCADE, related_name="kept_answers")
    deployment = models.ForeignKey(Deployment, models.SET_NULL, null=True, related_name="kept_answers")
    release = models.ForeignKey(Release, models.SET_NULL, null=True, related_name="kept_answers")
    key = models.ForeignKey(ApiKey, models.SET_NULL, null=True, related_name="+")
    at = models.DateTimeField(db_index=True)
    until = models.DateTimeField(db_index=True)
    """When it is deleted."""
    messages = models.JSONField()
    """The conversation as it was sent, in OpenAI's shape, without what the release puts before it."""
    answer = models.JSONField()
    """The message that came of it."""
    question = models.CharField(max_length=300, blank=True)
    """How what was last asked begins, for lists: a conversation may be a megabyte."""
    beginning = models.CharField(max_length=300, blank=True)
    """How the answer begins."""
    words = models.TextField(blank=True)
    """Every word of both, once, for the index that searches go by (`studio.serving.words`)."""
    thumb = models.SmallIntegerField(default=0)
    """1 good, -1 bad, 0 nobody has said."""
    correction = models.TextField(blank=True)
    """What it should have answered."""
    judged_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    judged_at = models.DateTimeField(null=True)
    dataset_version = models.ForeignKey(DatasetVersion, models.SET_NULL, null=True, related_name="+")
    """To whose rows somebody's draft adds it."""

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["project", "at"]), models.Index(fields=["project", "thumb", "at"])]

    def __str__(self) -> str:
        return f"Answer of {self.at:%Y-%m-%d %H:%M}"

    @property
    def audit_client(self) -> Client:
        return self.project.client


class PromptSet(Tenant):
    """Questions that are asked together, again and again."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="prompt_sets")
    client = models.ForeignKey(Client, models.CASCADE, null=True, related_name="prompt_sets")
    """None where everybody in the workspace may use it for every client."""
    name = models.CharField(max_length=80)
    prompts = models.JSONField()
    """`[{"turns": [text, ...], "category": text}, ...]`: each one conversation, question by question."""
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name", "created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client | None:
        return self.client

    @property
    def questions(self) -> int:
        """All turns of all prompts."""
        return sum(len(prompt["turns"]) for prompt in self.prompts)


class Trial(Tenant):
    """A whole prompt set asked of several models, and the table of what they answered."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="trials")
    client = models.ForeignKey(Client, models.CASCADE, null=True, related_name="trials")
    """Whose models are among the columns; None where there are base models alone."""
    order = models.ForeignKey(Order, models.PROTECT, related_name="trials")
    name = models.CharField(max_length=80)
    """The prompt set's, as it was then."""
    prompt_set = models.UUIDField(null=True, db_index=True)
    """The set's id, by which its trials know each other; it stays when the set goes."""
    prompts = models.JSONField()
    """As the prompt set had them."""
    columns = models.JSONField()
    """`[{"target": "release:<id>", "title": text, "note": text, "method": "base" | "lora" | "full"}, ...]`; a trial's deployment has also
    "release": the id of the one that answered there then."""
    asked_with = models.JSONField()
    """`{"system", "temperature", "top_p", "max_tokens", "seed"}`: what each column was asked with."""
    answers = models.JSONField(null=True)
    """`[[{"turns": [{"text", "tokens", "seconds", "first", "error"}, ...]} for each column] for each prompt]`; None until it has ended."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.name

    @property
    def audit_client(self) -> Client | None:
        return self.client

    @property
    def questions(self) -> int:
        """All turns of all prompts."""
        return sum(len(prompt["turns"]) for prompt in self.prompts)


class Talk(Tenant):
    """A conversation of the playground that somebody shared: a link within the workspace shows it as it was."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="talks")
    client = models.ForeignKey(Client, models.CASCADE, null=True, related_name="talks")
    columns = models.JSONField()
    """As a trial's."""
    asked_with = models.JSONField()
    """As a trial's."""
    turns = models.JSONField()
    """`[{"prompt": text, "answers": [{"text", "tokens", "seconds", "first"} for each column]}, ...]`"""
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Conversation of {self.created_at:%Y-%m-%d %H:%M}"  # what was said stays out of audit records

    @property
    def title(self) -> str:
        """Its first question, cut short."""
        return str(self.turns[0]["prompt"])[:80]

    @property
    def audit_client(self) -> Client | None:
        return self.client


class Vote(Tenant):
    """Which of several answers to one question somebody found best, without knowing whose they were where `blind`."""

    WORKSPACE, CLIENT, SHARED = "workspace", "client", True

    workspace = models.ForeignKey(Workspace, models.CASCADE, related_name="votes")
    client = models.ForeignKey(Client, models.CASCADE, null=True, related_name="votes")
    columns = models.JSONField()
    """As a trial's, in the order in which they were shown."""
    prompt = models.TextField()
    answers = models.JSONField()
    """One text for each column."""
    best = models.PositiveSmallIntegerField(null=True)
    """The column; None where they are equally good, or bad."""
    blind = models.BooleanField()
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"Vote of {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def audit_client(self) -> Client | None:
        return self.client
