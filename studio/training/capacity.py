"""Whether an adapter has room for what the rows say: their information in bits against what its parameters can hold."""

from pydantic import Field

from studio.training.config import LoraConfig
from studio.training.facts import DatasetFacts, Fact, ModelFacts
from studio.training.memory import lora_parameters, target_linears

BITS_A_PARAMETER = 2.0
"""Allen-Zhu and Li 2024, "Physics of Language Models: Part 3.3", on whole models; taken over to adapters by Schulman et al. 2025."""
BITS_A_TOKEN = 1.0
"""Assumed where nothing was measured; the order of a language model's loss on answers (Schulman et al. 2025)."""
RANKS = (8, 16, 32, 64, 128, 256)


class Capacity(Fact):
    """An adapter of one rank, held against the rows."""

    rank: int
    parameters: int
    """Of the adapter at that rank."""
    holds: float
    """Bits."""
    tokens: int
    """Those that carry a loss in the training rows, copies counted once."""
    bits_a_token: float
    measured: bool
    """Whether the bits of a token were measured with this base model, and not assumed."""
    needed: float
    """Bits that the rows hold."""
    enough: bool
    smallest: int | None = Field(description="The smallest usual rank with room for them; null where none has.")
    largest: int
    """The highest of the usual ranks that these layers bear."""


def capacity(
    config: LoraConfig, base: ModelFacts, data: DatasetFacts, *, bits_a_token: float | None = None, copies: float = 0.0
) -> Capacity | None:
    """`tokens · bits a token ≤ 2 · parameters` (Allen-Zhu and Li 2024; Schulman et al. 2025). None where no tokens were counted.

    `bits_a_token` is the base's measured surprise in bits: an upper bound, for chance that nothing could foresee is part of it.
    `copies` is the share of rows that repeat earlier ones, which hold nothing new.
    """
    found = target_linears(base, config.targets)
    if data.tokens is None or not found:
        return None
    tokens = round(data.tokens.supervised * data.train / max(1, data.rows) * (1 - copies))
    bits = BITS_A_TOKEN if bits_a_token is None else bits_a_token
    narrowest = min(min(linear.inputs, linear.outputs) for linear in found)
    ranks = [rank for rank in RANKS if rank <= narrowest] or [config.rank]
    needed = tokens * bits

    def held(rank: int) -> float:
        return BITS_A_PARAMETER * lora_parameters(config.model_copy(update={"rank": rank}), base)

    return Capacity(
        rank=config.rank,
        parameters=lora_parameters(config, base),
        holds=held(config.rank),
        tokens=tokens,
        bits_a_token=bits,
        measured=bits_a_token is not None,
        needed=needed,
        enough=held(config.rank) >= needed,
        smallest=next((rank for rank in ranks if held(rank) >= needed), None),
        largest=ranks[-1],
    )
