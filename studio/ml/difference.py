"""What full fine-tuning changed in a model, tensor by tensor, and a layer's change as two narrow matrices. Never holds a whole model."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from studio.errors import UserError
from studio.ml.modelfacts import NAMES, Tensor, read_header, weight_files

BLOCK = 1024
"""Rows or columns that are read, and added up in float64, at a time."""


@dataclass(frozen=True)
class Layout:
    """Where things are in a family of models, by the names of its modules."""

    linears: tuple[str, ...]
    """What all-linear means: every linear layer but the one that tokens are chosen with."""
    turned: frozenset[str]
    """Those of them that keep their weights as [inputs, outputs]."""
    words: str
    """The table that tokens are read with."""
    output: str
    """The layer that they are chosen with."""
    tied: bool
    """True where those two are one."""

    @property
    def tables(self) -> tuple[str, ...]:
        return (self.words, self.output)


def layout_of(folder: Path) -> Layout:
    """Asks transformers, whose model is made without weights. Raises UserError where it has no linear layers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    words, output = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    linears = [name for module, name in names.items() if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output]
    if not linears or output is None:
        raise UserError("No linear layers were found in this model, so no adapter can be taken out of it. Use it as it is.")
    turned = frozenset(name for name in linears if isinstance(model.get_submodule(name), Conv1D))
    return Layout(tuple(linears), turned, names[words], names[output], tied=bool(config.tie_word_embeddings))


class Difference:
    """Two models of one shape, opened side by side. Use it in a `with`."""

    def __init__(self, base: Path, trained: Path, layout: Layout):
        self._stack = ExitStack()
        self._base, self.shapes = self._open(base)
        self._trained, others = self._open(trained)
        if layout.tied:  # some files hold the shared table twice
            for found in (self.shapes, others):
                found.pop(f"{layout.output}.weight", None)
        refuse_another_shape(self.shapes, others, tables=layout.tables)

    def _open(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        files: dict[str, Any] = {}
        shapes: dict[str, Tensor] = {}
        for path in weight_files(folder):
            header = read_header(path)
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            shapes |= header
            files |= dict.fromkeys(header, file)
        return files, shapes

    def __enter__(self) -> "Difference":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The change of a tensor in float32, rows after rows."""
        before, after = self._base[name].get_slice(name), self._trained[name].get_slice(name)
        if not self.shapes[name].shape:
            yield (self._trained[name].get_tensor(name).float() - self._base[name].get_tensor(name).float())[None]
            return
        for start in range(0, self.shapes[name].shape[0], BLOCK):
            yield after[start : start + BLOCK].float() - before[start : start + BLOCK].float()

    def change(self, name: str) -> torch.Tensor:
        return torch.cat(list(self.blocks(name)))

    def energy(self, name: str) -> float:
        """The sum of the change's squares."""
        return sum(float(block.double().square().sum()) for block in self.blocks(name))

    def trained(self, name: str) -> torch.Tensor:
        """A tensor as it was trained, as it is stored."""
        found: torch.Tensor = self._trained[name].get_tensor(name)
        return found


def refuse_another_shape(base: dict[str, Tensor], trained: dict[str, Tensor], *, tables: tuple[str, ...]) -> None:
    for name in sorted(base.keys() | trained.keys()):
        one, other = base.get(name), trained.get(name)
        if one is None or other is None or one.shape != other.shape:
            if name.removesuffix(".weight") in tables and one and other and one.shape[1:] == other.shape[1:]:
                raise UserError(
                    f"The model knows {other.shape[0]:,} tokens and its base {one.shape[0]:,}. An adapter is taken out only where both "
                    "know the same. Train it from a base model that has the new tokens."
                )
            raise UserError(f"The model is not made as its base is: {name[:80]} differs. Choose a model that was trained from this base.")
        if one.dtype not in NAMES or other.dtype not in NAMES:
            raise UserError(f"{name[:80]} is stored in a format that is not subtracted. Use a model in float32, float16 or bfloat16.")


@dataclass(frozen=True)
class Factors:
    """A change as B·A, the directions that hold most of it first, so that the first r are the best of rank r."""

    a: torch.Tensor
    """[rank, inputs], float32; each singular value's root lies in both."""
    b: torch.Tensor
    """[outputs, rank]"""
    squares: tuple[float, ...]
    """Of the singular values, as far as the rank goes."""
    total: float
    """The sum of the change's squares."""


def factors(change: torch.Tensor, *, rank: int) -> Factors:
    """The truncated singular value decomposition of a change [outputs, inputs], float32: its best approximation of each rank up to `rank`
    in the sum of squares (Eckart & Young 1936, https://doi.org/10.1007/BF02288367).

    The left singular vectors are the eigenvectors of the change times its transpose, taken over the shorter side and added up in float64,
    so what is held beside the change is a square of the shorter side. What those vectors are multiplied with is the change itself: at
    full rank they are a rotation and the product is the change again, to the rounding of float32.
    """
    tall = change.shape[0] > change.shape[1]
    wide = change.t() if tall else change
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64)
    for block in torch.split(wide, BLOCK, dim=1):
        exact = block.double()
        gram.addmm_(exact, exact.t())
    total = float(gram.trace())
    left = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, : min(rank, len(gram))].contiguous()  # the largest come last
    del gram
    right = torch.cat([(left.t() @ block.double()).float() for block in torch.split(wide, BLOCK, dim=1)], dim=1)
    sizes = torch.linalg.vector_norm(right, dim=1, dtype=torch.float64)
    roots = sizes.sqrt()
    up, down = (left * roots).float(), right * torch.where(roots > 0, 1 / roots, 0).float()[:, None]
    a, b = (up.t(), down.t()) if tall else (down, up)
    return Factors(a.contiguous(), b.contiguous(), tuple((sizes**2).tolist()), total)
