"""A version made of others: how many rows each gives (`plan`), and the order that takes them (`run`). No Django.

Rows are taken by their hash, so the same ones for the same seed. A row's text stays where it is: the new version links the file. What was
held back in a part stays held back, and is taken once however often the others are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from studio.datasets import rows, sealing, splitting
from studio.datasets.findings import FEW, Findings
from studio.datasets.flags import Flag
from studio.datasets.importing import PREVIEWED, shortened
from studio.errors import UserError
from studio.rowfile import HERE, Texts, stores
from studio.training.job import Job
from studio.training.orders import MixPart, MixPayload

MOST_PARTS = 20
MOST_TIMES = 100
MOST_ROWS = 20_000_000
"""Rows of a version made of others; what is kept of each in memory comes to some gigabytes then."""
COMPARED = Flag.DUPLICATE | Flag.NEAR_DUPLICATE | Flag.CONFLICT | Flag.LEAKAGE | Flag.ADDED | Flag.CHANGED
"""What is told anew of rows that stand among others now."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody wants of one part: so many times its rows, or a share of all rows to train on; and never more than `most`."""

    train: int
    validation: int
    """What the part has."""
    times: float | None = None
    share: float | None = None
    """Per cent."""
    most: int | None = None


@dataclass(frozen=True)
class Taken:
    train: int
    validation: int

    @property
    def rows(self) -> int:
        return self.train + self.validation


def plan(wishes: Sequence[Wish]) -> list[Taken]:
    """How many rows each part gives. Where all give a share, as many as there are without repeating any.

    Raises UserError for shares that come to more than there is.
    """
    if not wishes:
        raise UserError("Choose at least one part.", fields={"parts": "Choose at least one part."})
    shares = sum(wish.share or 0 for wish in wishes)
    fixed = [None if wish.share is not None else _capped(wish, wish.times or 0.0) for wish in wishes]
    known = sum(taken.train for taken in fixed if taken)
    if all(taken is None for taken in fixed):
        if abs(shares - 100) > 0.01:
            raise _off(f"The shares come to {shares:g} %. They must come to 100 %, or give one part a number of times instead.")
        total = min(wish.train / (wish.share / 100) for wish in wishes if wish.share)
    else:
        if shares >= 100:
            raise _off(f"The shares come to {shares:g} %, so nothing is left for the other parts. They must come to less than 100 %.")
        total = known / (1 - shares / 100)
    return [
        taken or _capped(wish, (total * (wish.share or 0) / 100) / wish.train if wish.train else 0.0)
        for wish, taken in zip(wishes, fixed, strict=True)
    ]


def _off(sentence: str) -> UserError:
    return UserError("The shares are off.", fields={"parts": sentence})


def _capped(wish: Wish, times: float) -> Taken:
    train, held = round(wish.train * times), min(wish.validation, round(wish.validation * times))
    if wish.most is not None and train + held > wish.most:
        held_share = wish.most * held / (train + held)
        held = min(wish.validation, round(held_share))
        train = wish.most - held
    return Taken(train, held)


def check(wishes: Sequence[Wish]) -> list[Taken]:
    """`plan`, for what may be asked for. Raises UserError with a sentence where it may not."""
    if len(wishes) > MOST_PARTS:
        raise UserError("Too many parts.", fields={"parts": f"At most {MOST_PARTS} versions can be mixed."})
    for wish in wishes:
        if (wish.times is None) == (wish.share is None):
            raise _off("Give each part a number of times or a share, not both.")
        if wish.times is not None and not 0 < wish.times <= MOST_TIMES:
            raise _off(f"Times must be above 0 and at most {MOST_TIMES}.")
        if wish.share is not None and not 0 < wish.share <= 100:
            raise _off("A share must be above 0 and at most 100 %.")
        if wish.most is not None and not 1 <= wish.most <= MOST_ROWS:
            raise _off(f"At most must be from 1 to {MOST_ROWS:,} rows.")
    taken = plan(wishes)
    if sum(part.rows for part in taken) > MOST_ROWS:
        raise _off(f"That would be {sum(part.rows for part in taken):,} rows. At most {MOST_ROWS:,} can be mixed.")
    if not any(part.train for part in taken):
        raise _off("No row would be left to train on. Take more of a part.")
    if any(part.train > wish.train * MOST_TIMES for part, wish in zip(taken, wishes, strict=True)):
        raise _off(f"A part would have to be repeated more than {MOST_TIMES} times. Give it a smaller share.")
    return taken


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Writes job.out/rows.parquet from the rows of other versions; returns what an import does, and `parts`."""
    order = MixPayload.model_validate(payload)
    job.phase("reading", "Taking the rows")
    without = [rows.column(Path(path), "hash") for path in order.without]
    left_out = np.unique(np.concatenate(without)) if without else np.empty(0, dtype=np.uint64)
    parts = [Part(part, left_out, seed=order.seed) for part in order.parts]
    names = list(dict.fromkeys(name for part in parts for name in part.linked(job.out)))
    target = job.out / "rows.parquet"
    intake = Intake(total=sum(part.rows for part in parts))
    draft = job.work / "draft.parquet"
    with rows.RowWriter(draft, stores=names) as writer:
        for part in parts:
            for place in part.places(names):
                if intake.count % 500 == 0:
                    job.raise_if_stopped()
                    job.progress(intake.count, intake.total, "rows")
                intake.add(place.text)
                writer.keep(line=place.line, store=place.store, at=place.at)
    if not intake.count:
        raise UserError("No row is left. Take more of a part, or leave less out.")
    job.progress(intake.count, intake.total, "rows")
    drafted = sealing.Drafted(
        draft=draft,
        shape=order.shape,
        hashes=joined(parts, "hash"),
        flags=joined(parts, "flags") & np.uint32(~int(COMPARED) & 0xFFFFFFFF),
        strata=joined(parts, "stratum") if any(part.has("stratum") for part in parts) else None,
        together=joined(parts, "together") if any(part.has("together") for part in parts) else None,
        kept=np.concatenate([part.kept for part in parts]) if order.keep else None,
    )
    sealed = sealing.seal(job, drafted, target, percent=order.validation_percent, seed=order.seed, near_duplicates=order.near_duplicates)
    (job.out / "refusals.jsonl").touch()
    return facts(order, parts, intake, sealed, drafted, target)


@dataclass(frozen=True, slots=True)
class Place:
    """One row that is taken: its text, and where that stands."""

    text: str
    line: int
    store: int
    """Its number among the new version's stores."""
    at: int


class Part:
    """The rows that one version gives, in the order in which they are taken: pass by pass, each in the version's own order."""

    def __init__(self, part: MixPart, left_out: npt.NDArray[np.uint64], *, seed: int):
        self.part, self.path = part, Path(part.rows)
        self.own = pq.read_table(self.path, columns=["hash", "split", "flags", "store", "stratum", "together"])
        hashes = self.own["hash"].to_numpy()
        held = pc.equal(self.own["split"], "validation").to_numpy()
        free = ~np.isin(hashes, left_out)
        self.left_out = int(len(hashes) - free.sum())
        train, validation = np.flatnonzero(free & ~held), np.flatnonzero(free & held)
        # What is left out is not made up for: the others are taken as often as they would have been.
        wanted, once = (
            round(number * len(left) / max(1, there))
            for number, left, there in ((part.train, train, (~held).sum()), (part.validation, validation, held.sum()))
        )
        passes = list(_passes(hashes, train, wanted, seed=seed))
        self.repeats = sum(map(len, passes[1:]))
        held_back = validation[splitting.sample(hashes[validation], once, seed=seed)]
        self.passes = [np.sort(np.concatenate([*passes[:1], held_back])), *passes[1:]]
        self.indices = np.concatenate(self.passes)
        self.kept = held[self.indices].astype(np.int8)

    @property
    def rows(self) -> int:
        return len(self.indices)

    def column(self, name: str) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self.own[name].to_numpy()[self.indices]
        if name == "together" and self.part.origin:
            # What "conversation 1" is in one dataset has nothing to do with another's.
            found = np.where(found != splitting.NOTHING, splitting.seeded(found, self.part.origin) | np.uint64(1), found)
        return found

    def has(self, name: str) -> bool:
        return bool(self.column(name).any())

    def linked(self, folder: Path) -> list[str]:
        """The names of the files that the texts of its rows stand in, now linked into `folder`."""
        with pq.ParquetFile(self.path) as file:
            known = stores(file)
        used = np.unique(self.own["store"].to_numpy()[self.indices]).tolist()
        originals = {store: self.path if store == HERE else self.path.parent / known[store] for store in used}
        self.stores = {store: rows.link_store(original, folder) for store, original in originals.items()}
        return list(self.stores.values())

    def places(self, names: list[str]) -> Iterator[Place]:
        """The rows that are taken, one row group in memory at a time. `names` are the new version's stores."""
        numbers = {store: names.index(name) for store, name in self.stores.items()}
        with pq.ParquetFile(self.path) as file:
            source = Texts(self.path.parent, stores(file))
            ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
            for indices in self.passes:
                for group in np.unique(np.searchsorted(ends, indices, side="right")).tolist():
                    begin = int(ends[group - 1]) if group else 0
                    here = indices[np.searchsorted(indices, begin) : np.searchsorted(indices, int(ends[group]))]
                    table = file.read_row_group(group, columns=["line", "store", "at", "row"]).take(pa.array(here - begin))
                    columns = (
                        table["line"].to_pylist(),
                        table["store"].to_pylist(),
                        table["at"].to_pylist(),
                        source.fill(table),
                        here.tolist(),
                    )
                    for line, store, at, text, index in zip(*columns, strict=True):
                        yield Place(text, line, numbers[store], index if store == HERE else at)


def _passes(hashes: splitting.Hashes, train: splitting.Numbers, wanted: int, *, seed: int) -> Iterator[splitting.Numbers]:
    """The rows to train on: all of them as often as that goes, then some."""
    while len(train) and wanted > 0:
        yield train[splitting.sample(hashes[train], min(wanted, len(train)), seed=seed)]
        wanted -= len(train)


def joined(parts: Sequence[Part], name: str) -> npt.NDArray[Any]:
    return np.concatenate([part.column(name) for part in parts])


@dataclass
class Intake:
    """What is told of the rows as they are taken."""

    total: int
    count: int = 0
    findings: Findings = field(default_factory=Findings)
    preview: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content = hashlib.sha256()

    def add(self, text: str) -> None:
        canonical = text.encode()
        row = orjson.loads(canonical)
        self.content.update(canonical + b"\n")
        self.findings.count(row)
        if self.count < PREVIEWED:
            self.preview.append(shortened(row))
        self.count += 1


def facts(
    order: MixPayload, parts: Sequence[Part], intake: Intake, sealed: sealing.Sealed, drafted: sealing.Drafted, target: Path
) -> dict[str, Any]:
    """The same names as an import has, for the same pages."""
    told = part_facts(parts, target)
    single = len(parts) == 1
    return {
        "shape": order.shape,
        "format": "split" if single and not order.keep else "mix",
        "file_format": "",
        "reason": f"Taken from {parts[0].part.name}." if single else f"Mixed from {_listed([part.part.name for part in parts])}.",
        "mapping": {},
        "columns": [],
        "rows": intake.count,
        "refused": 0,
        "duplicates": sealed.duplicates,
        "blank_lines": 0,
        "rows_sha256": intake.content.hexdigest(),
        "split": {"train": intake.count - sealed.validation, "validation": sealed.validation},
        "strata": sealing.strata_facts(sealed, order.strata),
        "statistics": intake.findings.statistics(),
        **sealed.told,
        "notices": notices(order, parts),
        "warnings": warnings(order, parts, intake, sealed),
        "preview": intake.preview,
        "parts": told,
    }


def part_facts(parts: Sequence[Part], target: Path) -> list[dict[str, Any]]:
    """Of each part: its version, the rows that it gave (indices `begin` up to `end`), and how they are split now."""
    held = pc.equal(pq.read_table(target, columns=["split"])["split"], "validation").to_numpy()
    told, begin = [], 0
    for part in parts:
        here = held[begin : begin + part.rows]
        told.append(
            {
                "version": part.part.version,
                "name": part.part.name,
                "begin": begin,
                "end": begin + part.rows,
                "rows": part.rows,
                "train": int((~here).sum()),
                "validation": int(here.sum()),
                "of": len(part.own),
                "repeated": part.repeats,
                "left_out": part.left_out,
                "moved": int((here & (part.kept == splitting.TRAIN)).sum()),
            }
        )
        begin += part.rows
    return told


def notices(order: MixPayload, parts: Sequence[Part]) -> list[str]:
    told = []
    for part in parts:
        if part.left_out:
            told.append(f"{_counted(part.left_out)} of {part.part.name} left out, since a held-out set has them too.")
        if part.repeats:
            told.append(f"{part.part.name} gives more rows than it has: {_counted(part.repeats)} to train on repeat earlier ones of it.")
    return told


def warnings(order: MixPayload, parts: Sequence[Part], intake: Intake, sealed: sealing.Sealed) -> list[str]:
    told = []
    if intake.count < FEW:
        told.append(f"Only {_counted(intake.count)} can be used. Training needs at least {FEW} to learn anything that lasts.")
    unasked = sealed.duplicates - sum(part.repeats for part in parts)
    if unasked > 0:
        told.append(f"{max(1, round(100 * unasked / intake.count))} % duplicates: {_counted(unasked)} repeat earlier ones exactly.")
    moved = sealed.validation - sum(int((part.kept == splitting.VALIDATION).sum()) for part in parts)
    if order.keep and moved > 0:
        told.append(f"{_counted(moved)} to train on resemble rows held back in another part. They are held back too.")
    if not sealed.validation and order.validation_percent > 0:
        told.append("No rows are held back for validation: the run will show no validation loss.")
    return told + sealed.warnings


def _counted(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
