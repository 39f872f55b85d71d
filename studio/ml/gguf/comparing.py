"""How far two models' next words are from each other, token by token: KL divergence, perplexity, the likeliest word."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.ml.gguf.limits import ANSWER_TOKENS
from studio.ml.gguf.weights import Array

UNDECIDED = 0.2
"""Two words whose logits lie closer than this in the reference may change places; f16 moves logits by up to 0.11."""
AT_ONCE = 32
"""Tokens that are compared at a time, in float64."""

Precise = npt.NDArray[np.float64]


@dataclass
class Comparison:
    """One file's next words beside the reference's."""

    divergences: list[Precise] = field(default_factory=list)
    losses: list[Precise] = field(default_factory=list)
    reference_losses: list[Precise] = field(default_factory=list)
    likeliest: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    equal: int = 0
    undecided: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """KL is KL(reference || file) in nats per token; both perplexities are over the same tokens. None is what is no number."""
        divergence = np.concatenate(self.divergences)
        with np.errstate(over="ignore"):
            return {
                "tokens": len(divergence),
                "mean_kl": finite(np.maximum(divergence.mean(), 0.0)),
                "max_kl": finite(np.maximum(divergence.max(), 0.0)),
                "perplexity": finite(np.exp(np.concatenate(self.losses).mean())),
                "perplexity_reference": finite(np.exp(np.concatenate(self.reference_losses).mean())),
                "top1": finite(np.concatenate(self.likeliest).mean()),
            }


def compare(reference: Array, ids: list[int], others: Sequence[tuple[Comparison, Array]]) -> None:
    """Adds one sequence to each comparison. Logits have the shape (tokens, vocabulary); words that only one side knows are left out."""
    for start in range(0, len(ids), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        ours = log_probabilities(reference[rows])
        following = np.array(ids[start + 1 : start + 1 + AT_ONCE], np.int64)
        for comparison, logits in others:
            with np.errstate(invalid="ignore", over="ignore"):
                _add(comparison, ours, log_probabilities(logits[rows]), following)


def _add(comparison: Comparison, ours: Precise, theirs: Precise, following: npt.NDArray[np.int64]) -> None:
    known = min(ours.shape[1], theirs.shape[1])
    ours, theirs = ours[:, :known], theirs[:, :known]
    places = np.arange(len(following)), np.minimum(following, known - 1)
    comparison.divergences.append((np.exp(ours) * (ours - theirs)).sum(axis=1))
    comparison.losses.append(-theirs[places])
    comparison.reference_losses.append(-ours[places])
    comparison.likeliest.append(ours.argmax(axis=1) == theirs.argmax(axis=1))


def log_probabilities(logits: Array) -> Precise:
    """log softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: Precise = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def judge(comparison: Comparison, reference: Array, answer: list[int], ends: list[int]) -> None:
    """Counts a greedy answer: the one that the reference gives, or one that leaves it where it was itself undecided, or neither.

    `reference` holds its logits before each token of the answer, shape (tokens of the answer, vocabulary); so the place where the two
    part is seen without asking the reference to write. An answer ends at the first of `ends`, or after ANSWER_TOKENS.
    """
    for place, number in enumerate(answer):
        best = int(reference[place].argmax())
        if number != best:
            close = number < reference.shape[1] and reference[place][best] - reference[place][number] < UNDECIDED
            comparison.undecided += bool(close)
            return
        if number in ends:
            comparison.equal += place == len(answer) - 1
            return
    comparison.equal += len(answer) == ANSWER_TOKENS


def finite(value: np.floating[Any]) -> float | None:
    """JSON has no NaN: None stands for a figure that is no number."""
    return float(value) if np.isfinite(value) else None
