"""A model whose weights, gradients and optimizer are spread over several processes (FSDP2), and the sums that these agree on.

Each layer is gathered right before it is computed and let go right after. How the processes come to be is `studio.ml.following`'s.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from studio.ml.loading import Arithmetic
from studio.ml.loop import Learner
from studio.ml.saving import Tensors
from studio.ml.world import World

PATIENCE = timedelta(hours=1)
"""How long one process waits for another: it may be writing a large state to a slow disk."""
HEAD = "head_of_the_whole"


class Together(World):
    """One of several processes on this machine; each has joined before anything is asked."""

    def __init__(self, rank: int, size: int, *, on_gpus: bool):
        self.rank, self.size, self.on_gpus = rank, size, on_gpus

    def join(self, store: Path) -> None:
        """Waits for the others, who join by the same file. Numbers travel over loopback or between the GPUs."""
        if sys.platform == "linux":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        if self.on_gpus:
            torch.cuda.set_device(self.rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.on_gpus else "gloo",
            store=dist.FileStore(str(store), self.size),
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
        )

    def share(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)[self.rank :: self.size]

    def total(self, *numbers: float) -> list[float]:
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return [float(value) for value in sums]

    def agree(self, flag: bool) -> bool:
        return self.total(float(flag))[0] > 0

    def memory(self, peak: int) -> int:
        return int(max(self.gather([float(peak)])) if self.on_gpus else self.total(peak)[0])

    def gather(self, items: list[float]) -> list[float]:
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(items)
        dist.all_reduce(counts)
        longest = torch.zeros(int(counts.max()), dtype=torch.float64)
        longest[: len(items)] = torch.tensor(items, dtype=torch.float64)
        parts = [torch.empty_like(longest) for _ in range(self.size)]
        dist.all_gather(parts, longest)
        return [float(value) for part, count in zip(parts, counts.tolist(), strict=True) for value in part[:count]]


class FullLearner(Learner):
    """A learner whose parameters may be spread over the processes; the states hold them whole, for any number of processes."""

    def clip(self, limit: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def optimizer_tensors(self) -> Tensors:
        return whole(super().optimizer_tensors())

    def load_optimizer_tensors(self, tensors: Tensors) -> None:
        """As Learner's; a tensor as large as its parameter is spread as the parameter is."""
        spread = {}
        for key, tensor in tensors.items():
            parameter = self.parameters[int(key.split(".", 1)[0])]
            spread[key] = part_of(tensor, like=parameter) if tensor.shape == parameter.shape else tensor
        super().load_optimizer_tensors(spread)


def shard(model: Any, world: World, *, arithmetic: Arithmetic) -> dict[str, torch.nn.Parameter]:
    """Spreads the model over the processes of `world`; of one process nothing changes. Returns its parameters by name, shared ones once.

    The output layer is gathered with the embeddings, whether it shares their weights or not, since the loss reads it by itself.
    """
    names = [name for name, _ in model.named_parameters()]
    if world.size > 1:
        mesh = init_device_mesh(arithmetic.device.type, (world.size,))
        pure = next(model.parameters()).dtype is torch.bfloat16
        half = torch.bfloat16 if arithmetic.bf16 and not pure else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        backbone = model.base_model
        backbone.add_module(HEAD, model.get_output_embeddings())
        fully_shard(backbone, mesh=mesh, mp_policy=policy)
        del backbone._modules[HEAD]
        model.to(arithmetic.device)  # what is not spread: buffers
    return {name: model.get_parameter(name) for name in names}


def layers_of(model: Any) -> torch.nn.ModuleList:
    """The model's layers, which all have one size and are run one after another."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count)
    return next(lists)


def whole(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors with the parts of all processes. Every process must ask; only the first one is answered, in main memory."""
    leads = not dist.is_initialized() or dist.get_rank() == 0
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if leads:
            found[name] = full.detach()
    return found


def part_of(tensor: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """What this process holds of a whole tensor, spread as `like` is; the tensor itself where `like` is not."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_parameters(model: Any, there: dict[str, torch.nn.Parameter], tensors: Tensors) -> None:
    """Puts whole `tensors` back into the parameters `there` of the model, bit by bit."""
    if tensors.keys() != there.keys():
        raise RuntimeError("the saved weights are of other layers than those that learn here")
    for name, tensor in tensors.items():
        there[name].copy_(part_of(tensor, like=there[name]))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a layer that is still gathered from a look at the rows would keep the old weights


def follow_steps(model: Any, optimizer: torch.optim.Optimizer, *, seed: int, rank: int) -> None:
    """Lets the random numbers of every step follow from seed, step and process alone.

    A state holds the random numbers of the first process; with these, dropout goes on in the others as if nothing had been.
    """

    def reseed(_module: Any, _inputs: Any) -> None:
        step = max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)
        if model.training and seeded[0] != step:
            seeded[0] = step
            torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]))

    seeded = [-1]
    model.base_model.register_forward_pre_hook(reseed)
