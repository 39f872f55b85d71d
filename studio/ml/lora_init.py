"""How the two matrices of an adapter begin: with parts of the weights (PiSSA, OLoRA) or of what their layers are shown (EVA).

PiSSA and OLoRA take the product that they begin with out of the base's weights, so that the model as a whole begins unchanged.
`as_plain_change` turns what was learnt from there into an ordinary adapter of the untouched base.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils.incremental_pca import IncrementalPCA

ADAPTER = "default"
OVERSAMPLED, ITERATIONS = 8, 8
"""Of the randomized SVD: further directions, and rounds that sharpen them. Halko et al. 2011, algorithms 4.4 and 5.1."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [rank, inputs] and B [outputs, rank], fp32."""


def lora_layers(model: Any) -> dict[str, Any]:
    """peft's layers with an adapter, by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def matrices(layer: Any) -> Pair:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def set_matrices(layer: Any, pair: Pair) -> None:
    with torch.no_grad():
        for matrix, value in zip(matrices(layer), pair, strict=True):
            matrix.copy_(value)


def pissa(weight: torch.Tensor, *, rank: int, scale: float) -> Pair:
    """The strongest directions of `weight`: scale · B A is nearly its best approximation of that rank. Meng et al. 2024, eq. 2 and 3."""
    columns = min(rank + OVERSAMPLED, *weight.shape)
    if columns * 4 > min(weight.shape):
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        right = right.T
    else:
        left, sizes, right = torch.svd_lowrank(weight, q=columns, niter=ITERATIONS)
    roots = (sizes[:rank] / scale).sqrt()
    return _filled((right[:, :rank] * roots).T, (left[:, :rank] * roots), rank=rank)


def olora(weight: torch.Tensor, *, rank: int, scale: float) -> Pair:
    """The first columns of Q and rows of R in weight = Q R. Büyükakyüz 2024, algorithm 1; `scale` as in peft's `olora_init`."""
    q, r = torch.linalg.qr(weight)
    return _filled(r[:rank], q[:, :rank], rank=rank)


WEIGHT_STARTS: dict[str, Callable[..., Pair]] = {"pissa": pissa, "olora": olora}


@torch.no_grad()
def begin_from_weights(model: Any, how: str, *, stopping: Callable[[], None]) -> dict[str, Pair]:
    """Gives every layer the matrices that it begins with and returns them; the base is not changed yet (`take_out`)."""
    pairs = {}
    for name, layer in lora_layers(model).items():
        stopping()
        a, _ = matrices(layer)
        pairs[name] = WEIGHT_STARTS[how](_matrix(layer).float(), rank=a.shape[0], scale=layer.scaling[ADAPTER])
    return pairs


@torch.no_grad()
def take_out(model: Any, pairs: dict[str, Pair]) -> None:
    """Begins with these matrices, and takes their products out of the base's weights, rounded to the format of those."""
    for name, layer in lora_layers(model).items():
        a, b = pairs[name]
        set_matrices(layer, (a, b))
        weight = _matrix(layer)
        weight.copy_(weight.float() - layer.scaling[ADAPTER] * (b @ a).to(weight.device))


def as_plain_change(now: Pair, begun: Pair) -> Pair:
    """A' and B' of twice the rank with B' A' = B A - B₀ A₀: what was learnt beside the weights as they were.

    Side by side, [B, -B₀] and [A; A₀] would be that already, but as the small difference of two large products, which is lost where
    an adapter is stored in half precision. So the difference is taken apart again (QR of both sides, SVD of the core, in fp64) and
    its sizes are shared by both sides evenly.
    """
    rank = 2 * now[0].shape[0]
    a = torch.cat([now[0], begun[0]]).double().cpu()
    b = torch.cat([now[1], -begun[1]], dim=1).double().cpu()
    left, core_left = torch.linalg.qr(b)
    right, core_right = torch.linalg.qr(a.T)
    u, sizes, v = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    roots = sizes.sqrt()
    return _filled((v * roots[:, None]) @ right.T, left @ (u * roots), rank=rank)


def doubled_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """peft's settings for `as_plain_change`: twice each rank, and each alpha so that the scale stays: α/r, with rsLoRA α/√r."""
    stronger = math.sqrt(2) if settings.get("use_rslora") else 2.0
    return settings | {
        "r": 2 * settings["r"],
        "lora_alpha": stronger * settings["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in (settings.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: stronger * alpha for name, alpha in (settings.get("alpha_pattern") or {}).items()},
    }


@torch.no_grad()
def begin_from_inputs(model: Any, batches: Iterable[Any], read: Callable[[Any], Any]) -> int:
    """EVA: A begins as the directions in which a layer's inputs vary most. Paischer et al. 2024, section 3; B stays zero.

    `read(batch)` sends a batch through the model. Every layer keeps its rank, which the paper calls ρ = 1. Layers that are handed
    the very same tensor, one after another, share one decomposition. Returns how many layers began this way; the others are untouched.
    """
    layers = lora_layers(model)
    widest = max(len(matrices(layer)[0]) for layer in layers.values())
    seen: dict[str, Any] = {}
    source: dict[str, str] = {}
    last: list[Any] = [None, ""]

    def look(name: str, tensor: torch.Tensor) -> None:
        if tensor is not last[0]:
            last[:] = tensor, name
            rows = tensor.reshape(-1, tensor.shape[-1]).float()
            rank = min(widest, rows.shape[1])
            if len(rows) >= rank:
                with torch.autocast(rows.device.type, enabled=False):
                    seen.setdefault(name, IncrementalPCA(n_components=rank, lowrank=True, lowrank_seed=0)).partial_fit(rows)
        source[name] = last[1]

    def hook(name: str) -> Callable[[Any, Any], None]:
        return lambda _, arguments: look(name, arguments[0])

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            read(batch)
            last[:] = None, ""
    finally:
        for each in hooks:
            each.remove()
    begun = {name: seen[first].components_ for name, first in source.items() if first in seen}
    for name, directions in begun.items():
        a, _ = matrices(layers[name])
        a[: len(directions)].copy_(directions[: len(a)])
    return len(begun)


def _matrix(layer: Any) -> torch.Tensor:
    """The base's weight as [outputs, inputs]: a view, also where GPT-2 keeps it the other way round."""
    weight: torch.Tensor = layer.get_base_layer().weight.data
    return weight.T if layer.fan_in_fan_out else weight


def _filled(a: torch.Tensor, b: torch.Tensor, *, rank: int) -> Pair:
    """With zeros up to the rank, where the weight has fewer directions than that."""
    more = rank - a.shape[0]
    if more:
        a, b = torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))
    return a.float().contiguous(), b.float().contiguous()
