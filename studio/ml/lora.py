"""LoRA's product as one step of autograd: what peft computes under autocast, without its copies. Nothing of the adapter changes.

Under autocast peft reads each layer's input into fp32 and autocast reads it back, once for every layer that shares it, and the
adapter's share is scaled and added in passes of its own over [tokens, outputs]. Here the share is added within a product, and what
is kept for the backward pass is the input itself, which neighbours share, and the few numbers between A and B.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear


def fuse_lora(model: torch.nn.Module) -> int:
    """Puts the faster product in the place of peft's in every layer for which it is the same; returns in how many.

    That is plain LoRA and rsLoRA without dropout beside an unquantized frozen layer. Outside autocast, or where the adapter is
    switched off or merged, peft's own is used.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear) and _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    return len(layers)


def _is_plain(layer: Linear) -> bool:
    names = list(layer.lora_A)
    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear or len(names) != 1 or layer.fan_in_fan_out:
        return False
    (name,) = names
    frozen = not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
    ordinary = name not in layer.lora_variant and isinstance(layer.lora_dropout[name], torch.nn.Identity)
    return frozen and ordinary and layer.lora_A[name].bias is None and layer.lora_B[name].bias is None


def _forward(layer: Linear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    active = layer.active_adapters
    if args or kwargs or layer.disable_adapters or layer.merged or len(active) != 1 or not torch.is_autocast_enabled(x.device.type):
        plain: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return plain
    (name,) = active
    base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    dtype = torch.get_autocast_dtype(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        bias = None if base.bias is None else base.bias.to(dtype)
        product: torch.Tensor = LoraProduct.apply(x.to(dtype), base.weight.to(dtype), bias, down, up, layer.scaling[name])  # type: ignore[no-untyped-call]
    return product


class LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, with W and bias frozen. Computed in x's format; the gradients of A and B have theirs."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """x [..., inputs], weight [outputs, inputs], down (A) [rank, inputs], up (B) [outputs, rank]; returns [..., outputs]."""
        rows = x.reshape(-1, x.shape[-1])
        narrow = rows @ down.to(x.dtype).t()
        out = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        out.addmm_(narrow, up.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up, narrow = ctx.saved_tensors
        rows, outer = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, weight.shape[0])
        through = (outer @ up.to(x.dtype)).mul_(ctx.scale)
        grad_down = (through.t() @ rows).to(down.dtype)
        grad_up = (outer.t() @ narrow).to(up.dtype).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (outer @ weight).addmm_(through, down.to(x.dtype)).view(x.shape)
        return grad_x, None, None, grad_down, grad_up, None
