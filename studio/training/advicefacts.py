"""What the advisor reads beside base, rows and workers, and what it answers: the facts of an advice."""

from typing import Any, Literal, get_args

from pydantic import Field

from studio.training.capacity import Capacity
from studio.training.facts import Estimate, Fact, Span
from studio.training.rangetest import RateRange

Goal = Literal["task", "knowledge", "quality", "clients", "smallest"]
GOALS: dict[Goal, str] = {
    "task": "A client's style or task",
    "knowledge": "New knowledge or another language",
    "quality": "The last per cent of quality",
    "clients": "Many clients on one base",
    "smallest": "Smallest machine",
}
Verdict = Literal["fits", "tight", "no", "unknown"]
"""fits: the whole range; tight: its lower end alone, so that no run is started; unknown: nobody could say."""
SURPRISED = 5.0
"""Bits: a token that the base gave less than 1 in 32."""


class Surveyed(Fact):
    """What the base model made of the rows before it learnt anything. A worker says so, and is not believed: every figure has bounds."""

    rows: int = Field(ge=1, le=10_000)
    tokens: int = Field(ge=1, le=10_000_000)
    loss: float = Field(ge=0, le=100, allow_inf_nan=False)
    """Nats for each token that would carry a loss."""
    surprising: float = Field(ge=0, le=1)
    """Share of those tokens above SURPRISED bits."""
    probe_rows: int = Field(0, ge=0, le=10_000)
    probe_loss: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    """The same on general rows."""
    rates: dict[Literal["lora", "full"], RateRange | None] = {}
    """By method; None where the loss fell at none, and no entry where it was not tried."""
    seconds: float = Field(ge=0, le=100_000)

    @property
    def bits(self) -> float:
        """`nats / ln 2` (Shannon 1948)."""
        return self.loss / 0.6931471805599453


class Price(Fact):
    """What an hour of a worker costs."""

    per_hour: float
    """Of one GPU, or of a worker without any."""
    gpus: int = 1
    currency: str = ""

    def of(self, seconds: Span) -> Span:
        each = self.per_hour * max(1, self.gpus) / 3600
        return Span(low=seconds.low * each, high=seconds.high * each)


class Fit(Fact):
    """One method on one worker."""

    host: str
    verdict: Verdict
    why: str = ""
    """Why it does not fit, or is not known, in a sentence."""
    settings: dict[str, Any] = {}
    """What the form would be filled in with, where it is not the plugin's default."""
    estimate: Estimate | None = None
    cost: Span | None = None
    currency: str = ""


class OnGpu(Fact):
    """A common size of GPU memory, and whether the run would fit into it by the plugin's own estimate."""

    gib: int
    verdict: Verdict
    memory: int = 0
    """Bytes at most, by the estimate; 0 where there is none."""


class Method(Fact):
    """One method, with all that is known of it here."""

    name: str
    title: str
    plugin: str
    kind: Literal["lora", "full"]
    fits: list[Fit]
    trainable: int
    share: float
    """Of the base's parameters."""
    variant_size: int
    """Bytes of one client's result on the disk."""
    storage: int
    """Bytes for all clients, the base counted once where they share it."""
    gpus: list[OnGpu]
    capacity: Capacity | None = None
    """Of adapters alone."""
    settings: dict[str, Any]
    """What the form would be filled in with while no worker is known."""
    rank: int | None = None
    learning_rate: float
    rates: RateRange | None = None
    """What a range test found, where one was made."""
    quality: str = ""
    quality_sources: list[str] = []
    forgetting: str = ""
    forgetting_sources: list[str] = []

    @property
    def best(self) -> Fit | None:
        """On the worker that it fits best, the fastest first; None without any worker."""
        order = get_args(Verdict)
        return min(self.fits, key=lambda fit: (order.index(fit.verdict), fit.estimate.seconds.high if fit.estimate else 0.0), default=None)

    @property
    def proposed(self) -> dict[str, Any]:
        """What the form would be filled in with."""
        return self.best.settings if self.best else self.settings

    @property
    def verdict(self) -> Verdict:
        return self.best.verdict if self.best else "unknown"

    @property
    def smallest_gpu(self) -> int | None:
        return next((each.gib for each in self.gpus if each.verdict == "fits"), None)


class Reason(Fact):
    text: str
    sources: list[str] = []


class Recommendation(Fact):
    """Which method, in one sentence, and why."""

    method: str
    """Name of one of the methods; empty where none can be proposed."""
    sentence: str
    reasons: list[Reason]
    settings: dict[str, Any] = {}
    """What the form of a new run is filled in with."""


class Row(Fact):
    """One of the nine rows: what each method's cell says, by its name."""

    name: str
    title: str
    cells: dict[str, str]
    note: str = ""
    sources: list[str] = []


class Advice(Fact):
    """The whole answer."""

    goal: Goal
    clients: int
    base: str
    dataset: str
    base_size: int
    """Bytes of the base as it would be served."""
    hosts: list[str]
    """Workers, one of each kind."""
    left_out: list[str] = []
    """Workers that are here and were not to count."""
    methods: list[Method]
    recommendation: Recommendation
    rows: list[Row]
    unknown: list[str]
    sources: list[str]
    """Keys of `studio.training.literature`, of all that is said here."""

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name), None)
