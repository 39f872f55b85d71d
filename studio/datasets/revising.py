"""An edited version: its parent's rows with what a person changed in them. Runs in a worker process; no Django.

Rows that did not change are stored once: their texts stay in the file where they stand, which is hard-linked beside the new version's own.
`dropped.parquet` and `before.parquet` hold what the dropped and the changed rows were, in their order, so that the change can be shown.
"""

import hashlib
from array import array
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow.parquet as pq

from studio.datasets import rows, sealing, splitting
from studio.datasets.changing import Changes
from studio.datasets.findings import FEW, Findings
from studio.datasets.flags import Flag
from studio.datasets.importing import PREVIEWED, REPORT_EVERY, shortened
from studio.datasets.rows import HERE, Texts
from studio.datasets.shapes import canonical_json
from studio.datasets.typed import accepted
from studio.errors import UserError
from studio.rowfile import stores
from studio.training.job import Job
from studio.training.orders import RevisionPayload

DROPPED, BEFORE = "dropped.parquet", "before.parquet"
MOST_STORES = 20
"""Files that one version's rows stand in, beside its own: each is opened where a row of it is read."""
LEAST_SHARE = 0.01
"""Of all rows: a file that holds fewer is not worth the link, and they are copied."""
COPIED = -2
NOTHING_LEFT = "No row would be left. Keep at least one."


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Writes job.out/rows.parquet, dropped.parquet and before.parquet; returns the facts of the version."""
    order = RevisionPayload.model_validate(payload)
    job.phase("reading", "Applying the changes")
    changes = Changes.load(order.changes)
    revision = Revision(order, changes, job)
    revision.write()
    (job.out / "refusals.jsonl").touch()
    if not revision.hashes:
        raise UserError(NOTHING_LEFT)
    drafted = sealing.Drafted(
        draft=revision.draft,
        shape=order.shape,
        hashes=np.frombuffer(revision.hashes, dtype=np.uint64),
        flags=np.frombuffer(revision.flags, dtype=np.uint32),
        strata=_given(revision.strata),
        together=_given(revision.together),
        kept=np.frombuffer(revision.kept, dtype=np.int8),
    )
    near = bool(order.rules.get("near_duplicates", True))
    sealed = sealing.seal(job, drafted, job.out / "rows.parquet", percent=order.validation_percent, seed=order.seed, near_duplicates=near)
    return revision.result(sealed)


class Revision:
    """Takes the parent's rows one by one; memory grows by 40 bytes a row."""

    def __init__(self, order: RevisionPayload, changes: Changes, job: Job):
        self.order, self.changes, self.job = order, changes, job
        self.parent = Path(order.rows)
        self.draft = job.work / "draft.parquet"
        self.findings = Findings()
        self.content = hashlib.sha256()
        self.hashes, self.flags, self.kept = array("Q"), array("I"), array("b")
        self.strata, self.together = array("Q"), array("Q")
        self.fates: Counter[str] = Counter()
        self.preview: list[dict[str, Any]] = []

    def write(self) -> None:
        with ExitStack() as stack:
            file = stack.enter_context(pq.ParquetFile(self.parent))
            places = Places.choose(file, self.parent, self.job.out)
            self.writer, self.dropped, self.before = (
                stack.enter_context(rows.RowWriter(path, stores=places.names))
                for path in (self.draft, self.job.out / DROPPED, self.job.out / BEFORE)
            )
            texts, total = Texts(self.parent.parent, stores(file)), file.metadata.num_rows
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                for row, text in zip(table.select(rows.SMALL).to_pylist(), texts.fill(table), strict=True):
                    if row["index"] % REPORT_EVERY == 0:
                        self.job.raise_if_stopped()
                        self.job.progress(row["index"], total, "rows")
                    self._take(row, text, *places.of(row))
            for added in self.changes.added:
                self._add(accepted(added, self.order.shape), line=0, flag=Flag.ADDED, kept=splitting.NEW)
            self.job.progress(total, total, "rows")

    def _take(self, row: dict[str, Any], text: str, store: int, at: int) -> None:
        """One of the parent's rows: kept where it stands, written anew, or left out."""
        parsed = orjson.loads(text)
        fate, becomes = self.changes.fate(row["index"], row["flags"], parsed, self.order.shape)
        self.fates[fate] += 1
        if fate == "dropped":
            _put(self.dropped, row["index"], text, store, at)
            return
        held_back = splitting.VALIDATION if row["split"] == "validation" else splitting.TRAIN
        if fate == "changed":
            _put(self.before, row["index"], text, store, at)
            self._add(becomes, line=row["line"], flag=Flag.CHANGED, kept=held_back, stratum=row["stratum"], together=row["together"])
            return
        self._remember(parsed, text.encode(), row["hash"], 0, held_back, row["stratum"], row["together"])
        _put(self.writer, row["line"], text, store, at)

    def _add(self, row: dict[str, Any], *, line: int, flag: Flag, kept: int, stratum: int = 0, together: int = 0) -> None:
        written = canonical_json(row)
        digest = splitting.row_hash(hashlib.sha256(written).digest())
        self._remember(row, written, digest, flag, kept, stratum, together)
        self.writer.add(line=line, row=written.decode())

    def _remember(self, row: dict[str, Any], written: bytes, digest: int, flags: int, kept: int, stratum: int, together: int) -> None:
        self.findings.count(row)
        self.content.update(written + b"\n")
        for column, value in zip(
            (self.hashes, self.flags, self.kept, self.strata, self.together), (digest, flags, kept, stratum, together), strict=True
        ):
            column.append(value)
        if len(self.preview) < PREVIEWED:
            self.preview.append(shortened(row))

    def result(self, sealed: sealing.Sealed) -> dict[str, Any]:
        count = len(self.hashes)
        return {
            "shape": self.order.shape,
            "format": "",
            "file_format": "",
            "reason": f"Edited from version {self.order.number}." if self.changes else f"The rows of version {self.order.number}.",
            "mapping": {},
            "columns": [],
            "rows": count,
            "refused": 0,
            "duplicates": sealed.duplicates,
            "blank_lines": 0,
            "rows_sha256": self.content.hexdigest(),
            "split": {"train": count - sealed.validation, "validation": sealed.validation},
            "statistics": self.findings.statistics(),
            "notices": self._notices(),
            "warnings": self._warnings(sealed),
            "preview": self.preview,
            **sealed.told,
            "strata": sealing.strata_facts(sealed, self.order.strata),
            "changes": {
                "added": len(self.changes.added),
                "changed": self.fates["changed"],
                "dropped": self.fates["dropped"],
            },
            "tokens": None,
        }

    def _notices(self) -> list[str]:
        if not (number := self.fates["unfixed"]):
            return []
        rest = (
            "row would not be one any more once it is fixed, so it stays"
            if number == 1
            else "rows would be none once they are fixed, so they stay"
        )
        return [f"{number} {rest} as before. Edit or drop what you do not want."]

    def _warnings(self, sealed: sealing.Sealed) -> list[str]:
        count, told = len(self.hashes), []
        if count < FEW:
            told.append(
                f"Only {count} {'row is' if count == 1 else 'rows are'} left. Training needs at least {FEW} to learn anything that lasts."
            )
        if sealed.duplicates:
            repeated = "row repeats an earlier one" if sealed.duplicates == 1 else "rows repeat earlier ones"
            told.append(f"{max(1, round(100 * sealed.duplicates / count))} % duplicates: {sealed.duplicates} {repeated} exactly.")
        if self.order.validation_percent > 0 and not sealed.validation:
            told.append("Too few different rows to hold any back for validation: the run will show no validation loss.")
        return told + sealed.warnings


@dataclass(frozen=True)
class Places:
    """Where the texts of the parent's rows stand for the child: in a file that is linked beside its own, or nowhere but in its own."""

    names: list[str]
    """The child's stores."""
    numbers: dict[int, int]
    """The parent's store -> the child's, or COPIED."""

    @classmethod
    def choose(cls, file: pq.ParquetFile, parent: Path, folder: Path) -> "Places":
        """The original files are linked, never a file of links: there are no chains."""
        used: npt.NDArray[np.int16] = file.read(columns=["store"])["store"].to_numpy()
        known, counts = np.unique(used, return_counts=True)
        largest = [int(known[place]) for place in np.argsort(-counts, kind="stable") if counts[place] >= LEAST_SHARE * len(used)]
        names: list[str] = []
        numbers: dict[int, int] = dict.fromkeys(known.tolist(), COPIED)
        for store in largest[:MOST_STORES]:
            original = parent if store == HERE else parent.parent / stores(file)[store]
            numbers[store] = len(names)
            names.append(rows.link_store(original, folder))
        return cls(names, numbers)

    def of(self, row: dict[str, Any]) -> tuple[int, int]:
        """(store, place in it) of one of the parent's rows."""
        return self.numbers[row["store"]], row["index"] if row["store"] == HERE else row["at"]


def _put(writer: rows.RowWriter, line: int, text: str, store: int, at: int) -> None:
    if store == COPIED:
        writer.add(line=line, row=text)
    else:
        writer.keep(line=line, store=store, at=at)


def _given(values: "array[int]") -> npt.NDArray[np.uint64] | None:
    """None where no row has a value: the split then does not go by that column."""
    found = np.frombuffer(values, dtype=np.uint64)
    return found if found.any() else None
