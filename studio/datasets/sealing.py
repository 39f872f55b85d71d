"""A draft of rows as a version: compared with each other, split, and written for good. Where the rows came from is not asked here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studio.datasets import comparing, examples, fixing, looking, rows, splitting
from studio.datasets.flags import CHANGES, FINDINGS, Flag
from studio.errors import UserError
from studio.training.job import Job

STRATA = 100
"""Strata whose shares are told."""
NAMED, MOST_NAMES = 50, 20
"""Rows that are searched for the names of their placeholders, and how many names are told."""
NONE_LEFT = (
    "No row is left to train on: all that remain were held back for validation, or belong to rows that were. "
    "Keep some rows to train on, or split the rows again."
)


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Rows that were taken in, and what is known of each, in their order."""

    draft: Path
    """A Parquet file of `rows.DRAFT`; the stores that it names lie in the result's folder."""
    shape: str
    hashes: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint32]
    """What became of each row in comparison with another version (ADDED, CHANGED); everything else is found anew."""
    strata: npt.NDArray[np.uint64] | None = None
    """For each row the hash of its value in the column that the split is stratified by; None: no such column."""
    together: npt.NDArray[np.uint64] | None = None
    """For each row the hash of its value in the column whose equal values stay on one side of the split; None: no such column."""
    kept: npt.NDArray[np.int8] | None = None
    """For each row the split that it had before: 0 train, 1 validation, -1 none yet. None: no row had one."""


@dataclass(frozen=True)
class Sealed:
    duplicates: int
    validation: int
    findings: dict[str, int] = field(default_factory=dict)
    """Rows by the name of each finding that occurs."""
    told: dict[str, Any] = field(default_factory=dict)
    """Facts of the version: `findings` as above, `examples` ({name: [{index, text}]}, masked), `placeholders`, `languages`, `said`."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about what was found."""
    strata: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Rows to train on and rows held back, by the hash of each stratum: the largest `STRATA` of them."""


def seal(job: Job, drafted: Drafted, target: Path, *, percent: float, seed: int, near_duplicates: bool = True) -> Sealed:
    """Writes `target` and removes the draft. `near_duplicates`: they are never parted by the split.

    Raises UserError where no row would be left to train on.
    """
    job.phase("checking", "Comparing the rows with each other")
    looked = looking.look(job, drafted.draft, target.parent, drafted.hashes)
    flags = looked.flags | drafted.flags & np.uint32(sum(CHANGES.values()))
    held_back = splitting.validation(
        drafted.hashes,
        percent=percent,
        seed=seed,
        strata=drafted.strata,
        together=drafted.together,
        groups=looked.groups if near_duplicates else None,
        kept=drafted.kept,
    )
    if held_back.all():
        raise UserError(NONE_LEFT)
    leaked = comparing.leaked(held_back, hashes=drafted.hashes, questions=looked.questions, groups=looked.groups)
    flags[leaked] |= np.uint32(Flag.LEAKAGE)
    rows.finish(
        drafted.draft,
        target,
        validation=held_back,
        flags=flags,
        hashes=drafted.hashes,
        groups=looked.groups,
        strata=drafted.strata,
        together=drafted.together,
    )
    drafted.draft.unlink()
    counts = {finding.name: int(np.count_nonzero(flags & np.uint32(finding.flag))) for finding in FINDINGS}
    counts = {name: number for name, number in counts.items() if number}
    said = [*_leakage(counts.get("leakage", 0)), *looked.warnings]
    return Sealed(
        duplicates=counts.get("duplicate", 0),
        validation=int(held_back.sum()),
        findings=counts,
        told={"findings": counts, "languages": looked.languages, "said": said, **shown(target, flags)},
        warnings=said,
        strata={} if drafted.strata is None else strata_of(drafted.strata, held_back),
    )


def shown(rows_path: Path, flags: npt.NDArray[np.uint32]) -> dict[str, Any]:
    """The first rows of each finding, in a masked line each, and the names of the placeholders in some of those that have any."""
    firsts = {finding: np.flatnonzero(flags & np.uint32(finding.flag))[: examples.SHOWN] for finding in FINDINGS}
    unfilled = np.flatnonzero(flags & np.uint32(Flag.PLACEHOLDER))[:NAMED]
    wanted = np.unique(np.concatenate([unfilled, *firsts.values()]))
    found = examples.rows_at(rows_path, wanted)
    named = [name for index in unfilled.tolist() for name in fixing.names(found[index])]
    return {
        "examples": {
            finding.name: [{"index": index, "text": examples.example(found[index], finding.flag)} for index in indices.tolist()]
            for finding, indices in firsts.items()
            if len(indices)
        },
        "placeholders": list(dict.fromkeys(named))[:MOST_NAMES],
    }


def _leakage(number: int) -> list[str]:
    if not number:
        return []
    return [f"{number} eval {'row is' if number == 1 else 'rows are'} also in training: the validation loss looks better than it is."]


def strata_of(strata: npt.NDArray[np.uint64], held_back: npt.NDArray[np.bool_]) -> dict[int, tuple[int, int]]:
    """(train, validation) of each of the largest strata, the largest first."""
    values, numbers, counts = np.unique(strata, return_inverse=True, return_counts=True)
    held = np.bincount(numbers[held_back], minlength=len(values))
    largest = np.argsort(-counts, kind="stable")[:STRATA]
    return {int(values[one]): (int(counts[one] - held[one]), int(held[one])) for one in largest.tolist()}


def strata_facts(sealed: Sealed, names: dict[int, str]) -> list[dict[str, Any]]:
    """How each stratum is split, the largest first. The hash finds the name again when the rows are split anew."""
    return [
        {"name": names.get(value, "another value") if value else "", "hash": str(value), "train": train, "validation": validation}
        for value, (train, validation) in sealed.strata.items()
    ]
