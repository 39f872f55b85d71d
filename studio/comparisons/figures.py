"""What a verdict is made of: each arm's figures with their intervals, and what they say together. How they are found is reckoning's."""

import math

from pydantic import BaseModel, ConfigDict, ValidationError

from studio.comparisons.models import Comparison
from studio.comparisons.statistics import Interval
from studio.comparisons.taken import Spread, Took

VERSION = 2
"""Of what is stored: a verdict of another one is not shown, and `renewing` finds it anew from what was measured."""
TRIED = "not_renewed"
"""Beside a stored verdict of another version: the version that it could not be found anew in."""


class Figure(BaseModel):
    """A figure with its 95 % interval over seeds and rows."""

    model_config = ConfigDict(extra="forbid")

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, interval: Interval | None) -> "Figure | None":
        """None where it could not be told. JSON has no infinity, so what is not finite is not told either."""
        if interval is None or not all(math.isfinite(each) for each in (interval.value, interval.low, interval.high)):
            return None
        return cls(value=interval.value, low=interval.low, high=interval.high)

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def is_above(self) -> bool:
        """Surely above 0."""
        return self.low > 0

    @property
    def is_below(self) -> bool:
        return self.high < 0


class ArmFigures(BaseModel):
    """One arm, as far as it was measured."""

    model_config = ConfigDict(extra="forbid")

    number: int
    name: str
    plugin: str
    base: str = ""
    """The name of its base model."""
    seeds: list[int] = []
    """Those that were measured."""
    best_seed: int | None = None
    """The one with the lowest loss."""
    missing: list[str] = []
    """What became of the other seeds: a sentence each."""
    stopped_early: int = 0
    """Of those, how many the comparison stopped for being worse."""
    quantization: str = ""
    """Of the base model while it was trained; empty where that was as it is measured."""
    loss: Figure | None = None
    """Nats per unit on the held-out rows; the lower, the better."""
    perplexity: Figure | None = None
    before: float | None = None
    """The loss of its untouched base model on the same rows."""
    gain: Figure | None = None
    """By how much training lowered it."""
    against: Figure | None = None
    """Its loss minus that of the arm that it is held against."""
    kept: Figure | None = None
    """Share of the reference's gain; None also where that would mean nothing."""
    best: float = 0.0
    """How likely it is the best of all arms."""
    forgetting: Figure | None = None
    """By how much the loss on the probe rows rose above its base model's."""
    drift: Figure | None = None
    """KL divergence from its base model on the probe rows, in nats per token."""
    overlap: Figure | None = None
    """Share of the words of its answers that stand verbatim, eight or more in a row, in training rows."""
    memorised: Figure | None = None
    """Share of the words with which it goes on as a training row does, once it is given that row's beginning."""
    scores: dict[str, Figure] = {}
    """By metric."""
    took: Took = Took()
    trainable: Spread | None = None
    trainable_share: float | None = None
    """Of the base model's parameters."""
    size: Spread | None = None
    """Bytes on disk."""
    gguf_size: Spread | None = None
    """Bytes of the whole model as a q8_0 GGUF file: about, until one was built."""
    gguf_built: bool = False
    """Whether that is the size of files that were built. It is looked up whenever a verdict is shown, and never stored."""
    gguf_adapter_size: Spread | None = None
    """Bytes of the adapter alone as an f16 GGUF file: about, until one was built."""
    gguf_adapter_built: bool = False
    built: dict[str, int] = {}
    """Bytes of the whole model in each other type that a file was built of."""
    first_token: Spread | None = None
    """Seconds."""
    tokens_per_second: Spread | None = None
    """Of the result, as it answers."""

    @property
    def is_measured(self) -> bool:
        return self.loss is not None


class Verdict(BaseModel):
    """What is stored with a comparison and shown on its page, in its report and by the API. It holds no cost."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    differs: str
    sentence: str = ""
    """What was found, in plain words."""
    sureness: str = "open"
    """sure, likely or open."""
    reason: str = "chance"
    """Why no more is sure: chance, one_seed, few_rows, no_gain, nothing; empty where it is sure."""
    sureness_words: str = ""
    advice: list[str] = []
    more: list[str] = []
    """What else was found: a sentence for each further arm, and what went wrong."""
    reference: int | None = None
    """The arm that the others are held against."""
    choice: int | None = None
    """The arm to take, where one can be named."""
    unit: str = "token"
    """What the loss is told for: token, or character where the arms read in different tokens."""
    seeds: int = 0
    """The fewest that an arm was measured with, without what a sweep stopped for being worse."""
    most_seeds: int = 0
    more_seeds: int | None = None
    """For each arm, to tell what is open; None where that is not known or would be very many."""
    rows: int = 0
    rows_of: int = 0
    """Held-out rows of which `rows` are a sample; 0 where all were measured."""
    probe_rows: int = 0
    own_probe: bool = False
    """Whether the general rows are the person's own choice."""
    left_out: int = 0
    prompts: int = 0
    arms: list[ArmFigures] = []

    @classmethod
    def of(cls, comparison: Comparison) -> "Verdict | None":
        """The one that is stored; None where there is none, or one that an older studio wrote."""
        if not comparison.verdict or comparison.verdict.get("version") != VERSION:
            return None
        try:
            return cls.model_validate(comparison.verdict)
        except ValidationError:
            return None

    @property
    def sentence_shown(self) -> str:
        """With signs that stay on the line of their figures."""
        return self.sentence.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")

    @property
    def measured(self) -> list[ArmFigures]:
        return [arm for arm in self.arms if arm.is_measured]

    @property
    def machines(self) -> list[str]:
        """All kinds of workers that the measured arms were trained on."""
        return sorted({machine for arm in self.measured for machine in arm.took.machines})

    @property
    def one_machine(self) -> bool:
        """Whether what the arms took can be held against each other."""
        return all(arm.took.compares_with(self.measured[0].took) for arm in self.measured)

    @property
    def mean_of(self) -> str:
        """3 seeds, or 2 to 3 seeds where arms differ in number."""
        fewest = min((len(arm.seeds) for arm in self.measured), default=self.seeds)
        most = max(fewest, self.most_seeds)
        return f"{fewest} to {most} seeds" if most > fewest else f"{most} seed{'' if most == 1 else 's'}"

    @property
    def held_out_words(self) -> str:
        """100 held-out rows, or 200 of 900 held-out rows where they are a sample."""
        of = f" of {self.rows_of:,}" if self.rows_of > self.rows else ""
        return f"{self.rows:,}{of} held-out row{'s' if of or self.rows != 1 else ''}"

    @property
    def probe_words(self) -> str:
        return f"{self.probe_rows:,} of the general rows you chose" if self.own_probe else f"{self.probe_rows:,} general rows"

    def arm(self, number: int | None) -> ArmFigures | None:
        return next((arm for arm in self.arms if arm.number == number), None)
