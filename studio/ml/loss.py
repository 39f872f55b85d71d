"""The loss on supervised tokens only, in pieces, so that no table of tokens × vocabulary is ever kept.

With vocabularies of 49k to 262k the logits, not the model, are the largest tensor of a small model's step. The gradient of
a cross-entropy is known as soon as its logits are, so each piece makes it at once and forgets the logits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

CHUNK = 512
"""Rows of logits that exist at one time."""


@dataclass(frozen=True)
class Head:
    """How a model turns a hidden state into logits: `cap(scale * weight @ hidden)`."""

    layer: torch.nn.Module
    scale: float = 1.0
    softcap: float = 0.0
    """Gemma's soft limit c: logits become c·tanh(logits / c). 0 is none."""

    @property
    def plain(self) -> bool:
        """True where the layer is one matrix and nothing else, such as an adapter, has been put around it."""
        return type(self.layer) is torch.nn.Linear and self.layer.bias is None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, vocabulary] in fp32 for [N, hidden]."""
        logits: torch.Tensor = self.layer(hidden).float() * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def head_of(model: Any) -> Head:
    """The head of a transformers causal model. Granite divides its logits, Cohere multiplies them, Gemma caps them."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer=model.get_output_embeddings(), scale=scale, softcap=float(getattr(config, "final_logit_softcapping", None) or 0.0))


def summed_loss(head: Head, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of the cross-entropies of `targets` [N] under `hidden` [N, hidden size], times `weights` [N] where given: a scalar in fp32.

    Divide it by the number of targets (or the sum of weights) in the whole effective batch: that is the exact mean per token,
    whatever way the rows were spread over batches.
    """
    if head.plain and head.softcap == 0.0:
        loss: torch.Tensor = ChunkedLoss.apply(hidden, head.layer.weight, targets, weights, head.scale)  # type: ignore[no-untyped-call]
        return loss
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), CHUNK):
        piece = slice(start, start + CHUNK)
        each = cross_entropy(head.logits(hidden[piece]), targets[piece], reduction="none")
        total = total + (each if weights is None else each * weights[piece]).sum()
    return total


def token_losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each target, fp32 [N], with gradients: for a loss that is a function of many tokens at once."""
    if head.plain and head.softcap == 0.0:
        losses: torch.Tensor = TokenLosses.apply(hidden, head.layer.weight, targets, head.scale)  # type: ignore[no-untyped-call]
        return losses
    pieces = [
        cross_entropy(head.logits(hidden[start : start + CHUNK]), targets[start : start + CHUNK], reduction="none")
        for start in range(0, len(targets), CHUNK)
    ]
    return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


class TokenLosses(torch.autograd.Function):
    """Each token's cross-entropy. What a hidden state needs is made in the forward pass; a trained head reads the logits once more."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(targets), CHUNK):
                piece = slice(start, start + CHUNK)
                slope, losses[piece] = _slope(hidden[piece].to(dtype), matrix, targets[piece], scale)
                if grad_hidden is not None:
                    grad_hidden[piece] = slope.to(dtype) @ matrix
        ctx.save_for_backward(grad_hidden, *((hidden, weight, targets) if ctx.needs_input_grad[1] else ()))
        ctx.scale, ctx.dtype = scale, dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        (outer,) = grads
        grad_hidden, *read_again = ctx.saved_tensors
        grad_weight = None
        if read_again:
            hidden, weight, targets = read_again
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            matrix = weight.to(ctx.dtype)
            for start in range(0, len(targets), CHUNK):
                piece = slice(start, start + CHUNK)
                states = hidden[piece].to(ctx.dtype)
                slope, _ = _slope(states, matrix, targets[piece], ctx.scale)
                grad_weight += (slope * outer[piece, None]).to(ctx.dtype).t() @ states
            grad_weight = grad_weight.to(weight.dtype)
        return None if grad_hidden is None else (grad_hidden * outer[:, None]).to(grad_hidden.dtype), grad_weight, None, None


def _slope(states: torch.Tensor, matrix: torch.Tensor, targets: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """d loss / d (matrix @ state) of each row, fp32 [rows, vocabulary], and the losses [rows]."""
    logits = (states @ matrix.t()).float().mul_(scale)
    norm = logits.logsumexp(dim=1, keepdim=True)
    losses = (norm - logits.gather(1, targets[:, None])).squeeze(1)
    slope = logits.sub_(norm).exp_()
    slope.scatter_add_(1, targets[:, None], torch.full_like(targets[:, None], -1, dtype=slope.dtype))
    return slope.mul_(scale), losses


class ChunkedLoss(torch.autograd.Function):
    """Sum of weighted cross-entropies whose gradients are made in the forward pass, chunk by chunk.

    d loss / d logits = weight * (softmax(logits) - onehot(target)).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        want_hidden, want_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(targets), CHUNK):
                piece, wanted = hidden[start : start + CHUNK].to(dtype), targets[start : start + CHUNK, None]
                counts = None if weights is None else weights[start : start + CHUNK, None]
                logits = (piece @ matrix.t()).float().mul_(scale)
                norm = logits.logsumexp(dim=1, keepdim=True)
                each = norm - logits.gather(1, wanted)
                total += (each if counts is None else each * counts).sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                slope = logits.sub_(norm).exp_()
                slope.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=slope.dtype))
                if counts is not None:
                    slope.mul_(counts)
                slope = slope.mul_(scale).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[start : start + CHUNK] = slope @ matrix
                if grad_weight is not None:
                    grad_weight += slope.t() @ piece
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        (outer,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * outer.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * outer).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
