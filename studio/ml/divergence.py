"""How far a model's next words have moved from those of its base: KL(base || model), over the whole vocabulary."""

import torch

from studio.ml.loss import Head

PIECE = 1 << 22
"""Logits that exist at one time, of each side: 16 MB."""


@torch.no_grad()
def divergence(base: Head, base_hidden: torch.Tensor, own: Head, own_hidden: torch.Tensor) -> float:
    """The mean over the rows [N, hidden size] of sum over words of p_base · (log p_base - log p_own), in nats per token; never negative.

    Kullback and Leibler, "On Information and Sufficiency" (1951). In fp32, in pieces, so that no table of all tokens × vocabulary is kept.
    Words that only `own` knows, since it was given them, have no chance with the base and add nothing. Raises ValueError where `own` lacks
    words of the base, for then it is infinite.
    """
    total, count = 0.0, len(base_hidden)
    size = max(1, PIECE // words_of(base))
    for start in range(0, count, size):
        piece = slice(start, start + size)
        before = base.logits(base_hidden[piece]).log_softmax(dim=1)
        after = own.logits(own_hidden[piece]).log_softmax(dim=1)
        if after.shape[1] < before.shape[1]:
            raise ValueError("the model lacks words of its base")
        moved = before.exp() * (before - after[:, : before.shape[1]])
        total += float(moved.sum(dtype=torch.float64))
    return max(0.0, total / count)


def words_of(head: Head) -> int:
    weight = head.layer.weight
    assert isinstance(weight, torch.Tensor)  # every output layer has a matrix
    return len(weight)
