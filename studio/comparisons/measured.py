"""What a comparison's measuring left, judged and ready to compute with: losses by row, answers with their scores, and facts.

The files are a worker's, who has loaded models that learnt from strangers' rows: sizes are bounded, and numbers that cannot be are refused.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from studio.comparisons.models import Comparison
from studio.errors import UserError
from studio.training.scoring import metrics_of
from studio.worker.events import clean

log = logging.getLogger(__name__)
Set = Literal["held_out", "probe"]
Key = tuple[int, int]
"""(arm, seed). Arm -1 is the untouched base model, with seed 0; where arms have several, -1 - number of the first arm with it."""
Values = npt.NDArray[np.float64]

MOST_ROWS, MOST_PROMPTS, MOST_RESULTS = 2000, 200, 500
"""Rows of a set and prompts that a `ComparisonPayload` can ask for, and results with the untouched models."""
LARGEST_TEXTS = 64 << 20
"""Bytes of a file of texts."""
SETS = ("held_out", "probe")
FEW = 64
"""Rows of which names are read at a time."""
LARGEST_TABLE, LARGEST_ROW = 64 << 10, 128
"""Bytes of a table without rows, and of each row, as it lies there: more than any that was written takes."""
COLUMNS = {
    "arm": pa.int16(),
    "seed": pa.int64(),
    "set": pa.string(),
    "row": pa.int32(),
    "loss": pa.float64(),
    "tokens": pa.int32(),
    "characters": pa.int32(),
    "kl": pa.float64(),
}
SCHEMA = pa.schema(list(COLUMNS.items()))
"""Of rows.parquet. A row that was too long for a result is not there."""
READ = SCHEMA.set(SCHEMA.get_field_index("set"), pa.field("set", pa.dictionary(pa.int32(), pa.string())))
"""As it is read: a name is held once, not once for each of its rows."""
PACKED = ("UNCOMPRESSED", "SNAPPY")
"""Neither unpacks to more than some twenty times its bytes."""

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, StringConstraints(max_length=20_000)]
Name = Annotated[str, StringConstraints(max_length=200)]


class Told(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class Answer(Told):
    """One of a result's answers to the prompts."""

    arm: int = Field(ge=-1000, le=1000)
    seed: int
    prompt: int = Field(ge=0, lt=MOST_PROMPTS)
    text: Text
    tokens: int = Field(ge=0, le=1_000_000)
    seconds: float = Field(ge=0)
    """From the question to its end. Several are written side by side; how quick one alone is stands in the facts."""
    first: float = Field(ge=0)
    """Seconds to the first token."""
    scores: dict[str, Share] = Field(default={}, max_length=20)
    """By the metric's name. A judge that gave no grade has none here."""
    overlap: Share = 0.0
    """Share of its words that stand in runs of eight or more as they stand in a training row."""


class Prompt(Told):
    prompt: list[dict[str, Any]] | str
    """The conversation up to the answer, or the beginning of a text."""
    shown: Text
    expected: Text


class Result(Told):
    """What one result is, beside what it answers."""

    arm: int = Field(ge=-1000, le=1000)
    seed: int
    size: int = Field(0, ge=0)
    """Bytes of its folder: what one more variant takes."""
    gguf_size: int | None = Field(None, ge=0)
    """Bytes, about, of the whole model, merged where it is an adapter, as a q8_0; None where it cannot be built."""
    gguf_adapter_size: int | None = Field(None, ge=0)
    """Bytes, about, of the adapter alone as an f16 GGUF; None of a whole model."""
    trainable: int = Field(0, ge=0)
    """Numbers that it stores of its own."""
    first_token: float | None = Field(None, ge=0)
    """Seconds to the first token, on the machine that measured: the median of some prompts asked one after another."""
    tokens_per_second: float | None = Field(None, ge=0)
    memorised: list[Share] | None = Field(None, max_length=MOST_PROMPTS)
    """For each training row whose beginning it was given: the share of the words that it went on with in verbatim runs of eight or more."""


class Facts(Told):
    results: list[Result] = Field(max_length=MOST_RESULTS)
    bases: dict[int, int] = {}
    """Arm number -> the arm that stands for its untouched base model; -1 where not told."""
    probe: Name = ""
    """What the probe rows are called."""
    held_out: int = Field(0, ge=0)
    """Held-out rows that were measured."""
    of: int = Field(0, ge=0)
    """Held-out rows that there were to choose from; 0 where an earlier measuring did not tell."""
    left_out: int = Field(0, ge=0)
    """Rows, held out or of the probe, that were left out because an arm was trained on them."""
    memorised_from: Name = ""
    """Which training rows' beginnings were given."""
    ungraded: int = Field(0, ge=0)
    """Answers of which a judge said nothing that is a grade."""
    host: Name = ""
    """The machine that measured, in words."""


@dataclass(frozen=True)
class Asked:
    """What a comparison had measured. A worker's answer that holds anything else is refused."""

    keys: frozenset[Key]
    """Each arm with each seed, and what can stand for their untouched models."""
    metrics: frozenset[str]

    @classmethod
    def of(cls, comparison: Comparison) -> "Asked":
        arms = list(comparison.arms.values_list("number", flat=True))
        bases = {(-1 - number, 0) for number in [0, *arms]}
        results = {(number, seed) for number in arms for seed in comparison.seeds}
        return cls(frozenset(bases | results), frozenset(metric.name for metric in metrics_of(comparison.metrics)))


@dataclass(frozen=True)
class Measured:
    """Everything that was measured. Keys are (arm, seed); the untouched base model is `base_of(arm)` with seed 0."""

    table: dict[str, npt.NDArray[Any]]
    """The columns of rows.parquet."""
    all_answers: dict[Key, list[Answer]]
    """By prompt."""
    prompts: list[Prompt]
    facts: Facts

    @classmethod
    def of(cls, comparison: Comparison) -> "Measured":
        """Raises UserError where it was not measured, or what was is gone."""
        folder = folder_of(comparison)
        if folder is None or not (folder / "facts.json").is_file():
            raise UserError("This comparison has not been measured yet. Measure it first.")
        with told_as_damaged(comparison):
            return read(folder, Asked.of(comparison))

    @property
    def keys(self) -> list[Key]:
        """The results that were measured, untouched models first."""
        return sorted({(result.arm, result.seed) for result in self.facts.results})

    def base_of(self, arm: int) -> int:
        """The arm number that stands for the untouched base model of an arm."""
        return self.facts.bases.get(arm, -1)

    def result(self, arm: int, seed: int) -> Result | None:
        return next((result for result in self.facts.results if (result.arm, result.seed) == (arm, seed)), None)

    def rows(self, of: Set) -> npt.NDArray[np.int32]:
        """The numbers of the rows that every result could read whole, rising."""
        return self._aligned[of][0]

    def losses(self, of: Set) -> dict[Key, Values]:
        """Nats of each row's answers, aligned with `rows(of)`."""
        return self._column(of, "loss")

    def tokens(self, of: Set) -> dict[Key, Values]:
        """Supervised tokens of each row, as that result's tokenizer reads it."""
        return self._column(of, "tokens")

    def characters(self, of: Set) -> dict[Key, Values]:
        """Characters of each row's answers: what losses are divided by where arms read in other tokens."""
        return self._column(of, "characters")

    def kl(self) -> dict[Key, Values]:
        """KL(base || arm) of the probe rows in nats per token; NaN where it cannot be told. Without the untouched models."""
        return {key: values for key, values in self._column("probe", "kl").items() if key[0] >= 0}

    def same_tokens(self, of: Set) -> bool:
        """Whether all results read the rows in as many tokens, so that losses per token can be compared."""
        each = list(self.tokens(of).values())
        return all(bool((values == each[0]).all()) for values in each)

    def answers(self, arm: int, seed: int) -> list[Answer]:
        """In the order of the prompts; [] where none were measured."""
        return self.all_answers.get((arm, seed), [])

    def scores(self, metric: str) -> dict[Key, Values]:
        """By prompt, from 0 to 1; NaN where the metric said nothing."""
        return {key: self._by_prompt(answers, metric) for key, answers in self.all_answers.items()}

    def overlap(self) -> dict[Key, Values]:
        """By prompt: the share of the answer's words that stand verbatim in a training row."""
        return {key: np.array([answer.overlap for answer in answers], dtype=float) for key, answers in self.all_answers.items()}

    def memorised(self) -> dict[Key, Values]:
        """By training row: the share of the words that a result went on with verbatim."""
        return {
            (result.arm, result.seed): np.array(result.memorised, dtype=float)
            for result in self.facts.results
            if result.memorised is not None
        }

    def _by_prompt(self, answers: list[Answer], metric: str) -> Values:
        found = np.full(len(self.prompts), np.nan)
        for answer in answers:
            found[answer.prompt] = answer.scores.get(metric, np.nan)
        return found

    def _column(self, of: Set, name: str) -> dict[Key, Values]:
        return {key: self.table[name][places].astype(np.float64) for key, places in self._aligned[of][1].items()}

    @cached_property
    def _aligned(self) -> dict[str, tuple[npt.NDArray[np.int32], dict[Key, npt.NDArray[np.intp]]]]:
        return {name: self._align(name) for name in ("held_out", "probe")}

    def _align(self, name: str) -> tuple[npt.NDArray[np.int32], dict[Key, npt.NDArray[np.intp]]]:
        """The rows that all have, and for each result where in the table they stand."""
        inside = np.flatnonzero(self.table["set"] == name)
        places: dict[Key, npt.NDArray[np.intp]] = {}
        for key in self.keys:
            mine = inside[(self.table["arm"][inside] == key[0]) & (self.table["seed"][inside] == key[1])]
            places[key] = mine[np.argsort(self.table["row"][mine], kind="stable")]
        common: npt.NDArray[np.int32] = np.array([], dtype=np.int32)
        for number, mine in enumerate(places.values()):
            rows = self.table["row"][mine]
            common = rows if number == 0 else np.intersect1d(common, rows, assume_unique=True)
        return common, {key: mine[np.isin(self.table["row"][mine], common)] for key, mine in places.items()}


def folder_of(comparison: Comparison) -> Path | None:
    """Where its measuring order leaves its files; None before there is one."""
    return comparison.order.folder / "result" if comparison.order else None


@contextmanager
def told_as_damaged(comparison: Comparison) -> Iterator[None]:
    """Whoever reads what was measured long ago meets a disk that lost some of it. Raises UserError of code "damaged" then."""
    try:
        yield
    except (ValueError, OSError, pa.ArrowException) as problem:
        log.warning("What was measured of comparison %s cannot be read: %r", comparison.pk, problem)
        raise UserError("What was measured of this comparison is damaged on the disk. Measure it again.", code="damaged") from problem


def read(folder: Path, asked: Asked) -> Measured:
    """The four files of a result. Raises ValueError, as pydantic's is one, for what cannot have been measured of this comparison."""
    facts = facts_of(folder, asked)
    prompts = prompts_of(folder)
    known = {(result.arm, result.seed) for result in facts.results}
    return Measured(table_of(folder / "rows.parquet", known), answers_of(folder, known, prompts, asked), prompts, facts)


def facts_of(folder: Path, asked: Asked) -> Facts:
    facts = Facts.model_validate(orjson.loads(bounded(folder / "facts.json")))
    known = {(result.arm, result.seed) for result in facts.results}
    if len(known) < len(facts.results):
        raise ValueError("a result was told twice")
    if not known <= asked.keys:
        raise ValueError("a result of an arm or a seed that there is none of")
    return facts


def prompts_of(folder: Path) -> list[Prompt]:
    return cleaned([Prompt.model_validate(line) for line in lines(folder / "prompts.jsonl", most=MOST_PROMPTS)])


def table_of(path: Path, known: set[Key]) -> dict[str, npt.NDArray[Any]]:
    most = len(SETS) * MOST_ROWS * max(1, len(known))
    if path.stat().st_size > LARGEST_TABLE + LARGEST_ROW * most:
        raise ValueError("the table is larger than any that was measured")
    with pq.ParquetFile(path, read_dictionary=["set"]) as file:
        refuse_bomb(file, most=most)
        sets = sets_of(file)
        table = file.read(columns=[name for name in COLUMNS if name != "set"])
    if any(table[name].null_count for name in table.column_names if name != "kl"):
        raise ValueError("a measured number is missing")
    found: dict[str, npt.NDArray[Any]] = {
        name: pc.cast(table[name], pa.float64()).to_numpy() if name == "kl" else table[name].to_numpy() for name in table.column_names
    }
    found["set"] = sets
    refuse_impossible(found, known)
    return found


def refuse_bomb(file: pq.ParquetFile, *, most: int) -> None:
    """Raises ValueError before anything is unpacked: for other columns than were asked for, more rows, or another packing."""
    if not file.schema_arrow.equals(READ):
        raise ValueError("the table has other columns than were measured")
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    if max(file.metadata.num_rows, sum(group.num_rows for group in groups)) > most:
        raise ValueError("the table has more rows than were measured")
    if any(group.column(number).compression not in PACKED for group in groups for number in range(group.num_columns)):
        raise ValueError("the table is packed as none that was measured")


def sets_of(file: pq.ParquetFile) -> npt.NDArray[Any]:
    """The set of each row, read a few rows at a time, so that names which are none are met before they fill the memory."""
    found = [np.array([], dtype=object)]
    for batch in file.iter_batches(batch_size=FEW, columns=["set"]):
        column = batch.column(0)
        if column.null_count or len(column.dictionary) > len(SETS):
            raise ValueError("a set of rows that there is none of")
        names = column.dictionary.to_pylist()
        if not set(names) <= set(SETS):
            raise ValueError("a set of rows that there is none of")
        found.append(np.array(names, dtype=object)[column.indices.to_numpy()])
    return np.concatenate(found)


def refuse_impossible(table: dict[str, npt.NDArray[Any]], known: set[Key]) -> None:
    if not (np.isfinite(table["loss"]).all() and (table["loss"] >= 0).all()):
        raise ValueError("a loss is no number, or negative")
    if np.isinf(table["kl"]).any() or (table["kl"] < 0).any():
        raise ValueError("a divergence is no number, or negative")
    if (table["tokens"] < 1).any() or (table["characters"] < 0).any():
        raise ValueError("a row without tokens")
    if ((table["row"] < 0) | (table["row"] >= MOST_ROWS)).any():
        raise ValueError("a row that there is none of")
    told = list(zip(table["arm"].tolist(), table["seed"].tolist(), table["set"].tolist(), table["row"].tolist(), strict=True))
    if len(set(told)) < len(told):
        raise ValueError("a row was measured twice")
    if not {key[:2] for key in told} <= known:
        raise ValueError("rows of a result that the facts do not name")


def answers_of(folder: Path, known: set[Key], prompts: Sequence[Prompt], asked: Asked) -> dict[Key, list[Answer]]:
    found: dict[Key, dict[int, Answer]] = {}
    for line in lines(folder / "answers.jsonl", most=len(prompts) * max(1, len(known))):
        answer = Answer.model_validate(line)
        key = (answer.arm, answer.seed)
        if key not in known or answer.prompt >= len(prompts) or answer.prompt in found.setdefault(key, {}):
            raise ValueError("an answer of nobody, to nothing, or given twice")
        if not asked.metrics.issuperset(answer.scores):
            raise ValueError("a score by a metric that was not asked for")
        found[key][answer.prompt] = answer.model_copy(update={"text": clean(answer.text)})
    return {key: [by_prompt[number] for number in sorted(by_prompt)] for key, by_prompt in found.items()}


def cleaned(prompts: list[Prompt]) -> list[Prompt]:
    return [prompt.model_copy(update={"shown": clean(prompt.shown), "expected": clean(prompt.expected)}) for prompt in prompts]


def lines(path: Path, *, most: int) -> Iterator[Any]:
    for number, line in enumerate(bounded(path).splitlines()):
        if number >= most:
            raise ValueError(f"{path.name} has more lines than were asked for")
        yield orjson.loads(line)


def bounded(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_TEXTS:
        raise ValueError(f"{path.name} is larger than any that was measured")
    return path.read_bytes()
