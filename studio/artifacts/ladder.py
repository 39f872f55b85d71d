"""The files of one source beside each other, from the largest to the smallest, and the one to take with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from studio.artifacts.models import Artifact, Build
from studio.artifacts.quantizations import QUANTIZATIONS
from studio.basemodels.models import BaseModel
from studio.training import ModelFacts
from studio.workspaces.models import Member

CONTEXT = 4096
"""Tokens of a conversation that a file is to have room for."""
BATCH = 512
"""Tokens that llama.cpp reads at once by default (n_ubatch); it keeps room for the logits of each."""
PROGRAM = 96 << 20
"""Bytes that llama.cpp takes whatever the model: itself, its buffers, the vocabulary."""
MOST_KL = 0.05
"""Nats per token, on average, up to which a difference is hard to notice."""
MOST_PERPLEXITY = 1.01
"""The reference's perplexity times this is as good as the reference's."""


@dataclass(frozen=True)
class Device:
    name: str
    memory: int
    """Bytes that a model may take there, after the system and other programs."""


DEVICES = (
    Device("a phone with 6 GB", 3 * 10**9),  # a phone ends a program that takes more than about half
    Device("a phone with 8 GB", 4 * 10**9),
    Device("a laptop with 8 GB", 5 * 10**9),
    Device("a GPU with 8 GB", 7_300_000_000),
    Device("a laptop with 16 GB", 12 * 10**9),
    Device("a GPU with 16 GB", 15 * 10**9),
    Device("a GPU with 24 GB", 22_500_000_000),
    Device("a laptop with 32 GB", 26 * 10**9),
    Device("a GPU with 48 GB", 45 * 10**9),
    Device("a server with 128 GB", 115 * 10**9),
)
"""From the smallest to the largest."""


@dataclass(frozen=True)
class Rung:
    """One file that passed its proof, with what it costs and what it loses."""

    build: Build
    size: int
    """Bytes of the file."""
    bits: float
    """Bits per weight, about."""
    mean_kl: float | None
    """Nats per token from the merged model, on average."""
    max_kl: float | None
    perplexity: float | None
    perplexity_reference: float | None
    """Of the merged model on the same tokens."""
    top1: float | None
    """Share of tokens of which the likeliest next one is the same."""
    tokens_per_second: float | None
    """Writing, on this machine."""
    memory: int
    """Bytes that it needs to run, with a conversation of CONTEXT tokens."""
    devices: list[str]
    """Where it has room, the smallest first."""
    plain: dict[str, Any] | None = None
    """mean_kl, perplexity and size of the same type without measured importance, where that was compared."""
    wins: float | None = None
    """Share of blind ratings that it won; None where nobody rated."""
    recommended: bool = False
    reason: str = ""
    """Why it is the one to take, as a sentence; of the recommended one alone."""

    @property
    def quantization(self) -> str:
        return self.build.quantization

    @property
    def importance(self) -> bool:
        return self.build.importance

    @property
    def surprise(self) -> float | None:
        """How much higher its perplexity is than the reference's, 0.01 for one per cent."""
        return self.perplexity / self.perplexity_reference - 1 if self.perplexity and self.perplexity_reference else None

    @property
    def is_close(self) -> bool:
        """True where its answers are hard to tell from the original's."""
        if self.mean_kl is None or self.mean_kl > MOST_KL:
            return False
        return self.surprise is None or self.surprise <= MOST_PERPLEXITY - 1


def rungs(member: Member, made_from: Artifact | BaseModel) -> list[Rung]:
    """The GGUF files of one source that passed and that the member may see, the largest first; one of them is recommended."""
    builds = Build.objects.for_action(member, "build.view").filter(kind=Build.Kind.GGUF, artifact__isnull=False)
    by = {"source": made_from} if isinstance(made_from, Artifact) else {"base_model": made_from, "source": None}
    base = made_from.base_model if isinstance(made_from, Artifact) else made_from
    newest: dict[tuple[str, bool], Build] = {}
    found = builds.filter(**by).select_related("artifact", "order", "source", "base_model", "project__client")
    for build in found.order_by("created_at"):
        if build.passed:
            newest[build.quantization, build.importance] = build
    facts = base.model_facts if base and base.is_ready else None
    return recommend([rung(build, facts) for build in newest.values()])


def rung(build: Build, facts: ModelFacts | None) -> Rung:
    """One step, from the proof of a build that has a file."""
    proof, size = build.verification or {}, weights_size(build)
    memory = memory_needed(size, facts)
    return Rung(
        build=build,
        size=size,
        bits=QUANTIZATIONS[build.quantization].bits,
        mean_kl=_number(proof, "mean_kl"),
        max_kl=_number(proof, "max_kl"),
        perplexity=_number(proof, "perplexity"),
        perplexity_reference=_number(proof, "perplexity_reference"),
        top1=_number(proof, "top1"),
        tokens_per_second=_number(proof, "tokens_per_second"),
        memory=memory,
        devices=[device.name for device in DEVICES if device.memory >= memory],
        plain=proof["plain"] if isinstance(proof.get("plain"), dict) else None,
    )


def weights_size(build: Build) -> int:
    """Bytes of the GGUF itself, without what lies beside it."""
    assert build.artifact is not None  # asked of builds with a file
    return sum(int(facts["size"]) for name, facts in build.artifact.files.items() if name.endswith(".gguf"))


def memory_needed(size: int, facts: ModelFacts | None) -> int:
    """Bytes: the file, keys and values of CONTEXT tokens in f16, and llama.cpp's buffers.

    llama.cpp reserves its graph for one batch in which every token has logits (src/llama-context.cpp), in float32.
    """
    if facts is None:
        return size + PROGRAM
    cache = 2 * 2 * facts.layers * facts.kv_heads * facts.head_size * CONTEXT
    return size + cache + 4 * BATCH * (facts.vocabulary + facts.hidden_size) + PROGRAM


def recommend(steps: Sequence[Rung]) -> list[Rung]:
    """The steps from the largest to the smallest, one of them marked as the one to take."""
    steps = sorted(steps, key=lambda step: (-step.size, step.importance))
    measured = [step for step in steps if step.mean_kl is not None]
    close = [step for step in measured if step.is_close]
    if close:
        chosen = min(close, key=lambda step: (step.size, step.mean_kl or 0.0))
        reason = _close_reason(chosen, alone=len(steps) == 1, is_smallest=chosen.size == min(step.size for step in steps))
    elif measured:
        chosen = min(measured, key=lambda step: (step.mean_kl or 0.0, step.size))
        reason = f"None stays within {MOST_KL:g} nats of the original and 1 % of its perplexity. This one loses the least: {_loss(chosen)}."
    else:
        return steps
    return [replace(step, recommended=True, reason=reason) if step is chosen else step for step in steps]


def _close_reason(chosen: Rung, *, alone: bool, is_smallest: bool) -> str:
    if alone:
        return f"Its answers are hard to tell from the original's: {_loss(chosen)}."
    smaller = "" if is_smallest else " Smaller ones lose more."
    return f"The smallest file whose answers are hard to tell from the original's: {_loss(chosen)}.{smaller}"


def _loss(step: Rung) -> str:
    """What it loses, in figures."""
    difference = f"{step.mean_kl:.2g} nats per token apart"
    if step.surprise is None:
        return difference
    if abs(step.surprise) < 0.0005:
        return f"{difference}, and the same perplexity"
    return f"{difference}, and a perplexity {abs(step.surprise):.1%} {'higher' if step.surprise > 0 else 'lower'}"


def _number(proof: dict[str, Any], key: str) -> float | None:
    value = proof.get(key)
    return float(value) if isinstance(value, int | float) else None
