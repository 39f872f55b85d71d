"""Which columns of each matrix matter on the client's own rows, so that rounding errs where it is least heard: llama.cpp's imatrix.

Source: llama.cpp, tools/imatrix/imatrix.cpp (`collect_imatrix`): for each matrix the mean over all tokens of the square of what comes
into each column. The embedding is looked up, not multiplied, and has none.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from studio.errors import UserError
from studio.ml.gguf.header import Entry
from studio.ml.gguf.weights import Array
from studio.ml.gguf.writing import Planned, write_small
from studio.storage import fsync_path

if TYPE_CHECKING:
    from torch import Tensor

MOST_ROWS = 256
"""Training rows that are looked at."""
MOST_TOKENS, LEAST_TOKENS, TOKENS_TIMES_WEIGHTS = 32_768, 8_192, 4e13
"""Tokens of them. Makers of such files take some ten thousand; a product of tokens and weights sets where in between."""
LONGEST_ROW = 512
"""Tokens of one row."""
OUTPUT_TOKENS = 32
"""Last tokens of each row that go through the output layer, which may be as large as many layers."""
LEAST = 1e-6
"""Of a matrix's mean: what no column counts less than. A column that is silent on these rows may speak on others, and a block of columns
that count nothing is rounded to nothing."""

Progress = Callable[[int, int], None]


class Forward(Protocol):
    """What is measured: `studio.ml.gguf.reference.Reference`."""

    def forward(
        self,
        sequences: Sequence[list[int]],
        *,
        seen: "Callable[[str, Tensor], None] | None" = None,
        keep: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Array]: ...


@dataclass(frozen=True)
class Importance:
    """What was measured, by the names of the base's tensors."""

    sums: dict[str, Array]
    """Sums of squares of what came into each column, shape (columns,)."""
    counts: dict[str, int]
    """Tokens that each sum is over."""
    rows: int

    def means(self) -> dict[str, Array]:
        """How much each column counts. Divided as llama-quantize does, so that it makes the same bytes of the file."""
        return {name: total / np.float32(self.counts[name]) for name, total in self.sums.items()}


def sequences(rows: Iterable[dict[str, Any]], tokenizer: Any, *, parameters: int = 0) -> list[list[int]]:
    """The tokens of the first rows; of fewer, the larger the model is, whose every word takes longer."""
    from studio.ml.tokens import encode_rows

    most = int(min(MOST_TOKENS, max(LEAST_TOKENS, TOKENS_TIMES_WEIGHTS / max(1, parameters))))
    found: list[list[int]] = []
    tokens = 0
    for row in encode_rows(tokenizer, rows, max_length=LONGEST_ROW):
        if len(found) == MOST_ROWS or tokens + len(row.ids) > most:
            break
        if row.ids:
            found.append(row.ids)
            tokens += len(row.ids)
    return found


def measure(reference: Forward, rows: Sequence[list[int]], *, progress: Progress | None = None) -> Importance:
    """What the model with its adapter hears on these rows of tokens.

    `progress(done, total)` counts steps. Raises UserError where the model's activations are not numbers, and Stopped.
    """
    import torch

    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def seen(name: str, inputs: "Tensor") -> None:
        flat = inputs.reshape(-1, inputs.shape[-1])
        squares = flat.float().pow(2).sum(dim=0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] = counts.get(name, 0) + len(flat)

    for _ in reference.forward(rows, seen=seen, keep=[min(len(ids), OUTPUT_TOKENS) for ids in rows], progress=progress):
        pass
    return Importance({name: _floored(name, sums[name].numpy()) for name in sorted(sums)}, counts, len(rows))


def _floored(name: str, total: Any) -> Array:
    if not np.isfinite(total).all():
        raise UserError(f"What the model computes before {name} is not a number. Train again, or build without the importance of columns.")
    floored: Array = np.maximum(total, LEAST * total.mean() or 1.0).astype(np.float32)
    return floored


def kept(path: Path, make: Callable[[], Importance]) -> Importance:
    """What an earlier attempt had measured and kept in this file, or what `make` measures, which is kept.

    Measured again it may differ in its last digits, and the files that were begun with it could not be gone on from.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    if path.is_file():
        with safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["facts"])
            return Importance({name: file.get_tensor(name) for name in file.keys()}, facts["counts"], facts["rows"])  # noqa: SIM118
    measured = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    save_file(measured.sums, temporary, {"facts": json.dumps({"counts": measured.counts, "rows": measured.rows})})
    fsync_path(temporary)
    os.rename(temporary, path)
    return measured


def write(path: Path, importance: Importance, *, names: Mapping[str, str], dataset: str) -> None:
    """The file that llama-quantize takes as --imatrix. `names` maps the base's tensors to the GGUF's; what it lacks is left out."""
    entries = {
        "general.type": Entry("STRING", "imatrix"),
        "imatrix.datasets": Entry("ARRAY", [dataset], "STRING"),
        "imatrix.chunk_count": Entry("UINT32", importance.rows),
        "imatrix.chunk_size": Entry("UINT32", LONGEST_ROW),
    }
    tensors = []
    for stored, name in sorted(names.items(), key=lambda pair: pair[1]):
        if stored in importance.sums:
            total = importance.sums[stored]
            count = np.array([[importance.counts[stored]]], np.float32)
            tensors += [_tensor(f"{name}.in_sum2", total[None]), _tensor(f"{name}.counts", count)]
    write_small(path, entries, tensors)


def _tensor(name: str, values: Array) -> tuple[Planned, Any]:
    return Planned(name, values.shape, "F32", values.nbytes), np.ascontiguousarray(values).view(np.uint8)
