"""Attention in which documents that lie one after another in a row do not see each other. No padding, no dense mask.

A flattened batch is one row of T tokens that holds several documents. A dense block mask would cost T² on every layer; a
loop over the documents costs the sum of their squares, and it is the only such form that has a fast backward on a CPU.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "documents"
"""What a model is loaded with to use it: `attn_implementation=NAME`."""

Spans = list[tuple[int, int]]
"""Where each document begins and ends in the row: `[(0, 12), (12, 40)]`."""


def register() -> str:
    """Makes the attention known to transformers and returns its name."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, no_mask)
    return NAME


def no_mask(*_: Any, **__: Any) -> None:
    """The documents' spans say everything that a mask would."""


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    documents: Spans | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    `query` is [1, heads, T, size]; `key` and `value` may have fewer heads (grouped queries). Returns [1, T, heads, size].
    Without `documents` the row is one document, or its next token where keys come from a cache.
    """
    spans = documents or [(0, query.shape[2])]
    if documents is None and query.shape[2] != key.shape[2]:
        return _attend(query, key, value, causal=False, window=None, scaling=scaling, dropout=dropout).transpose(1, 2).contiguous(), None
    parts = [
        _attend(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            causal=True,
            window=sliding_window,
            scaling=scaling,
            dropout=dropout,
        )
        for start, end in spans
    ]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return joined.transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if causal and window is not None and length > window:
        distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
        mask = (distance >= 0) & (distance < window)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal and mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
