"""Looks at all rows of a draft once: at each by itself, at what they have to do with each other, and at their languages. Flat memory."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from studio.datasets import comparing, findings
from studio.datasets.flags import Flag
from studio.datasets.languages import Languages
from studio.datasets.splitting import Hashes
from studio.rowfile import Texts, stores
from studio.training.job import Job

SAMPLED_GROUPS, SAMPLED = 10, 300
"""Row groups that templates are told from, evenly spread, and rows of each."""
SAMPLED_CHARACTERS = 2_000_000
"""Of all of them, at most."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    flags: npt.NDArray[np.uint32]
    groups: npt.NDArray[np.int64]
    """The least index of each row's near-duplicates, ALONE for a row that has none."""
    questions: npt.NDArray[np.uint64]
    """Equal for equal questions; NO_QUESTION for a text."""
    languages: dict[str, Any]
    warnings: list[str]


def look(job: Job, draft: Path, folder: Path, hashes: Hashes) -> Looked:
    """Everything but what goes by the split. The draft's stores lie in `folder`. Raises Stopped once a stop was asked for."""
    total = len(hashes)
    firsts = comparing.Firsts.among(hashes)
    different = firsts.different
    alone, languages = findings.Alone(), Languages(total)
    flags = np.zeros(total, dtype=np.uint32)
    questions, answers = np.zeros(total, dtype=np.uint64), np.zeros(total, dtype=np.uint64)
    sketched = job.work / "sketches"
    with comparing.Sketches(sketched, _common(draft, folder, different)) as sketches:
        for begin, canonical, rows in _batches(draft, folder):
            job.raise_if_stopped()
            job.progress(begin, total, "rows")
            flags[begin : begin + len(rows)] = alone.look(canonical, rows)
            for index, row in enumerate(rows, start=begin):
                questions[index], answers[index] = comparing.question_and_answer(row)
                languages.look(index, findings.answer_of(row))
                if different[index]:
                    sketches.add(comparing.compared_text(row))

    def heed(done: int, of: int) -> None:
        job.raise_if_stopped()
        job.progress(total * done / of, total, "rows")

    flags[comparing.conflicts(questions, answers)] |= np.uint32(Flag.CONFLICT)
    del answers
    pa.default_memory_pool().release_unused()
    groups = firsts.groups(comparing.clusters(sketched, sketches.count, heed=heed))
    shutil.rmtree(sketched)
    flags[~different] |= np.uint32(Flag.DUPLICATE)
    flags[comparing.near(groups, hashes)] |= np.uint32(Flag.NEAR_DUPLICATE)
    flags[languages.others()] |= np.uint32(Flag.LANGUAGE)
    return Looked(flags=flags, groups=groups, questions=questions, languages=languages.facts(), warnings=alone.warnings())


def _batches(draft: Path, folder: Path) -> Iterator[tuple[int, pa.Array, list[dict[str, Any]]]]:
    """(index of the first, canonical JSON, parsed) of the rows of each row group."""
    with pq.ParquetFile(draft) as file:
        source = Texts(folder, stores(file))
        begin = 0
        for group in range(file.num_row_groups):
            texts = source.fill(file.read_row_group(group, columns=["store", "at", "row"]))
            yield begin, pa.array(texts, pa.large_string()), [orjson.loads(text) for text in texts]
            begin += len(texts)


def _common(draft: Path, folder: Path, different: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """The pairs of words that templates are made of, told from a sample of the different rows."""
    with pq.ParquetFile(draft) as file:
        source = Texts(folder, stores(file))
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        begins = np.concatenate([[0], np.cumsum(sizes)])
        texts: list[str] = []
        room = SAMPLED_CHARACTERS
        for group in np.unique(np.linspace(0, len(sizes) - 1, SAMPLED_GROUPS).astype(int)).tolist():
            own = different[begins[group] : begins[group + 1]]
            filled = source.fill(file.read_row_group(group, columns=["store", "at", "row"]))
            for place in np.flatnonzero(own)[:SAMPLED].tolist() if room > 0 else ():
                texts.append(comparing.compared_text(orjson.loads(filled[place]))[:room])
                room = max(0, room - len(texts[-1]))
    return comparing.common_pairs(texts)
