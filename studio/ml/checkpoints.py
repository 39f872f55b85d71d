"""What the loop needs, beside the weights, to go on exactly where it was: optimizer, random numbers, counts. Safetensors and JSON only.

Which states there are, and that they are whole, is `studio.checkpoints`'; the weights are the plugin's.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from studio.errors import UserError
from studio.storage import MANIFEST, read_manifest
from studio.training import TrainConfig

FREE = {"evaluate_every", "save_every", "processes", "trackers"}
"""Settings that change when something is shown or saved and who computes it, and nothing of what is learnt."""


@dataclass(frozen=True)
class RandomNumbers:
    """Where every generator stands that training may draw from: Python's, numpy's, torch's on the CPU and on each GPU."""

    python: Any
    numpy: Any
    torch: dict[str, torch.Tensor]

    @classmethod
    def now(cls) -> "RandomNumbers":
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states |= {f"cuda.{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
        return cls(python=random.getstate(), numpy=np.random.get_state(), torch=states)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch["cpu"])
        for number in range(torch.cuda.device_count()):
            if (state := self.torch.get(f"cuda.{number}")) is not None:
                torch.cuda.set_rng_state(state, number)

    def write(self, folder: Path) -> None:
        save_file(self.torch, folder / "random.safetensors")
        name, keys, *rest = self.numpy
        (folder / "random.json").write_text(json.dumps({"python": self.python, "numpy": [name, keys.tolist(), *rest]}))

    @classmethod
    def read(cls, folder: Path) -> "RandomNumbers":
        saved = json.loads((folder / "random.json").read_bytes())
        version, numbers, gauss = saved["python"]
        name, keys, *rest = saved["numpy"]
        return cls(
            python=(version, tuple(numbers), gauss),
            numpy=(name, np.asarray(keys, dtype=np.uint32), *rest),
            torch=load_file(folder / "random.safetensors"),
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `{"<parameter number>.<name>": tensor}`, not copied. Learning rates follow from the step."""
    return {
        f"{number}.{name}": torch.as_tensor(value).detach()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Puts what `optimizer_tensors` gave into an optimizer over the same parameters in the same order."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Row(Protocol):
    """Anything that can be learnt from: the objective knows what it is."""

    @property
    def length(self) -> int: ...
    def content(self) -> bytes: ...


def origin(config: TrainConfig, *, base: Path, layout: str, rows: Iterable[Row]) -> dict[str, Any]:
    """What must be the same for a state to belong to a run: the settings that matter, the base model, every token and its supervision."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.content())
    settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in FREE}
    return {"settings": settings, "base model": base_hash(base), "rows": digest.hexdigest(), "layout of batches": layout}


def base_hash(folder: Path) -> str:
    """The sealed folder's own hash; of one that was never sealed, a hash of its files' names and sizes."""
    if (folder / MANIFEST).is_file():
        return str(read_manifest(folder)["sha256"])
    listing = sorted(f"{path.name} {path.stat().st_size}" for path in folder.iterdir() if path.is_file())
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


def refuse_other_origin(saved: dict[str, Any], here: dict[str, Any], *, step: int) -> None:
    """Raises UserError where a state is of a run that learns something else: going on from it would be neither run."""
    settings = here["settings"]
    changed = [name for name in settings if saved["settings"].get(name) != settings[name]]
    changed += [f"the {name}" for name in here if name != "settings" and saved.get(name) != here[name]]
    if changed:
        raise UserError(
            f"The state of step {step} was saved with other values of {', '.join(changed)}, so this run cannot go on from it. "
            "Start a copy of the run instead."
        )


def machine(*, device: torch.device, number_format: str, processes: int = 1) -> dict[str, str]:
    """What may change the last digits of a sum without anything being wrong."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "arithmetic": number_format,
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "processes": str(processes),
    }
