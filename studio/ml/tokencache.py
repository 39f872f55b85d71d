"""Rows as tokens, kept from one run to the next: whoever trains on the same rows again, or goes on, does not wait for the tokenizer.

A file is named by the hash of everything that it follows from, so it is never out of date: the rows themselves, the tokenizer with
its template, the max length and what is learnt. It holds plain arrays (safetensors); one that cannot be read is made anew.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from studio.ml.batches import TokenRow
from studio.ml.preference import PairRow

Read = tuple[Any, bool]
"""A row to learn from (a TokenRow or a PairRow), None where nothing in it is to be learnt; and whether it was cut."""
FORMAT = 2
"""Raised whenever the same rows become other tokens than before."""
MOST_FILES = 8
"""Of one folder; the one that was used longest ago goes first."""
LARGEST = 4 << 30
"""Bytes of one file. Rows beyond that are read anew each time."""


def key_of(tokenizer: Any, rows: Iterable[tuple[str, dict[str, Any]]], **how: object) -> str:
    """The name of a file: `rows` are (split, row) pairs, `how` all settings that decide how they are read."""
    known = {**how, "format": FORMAT, "template": tokenizer.chat_template, "end": tokenizer.eos_token, "start": tokenizer.bos_token}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for split, row in rows:
        digest.update(json.dumps([split, row], sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def load(folder: Path, key: str) -> dict[str, list[Read]] | None:
    """What was saved under this name, by split; None where nothing was, or nothing that can be read."""
    file = folder / f"{key}.safetensors"
    try:
        arrays = load_file(file)
        os.utime(file)
        return {split: _reads(arrays, split) for split in ("train", "validation")}
    except (OSError, SafetensorError, KeyError, ValueError, IndexError):
        return None


def save(folder: Path, key: str, reads: dict[str, list[Read]]) -> None:
    """Keeps the rows of each split, and of the files in `folder` the newest few. Where the disk is full nothing is kept."""
    arrays = {name: array for split, rows in reads.items() for name, array in _arrays(rows, split).items()}
    if sum(array.nbytes for array in arrays.values()) > LARGEST:
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temp = folder / f".{key}.{os.getpid()}.{threading.get_ident()}"
    with suppress(OSError):
        try:
            save_file(arrays, temp)
            temp.replace(folder / f"{key}.safetensors")
        finally:
            temp.unlink(missing_ok=True)
        by_age = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in by_age[:-MOST_FILES]:
            file.unlink(missing_ok=True)


def _arrays(reads: Sequence[Read], split: str) -> dict[str, np.ndarray]:
    rows = [row for read, _ in reads for row in _token_rows(read)]
    weighed = [row.weights for row in rows if row.weights is not None]
    found = {
        "rows": np.array([_form(read) for read, _ in reads], dtype=np.uint8),
        "cut": np.array([cut for _, cut in reads], dtype=bool),
        "lengths": np.array([row.length for row in rows], dtype=np.int64),
        "weighed": np.array([row.weights is not None for row in rows], dtype=bool),
        "ids": _joined([row.ids for row in rows], np.int32),
        "supervised": _joined([row.supervised for row in rows], bool),
        "weights": _joined(weighed, np.float32),
    }
    return {f"{split}.{name}": array for name, array in found.items()}


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype=dtype)


def _token_rows(read: Any) -> list[TokenRow]:
    if read is None:
        return []
    return read.answers if isinstance(read, PairRow) else [read]


NOTHING, ROW, PAIR, LIKED, DISLIKED = range(5)
ANSWERS = np.array([0, 1, 2, 1, 1])
"""Token rows that each form takes."""


def _form(read: Any) -> int:
    if read is None:
        return NOTHING
    if not isinstance(read, PairRow):
        return ROW
    return PAIR if read.chosen and read.rejected else LIKED if read.chosen else DISLIKED


def _reads(arrays: dict[str, np.ndarray], split: str) -> list[Read]:
    forms, cut, lengths, weighed, ids, supervised, weights = (
        arrays[f"{split}.{name}"] for name in ("rows", "cut", "lengths", "weighed", "ids", "supervised", "weights")
    )
    counts = ANSWERS[forms]
    if len(cut) != len(counts) or counts.sum() != len(lengths) or not lengths.sum() == len(ids) == len(supervised):
        raise ValueError("the arrays do not belong together")
    ends = np.cumsum(lengths)
    weight_ends = np.cumsum(np.where(weighed, lengths, 0))
    rows = iter(
        [
            TokenRow(
                ids=ids[end - length : end],
                supervised=supervised[end - length : end],
                weights=weights[weight_end - length : weight_end] if own else None,
            )
            for length, end, own, weight_end in zip(lengths, ends, weighed, weight_ends, strict=True)
        ]
    )
    return [(_row(form, [next(rows) for _ in range(count)]), bool(cut)) for form, count, cut in zip(forms, counts, cut, strict=True)]


def _row(form: int, parts: list[TokenRow]) -> TokenRow | PairRow | None:
    if form in (NOTHING, ROW):
        return parts[0] if parts else None
    return PairRow(chosen=parts[0] if form != DISLIKED else None, rejected=parts[-1] if form != LIKED else None)
