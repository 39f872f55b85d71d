"""What moves the weights where every one of them learns: which are trained, how fast each, and by which AdamW."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from studio.training.config import FullConfig

PIECE = 1 << 17
"""Numbers of a tensor that are moved at a time, so that what is computed on the way stays in the processor's cache."""
ANOTHER = 40503
"""An odd number: times it, modulo 65536, a random number is another one that tells nothing of the first (Knuth's multiplicative hash)."""
LAYER = re.compile(r"\.(\d+)\.")
"""In a parameter's name the number of its layer comes first: model.layers.7.mlp.up_proj.weight."""


def freeze(model: Any, config: FullConfig) -> None:
    """Leaves out what the config says is not to learn."""
    table = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        frozen = config.freeze_embeddings if parameter is table else layer is not None and layer < config.freeze_layers
        parameter.requires_grad_(not frozen)


def layer_of(name: str) -> int | None:
    """The layer, counted from 0 below, that a parameter belongs to; None of embeddings, last norm and output layer."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def parameter_groups(model: Any, trained: dict[str, torch.nn.Parameter], config: FullConfig) -> list[dict[str, Any]]:
    """The trained parameters by learning rate and weight decay, those first that learn as fast as the config says.

    With a layer decay d, layer i of n learns d^(n-1-i) times as fast, and the embeddings below them d^n times. Norms and biases do
    not decay: they are few, and pulling them to zero only scales the layer.
    """
    layers = model.config.get_text_config().num_hidden_layers
    table = model.get_input_embeddings().weight
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trained.items():
        if parameter is table:
            factor = config.embedding_rate * config.layer_decay**layers
        else:
            layer = layer_of(name)
            factor = 1.0 if layer is None else config.layer_decay ** (layers - 1 - layer)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((config.learning_rate * factor, decay), []).append(parameter)
    ordered = sorted(groups, key=lambda key: key[0] != config.learning_rate)
    return [{"params": groups[rate, decay], "lr": rate, "weight_decay": decay} for rate, decay in ordered]


def make_optimizer(model: Any, trained: dict[str, torch.nn.Parameter], config: FullConfig) -> torch.optim.Optimizer:
    """The AdamW that the config names, over the parameters of the model that learn."""
    groups = parameter_groups(model, trained, config)
    if config.optimizer != "adamw":
        import bitsandbytes

        paged = config.optimizer == "paged_adamw_8bit"
        eight: torch.optim.Optimizer = (bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit)(groups)
        return eight
    if config.weights == "bf16":
        return RoundingAdamW(groups, seed=config.seed)
    return torch.optim.AdamW(groups, fused=True)


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW over bf16 weights, with both moments in bf16: eight bytes a parameter instead of sixteen.

    bf16 keeps eight binary digits. Rounded to the nearest, a step smaller than 1/512 of a weight is lost, and so is nearly every
    step of a fine-tuning; so a weight is rounded up or down at random, with the chances that make it right on average, and so is the
    second moment, which falls by a thousandth at a time. The chances are drawn from seed, step and parameter alone: a run that is
    taken up again rounds as it would have.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        seed: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(list(groups), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for number, (group, parameter) in enumerate(self._parameters()):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state["step"] += 1
            step = int(state["step"])
            tensors = (parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
            self._move(*(local(tensor).view(-1) for tensor in tensors), group=group, step=step, number=number)

    def _parameters(self) -> Iterator[tuple[dict[str, Any], torch.nn.Parameter]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter

    def _move(
        self,
        weight: torch.Tensor,
        grad: torch.Tensor,
        mean: torch.Tensor,
        square: torch.Tensor,
        *,
        group: dict[str, Any],
        step: int,
        number: int,
    ) -> None:
        """One step of one parameter, piece by piece in fp32."""
        (beta1, beta2), rate = group["betas"], group["lr"]
        length, root = rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
        random = generator(self.seed, step, number, device=weight.device)
        for start in range(0, len(weight), PIECE):
            piece = slice(start, start + PIECE)
            g = grad[piece].float()
            m = mean[piece].float().lerp_(g, 1 - beta1)
            v = square[piece].float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
            w = weight[piece].float().mul_(1 - rate * group["weight_decay"])
            w.addcdiv_(m, torch.sqrt(v, out=g).div_(root).add_(group["eps"]), value=-length)
            noise = random_noise(len(g), random)
            mean[piece] = m  # a tenth of it is new at every step: the nearest is good enough
            weight[piece] = rounded(w, noise)
            square[piece] = rounded(v, noise.mul_(ANOTHER).bitwise_and_(0xFFFF))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, where several share it."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def generator(*key: int, device: torch.device) -> torch.Generator:
    """Random numbers that follow from `key` and nothing else."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def random_noise(count: int, source: torch.Generator) -> torch.Tensor:
    """int32 [count] from 0 to 65535, each as likely; drawn four at a time, which is four times as fast."""
    fours = torch.empty((count + 3) // 4, dtype=torch.int64, device=source.device)
    return fours.random_(-(1 << 63), None, generator=source).view(torch.int16)[:count].int().bitwise_and_(0xFFFF)


def rounded(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """fp32 `values` that bf16 holds exactly, changed in place; `noise` [same shape] from 0 to 65535 decides which of two neighbours.

    bf16 is the upper half of fp32: adding noise below it carries over as often as the lower half is large (stochastic rounding).
    """
    values.view(torch.int32).add_(noise).bitwise_and_(-65536)
    return values
