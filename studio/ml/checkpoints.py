"""The states that a run leaves on its way: sealed folders of safetensors and JSON. The last two and the best are kept."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from studio.storage import commit_folder, remove_folder

KEPT = 2


class Checkpoints:
    """The checkpoints of one attempt, below `folder`."""

    def __init__(self, folder: Path, *, save_weights: Callable[[Path], None], optimizer: torch.optim.Optimizer):
        self.folder = folder
        self.save_weights = save_weights
        self.optimizer = optimizer
        self.kept: list[int] = []
        self.best: tuple[float, int] = (math.inf, -1)
        """Validation loss and step."""

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, *, step: int, validation_loss: float | None, state: dict[str, Any]) -> Path:
        """Writes everything that going on from here needs: weights, optimizer, random numbers, and `state` as JSON."""
        temp = self.folder / f"{self.path(step).name}.part"
        remove_folder(temp)
        temp.mkdir(parents=True)
        self.save_weights(temp)
        save_file(optimizer_tensors(self.optimizer), temp / "optimizer.safetensors")
        save_file(random_tensors(), temp / "random.safetensors")
        (temp / "state.json").write_text(json.dumps({"step": step, "validation_loss": validation_loss, **state}, indent=1))
        commit_folder(temp, self.path(step), step=step)
        self.kept.append(step)
        if validation_loss is not None and validation_loss < self.best[0]:
            self.best = (validation_loss, step)
        self._prune()
        return self.path(step)

    def _prune(self) -> None:
        keep = {*self.kept[-KEPT:], self.best[1]}
        for step in [step for step in self.kept if step not in keep]:
            shutil.rmtree(self.path(step))
            self.kept.remove(step)

    @property
    def last_step(self) -> int | None:
        return self.kept[-1] if self.kept else None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `{"<parameter number>.<name>": tensor}`, which safetensors can hold."""
    tensors = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{number}.{name}"] = torch.as_tensor(value).detach().contiguous().cpu()
    return tensors


def random_tensors() -> dict[str, torch.Tensor]:
    """States of the random number generators that training draws from."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors
