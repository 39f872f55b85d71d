"""States of a run, written beside the training: the next step is computed while the last one's state goes to the disk.

On a CPU the tensors are not copied. They stay as they are until the optimizer's next step, which waits for the writing;
forward and backward passes, by far the longest part of a step, do not. A GPU's tensors are copied to main memory first.
"""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from studio.checkpoints import save_state
from studio.ml.checkpoints import RandomNumbers

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """Everything at the end of a step that the next one depends on."""

    step: int
    weights: Tensors
    optimizer: Tensors
    random: RandomNumbers
    facts: dict[str, Any]
    """JSON: progress, origin, machine."""
    validation_loss: float | None

    def write(self, folder: Path) -> None:
        save_file(self.weights, folder / "weights.safetensors")
        save_file(self.optimizer, folder / "optimizer.safetensors")
        self.random.write(folder)
        (folder / "state.json").write_text(json.dumps(self.facts))


def read_weights(folder: Path) -> Tensors:
    return load_file(folder / "weights.safetensors")


def read_optimizer(folder: Path) -> Tensors:
    return load_file(folder / "optimizer.safetensors")


class Saver:
    """Writes one state at a time on a thread of its own. An error of the thread is raised where it is waited for."""

    def __init__(self, folder: Path, *, saved: Callable[[int, Path], None]):
        """`saved(step, state's folder)` is called, on the thread, once a state is sealed."""
        self._folder, self._saved = folder, saved
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._writing: Future[None] | None = None
        self._live = False

    def save(self, state: State) -> None:
        """Begins to write it. On a CPU, call `before_change` before any of its tensors changes."""
        self.wait()
        self._live = not any(tensor.is_cuda for tensor in state.weights.values())
        copied = State(**{**vars(state), "weights": on_cpu(state.weights), "optimizer": on_cpu(state.optimizer)})
        self._writing = self._thread.submit(self._write, copied)

    def _write(self, state: State) -> None:
        folder = save_state(self._folder, step=state.step, write=state.write, validation_loss=state.validation_loss)
        self._saved(state.step, folder)

    def before_change(self) -> None:
        """Waits where tensors that are about to change are still being written."""
        if self._live:
            self.wait()

    def wait(self) -> None:
        """Returns once nothing is being written any more."""
        writing, self._writing, self._live = self._writing, None, False
        if writing is not None:
            writing.result()

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()


def on_cpu(tensors: Tensors) -> Tensors:
    """Contiguous tensors in main memory; those that are so already are not copied."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
