"""Attention in which documents that lie one after another in a row do not see each other. No padding, no dense mask.

A flattened batch is one row of T tokens that holds several documents. A dense block mask would cost T² on every layer; a
loop over the documents costs the sum of their squares, and it is the only such form that has a backward on a CPU.

There, in bf16, torch's own backward takes two to three times as long as its forward. `DocumentsOnCpu` has one of large products.
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
    query, key, value = (autocast(tensor) for tensor in (query, key, value))
    longest = max(end - start for start, end in spans)
    if dropout == 0.0 and (sliding_window is None or longest <= sliding_window) and DocumentsOnCpu.takes(query, key, value):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return DocumentsOnCpu.apply(query, key, value, spans, scale), None  # type: ignore[no-untyped-call]
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


def autocast(tensor: torch.Tensor) -> torch.Tensor:
    """In the format that autocast would choose for each piece of it; the tensor itself where there is no autocast."""
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


BLOCK = 128
"""Rows of scores that the backward pass makes at a time: most of what lies above the diagonal is left out, the rest stays in the cache."""


class DocumentsOnCpu(torch.autograd.Function):
    """Causal attention within each document in bf16: torch's forward, and a backward of a few large products.

    With P = exp(scale·QKᵀ - lse), the forward's own normaliser, and D = rowsum(dO∘O) (Dao et al. 2022, algorithm 4):

        dV = Pᵀ dO        dS = P ∘ (dO Vᵀ - D)        dQ = scale · dS K        dK = scale · dSᵀ Q

    lse and D are subtracted within the products, as two further columns of Q and dO against a -1 in K and V: the sum is then made
    in fp32 and rounded once, where it is small for all that counts. Heads that share a key go through its product together.
    """

    @staticmethod
    def takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """True where a gradient is wanted and the kernel knows such tensors."""
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        known = query.device.type == "cpu" and query.dtype is torch.bfloat16 and len(query) == 1
        return wanted and known and query.shape[2:] == key.shape[2:] == value.shape[2:]

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float) -> torch.Tensor:
        """`query` [1, heads, T, size], `key` and `value` [1, fewer heads or as many, T, size]; returns [1, T, heads, size]."""
        _, heads, length, size = query.shape
        out, normalisers = query.new_empty(1, length, heads, size), torch.empty(1, heads, length)
        for start, end in spans:
            parts = (tensor[:, :, start:end] for tensor in (query, key, value))
            attended, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, True, scale=scale)
            out[:, start:end], normalisers[:, :, start:end] = attended.transpose(1, 2), normaliser
        ctx.save_for_backward(query, key, value, out, normalisers)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (outer,) = grads
        query, key, value, out, normalisers = ctx.saved_tensors
        products = (outer.float() * out).sum(dim=-1).transpose(1, 2)
        by_head = outer.transpose(1, 2)
        found = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for start, end in ctx.spans:
            query_, key_, value_, outer_, normaliser, product, *into = (
                tensor[0, :, start:end] for tensor in (query, key, value, by_head, normalisers, products, *found)
            )
            _document_gradients(query_, key_, value_, outer_, normaliser, product, scale=ctx.scale, into=into)
        return (*found, None, None)


def _document_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    outer: torch.Tensor,
    normaliser: torch.Tensor,
    product: torch.Tensor,
    *,
    scale: float,
    into: list[torch.Tensor],
) -> None:
    """Writes the gradients of one document's query [heads, n, size], key and value [groups, n, size] into tensors of their shapes."""
    heads, length, size = query.shape
    groups = len(key)
    shared = (groups, heads // groups, length, size + 2)
    minus = key.new_full((groups, length, 2), -1)
    queries = torch.cat([query, _two_halves(normaliser / scale)], dim=-1).view(shared)
    outers = torch.cat([outer, _two_halves(product)], dim=-1).view(shared)
    keys, values = torch.cat([key, minus], dim=-1).mT, torch.cat([value, minus], dim=-1).mT
    grad_query, grad_key, grad_value = into
    sum_key, sum_value = torch.zeros(2, groups, length, size).unbind()
    nothing = query.new_empty(())
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        rows, grads_of_rows = (tensor[:, :, start:end].reshape(groups, -1, size + 2) for tensor in (queries, outers))
        shares = torch.baddbmm(nothing, rows, keys[:, :, :end], beta=0, alpha=scale).exp_()
        shares.view(heads, end - start, end).tril_(start)
        slopes = torch.bmm(grads_of_rows, values[:, :, :end]).mul_(shares)
        grad_query[:, start:end] = torch.bmm(slopes, key[:, :end]).view(heads, end - start, size).mul_(scale)
        sum_key[:, :end] += torch.bmm(slopes.mT, rows[..., :size])
        sum_value[:, :end] += torch.bmm(shares.mT, grads_of_rows[..., :size])
    grad_key.copy_(sum_key.mul_(scale))
    grad_value.copy_(sum_value)


def _two_halves(numbers: torch.Tensor) -> torch.Tensor:
    """fp32 [...] as bf16 [..., 2] whose sum it is to 16 binary digits."""
    upper = numbers.to(torch.bfloat16)
    return torch.stack([upper, (numbers - upper).to(torch.bfloat16)], dim=-1)
