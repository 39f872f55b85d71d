"""A draft of rows as a version: compared with each other, split, and written for good. Where the rows came from is not asked here."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from studio.datasets import rows, splitting
from studio.datasets.flags import FINDINGS, Flag
from studio.training.job import Job


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Rows that were taken in, and what is known of each, in their order."""

    draft: Path
    """A Parquet file of `rows.DRAFT`; the stores that it names lie in the result's folder."""
    shape: str
    hashes: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint32]
    """What was found in each row by itself."""
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


def seal(job: Job, drafted: Drafted, target: Path, *, percent: float, seed: int) -> Sealed:
    """Writes `target` and removes the draft."""
    job.phase("checking", "Comparing the rows with each other")
    flags = drafted.flags.copy()
    repeated = splitting.duplicates(drafted.hashes)
    flags[repeated] |= np.uint32(Flag.DUPLICATE)
    held_back = splitting.validation(drafted.hashes, percent=percent, seed=seed)
    rows.finish(
        drafted.draft, target, validation=held_back, flags=flags, hashes=drafted.hashes, strata=drafted.strata, together=drafted.together
    )
    drafted.draft.unlink()
    counts = {finding.name: int(np.count_nonzero(flags & np.uint32(finding.flag))) for finding in FINDINGS}
    return Sealed(int(repeated.sum()), int(held_back.sum()), {name: number for name, number in counts.items() if number})
