"""Adapters that are taken out of a fully trained model: what a rank is called, and how large its adapter becomes. No torch."""

from studio.training.facts import Linear, ModelFacts
from studio.training.memory import ALL_LINEAR, target_linears

FULL = 0
"""In place of a rank: the shorter side of each layer."""
LARGEST = 4096
BYTES = 4
"""For each number: float32, as what is trained."""


def folder_of(rank: int) -> str:
    return "rank-full" if rank == FULL else f"rank-{rank}"


def called(rank: int) -> str:
    return "full rank" if rank == FULL else f"rank {rank}"


def in_order(ranks: list[int]) -> list[int]:
    """Each once, from the smallest; the full one last."""
    return sorted(set(ranks), key=lambda rank: (rank == FULL, rank))


def linears(base: ModelFacts) -> list[Linear]:
    return target_linears(base, [ALL_LINEAR])


def highest_rank(base: ModelFacts) -> int:
    """The shorter side of the largest layer: from there on a rank is the full one. 0 where there are no such layers."""
    return max((min(linear.inputs, linear.outputs) for linear in linears(base)), default=0)


def expected_size(base: ModelFacts, rank: int, *, tables: bool = False) -> int:
    """Bytes of the adapter, where every layer changed: A [rank, inputs] and B [outputs, rank] of each, and the tables in two bytes."""
    numbers = 0
    for linear in linears(base):
        most = min(linear.inputs, linear.outputs)
        numbers += linear.count * (most if rank == FULL else min(rank, most)) * (linear.inputs + linear.outputs)
    return numbers * BYTES + (2 * 2 * base.vocabulary * base.hidden_size if tables else 0)
