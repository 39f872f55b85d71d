"""The order "comparison": what each arm's results make of held-out rows, of general rows, of prompts, and of the rows they learnt from.

One model is in memory at a time. What was measured of a result stands in a file that outlives the attempt, part by part, so a lost
worker's work is gone on from. Losses are of rows that no arm was trained on; the divergence from the base model goes by the base's hidden
states, from which its logits follow exactly, so no table of rows × vocabulary is ever kept.
"""

import gc
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from studio import rowfile
from studio.errors import UserError
from studio.ml import generating, memorising, scores, together
from studio.ml.comparedrows import Chosen, chosen
from studio.ml.divergence import divergence
from studio.ml.evaluating import LONGEST_TEXT
from studio.ml.gguf import budget
from studio.ml.heldout import Question, answers_of, as_asked
from studio.ml.loading import choose_reader
from studio.ml.loss import Head
from studio.ml.memorising import Beginning
from studio.ml.releasedmodel import ADAPTER, Released, load, memory_of
from studio.ml.rowlosses import Row, batches, longest_for, loss_of, readable, refuse_no_numbers, row_losses, states_of
from studio.training.job import Job
from studio.training.orders import ComparedArm, ComparedResult, ComparisonPayload, EvaluatedModel
from studio.training.scoring import Judge
from studio.worker.host import cpu_count

LONGEST_PROBE = 512
"""Tokens of a general row."""
TIMED, TIMED_TOKENS = 3, 16
"""Prompts, and tokens of each, by which one answer alone is timed."""
CONTINUED_TOKENS = 32
"""That a training row's beginning is gone on with."""
GRADE_TOKENS = 16
F16, GGUF_HEADER = 2, 20_000
"""Bytes of a number of a GGUF adapter, and of the names that stand before them."""
CANNOT_LOAD = (UserError, OSError, ValueError, RuntimeError, LookupError, MemoryError, SafetensorError)
"""What a judge raises that does not fit, is gone, or is no model."""
SCHEMA = pa.schema(
    [
        ("arm", pa.int16()),
        ("seed", pa.int64()),
        ("set", pa.string()),
        ("row", pa.int32()),
        ("loss", pa.float64()),
        ("tokens", pa.int32()),
        ("characters", pa.int32()),
        ("kl", pa.float64()),
    ]
)

Lines = list[dict[str, Any]]


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves rows.parquet, prompts.jsonl, answers.jsonl and facts.json in job.out. Raises UserError where there is nothing to measure."""
    order = ComparisonPayload.model_validate(payload)
    job.phase("reading", "Choosing rows that no arm was trained on")
    asked = chosen(order, [subject.model for subject in subjects_of(order)], job=job)
    order.state.mkdir(parents=True, exist_ok=True)
    measuring = Measuring(order, asked, job, Told(job, total=sum(asked.units for _ in subjects_of(order))))
    for base in bases_of(order):
        measuring.measure_base(base)
    graded = measuring.grades()
    return measuring.leave(graded)


@dataclass(frozen=True)
class Subject:
    """One thing that is measured: a base model as it is, or a result."""

    arm: int
    """-1 - number for a base model, as `Base.stands_for` says."""
    seed: int
    model: EvaluatedModel
    rows: str
    told: ComparedResult | None = None

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.seed}"


@dataclass(frozen=True)
class Base:
    """A base model with all results that began from it."""

    itself: Subject
    results: list[Subject]


def bases_of(order: ComparisonPayload) -> list[Base]:
    """In the order of the first arm of each."""
    folders = list(dict.fromkeys(arm.base.base for arm in order.arms))
    found = []
    for folder in folders:
        arms = [arm for arm in order.arms if arm.base.base == folder]
        results = [Subject(arm.number, each.seed, each.model, arm.rows, each) for arm in arms for each in arm.results]
        found.append(Base(Subject(stands_for(order, arms[0]), 0, arms[0].base, arms[0].rows), results))
    return found


def stands_for(order: ComparisonPayload, arm: ComparedArm) -> int:
    """The arm number of an arm's untouched base model: -1, or -1 - number of the first arm with it where there are several."""
    if len({each.base.base for each in order.arms}) == 1:
        return -1
    return -1 - next(each.number for each in order.arms if each.base.base == arm.base.base)


def subjects_of(order: ComparisonPayload) -> Iterator[Subject]:
    for base in bases_of(order):
        yield base.itself
        yield from base.results


@dataclass
class Told:
    """How far it is, over all results."""

    job: Job
    total: int
    done: float = 0

    def add(self, part: float) -> None:
        self.job.progress(min(self.total, self.done + part), self.total, "rows")

    def finish(self, part: float) -> None:
        self.done += part
        self.add(0)


@dataclass
class Measuring:
    order: ComparisonPayload
    chosen: Chosen
    job: Job
    told: Told

    def measure_base(self, base: Base) -> None:
        """A base model, and then everything that began from it."""
        diverging = [subject for subject in base.results if not self.has(subject, "probe")]
        head = self.measure(base.itself, states=self.states_of(base) if diverging else None)
        for subject in base.results:
            self.measure(subject, base=(head, self.states_of(base)) if head else None)

    def states_of(self, base: Base) -> Path:
        folder = self.job.work / f"states{base.itself.arm}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def measure(self, subject: Subject, *, states: Path | None = None, base: tuple[Head, Path] | None = None) -> Head | None:
        """All parts of one subject that are not there yet. Its output layer, where `states` of the general rows are to be left."""
        parts: list[tuple[str, int, Callable[[Released], Any]]] = [
            ("held_out", len(self.chosen.held_out), lambda model: self.held_out(model, subject)),
            ("probe", len(self.chosen.probe), lambda model: self.probe(model, subject, base)),
            ("answers", len(self.chosen.questions), lambda model: self.answers(model, subject)),
            ("memorised", len(self.beginnings(subject)), lambda model: self.memorised(model, subject)),
        ]
        missing = [part for part in parts if not self.has(subject, part[0])]
        self.told.finish(sum(units for name, units, _ in parts if self.has(subject, name)))
        if not missing and states is None:
            return None
        with self.loaded(subject.model) as model:
            self.job.phase("evaluating", f"Measuring {subject.model.name}")
            for name, units, measure in missing:
                self.keep(subject, name, measure(model))
                self.told.finish(units)
            return self.leave_states(model, subject, states) if states else None

    @contextmanager
    def loaded(self, told: EvaluatedModel) -> Iterator[Released]:
        need = min(memory_of(told), budget.limit())
        with budget.reserved(need, job=self.job, limit=budget.limit(), folder=budget.ledger()):
            self.job.phase("loading", f"Loading {told.name}")
            gc.collect()  # the one before leaves memory now
            yield load(told)

    def beginnings(self, subject: Subject) -> list[Beginning]:
        return self.chosen.beginnings.get(subject.rows, [])

    def file(self, subject: Subject, part: str) -> Path:
        return self.order.state / f"{subject.name}.{part}.json"

    def has(self, subject: Subject, part: str) -> bool:
        return self.file(subject, part).is_file()

    def keep(self, subject: Subject, part: str, found: Any) -> None:
        write_whole(self.file(subject, part), json.dumps(found))

    def kept(self, subject: Subject, part: str) -> Any:
        return json.loads(self.file(subject, part).read_bytes())

    def held_out(self, model: Released, subject: Subject) -> Lines:
        rows = [as_asked(row, subject.model.system) for row in self.chosen.held_out]
        losses, tokens = row_losses(model, rows, subject.model, job=self.job, tell=lambda done, _: self.told.add(done))
        return [
            {"row": number, "loss": float(losses[number]), "tokens": int(tokens[number]), "characters": len(answers_of(row)), "kl": None}
            for number, row in enumerate(rows)
            if losses[number] == losses[number]
        ]

    def probe(self, model: Released, subject: Subject, base: tuple[Head, Path] | None) -> Lines:
        """Losses of the general rows, and how far each moved from the base, where `base` is given."""
        rows = [as_asked(row, "") for row in self.chosen.probe]
        reader = choose_reader(model.model, arithmetic=model.arithmetic)
        found: Lines = []
        for batch in batches(readable(model.tokenizer, rows, longest=min(LONGEST_PROBE, longest_for(subject.model)))):
            self.job.raise_if_stopped()
            states = states_of(reader, [row for _, row in batch], model.arithmetic)
            for (number, row), (hidden, targets) in zip(batch, states, strict=True):
                loss = loss_of(reader, hidden, targets, model.arithmetic)
                moved = moved_from(base, number, reader.head, hidden, targets) if base else None
                counts = {"tokens": row.targets, "characters": len(answers_of(rows[number]))}
                found.append({"row": number, "loss": loss, "kl": moved} | counts)
            self.told.add(len(found))
        refuse_no_numbers(np.array([line["loss"] for line in found]), subject.model)
        return sorted(found, key=lambda line: int(line["row"]))

    def leave_states(self, model: Released, subject: Subject, folder: Path) -> Head:
        """Writes the base's hidden states of each general row into a file, and returns what makes logits of them."""
        reader = choose_reader(model.model, arithmetic=model.arithmetic)
        rows = [as_asked(row, "") for row in self.chosen.probe]
        for batch in batches(readable(model.tokenizer, rows, longest=min(LONGEST_PROBE, longest_for(subject.model)))):
            self.job.raise_if_stopped()
            states = states_of(reader, [row for _, row in batch], model.arithmetic)
            for (number, _), (hidden, targets) in zip(batch, states, strict=True):
                save_file({"hidden": hidden.contiguous(), "targets": targets.contiguous()}, folder / f"{number}.safetensors")
        return reader.head

    def answers(self, model: Released, subject: Subject) -> dict[str, Any]:
        """What is answered to the prompts, and how quickly one after another."""
        prompts = [prompt_of(model.tokenizer, question.row, subject.model.system) for question in self.chosen.questions]
        timed = self.timed(model, prompts[:TIMED])
        written = self.written(model, prompts, self.order.answer_tokens)
        answers = [
            {"text": text_of(model, each)[:LONGEST_TEXT], "tokens": len(each.ids), "seconds": each.seconds, "first": each.first}
            for each in written
        ]
        return {"answers": answers} | timed

    def timed(self, model: Released, prompts: list[list[int]]) -> dict[str, float | None]:
        """Seconds to the first token and tokens per second after it, of one answer alone: medians, the first try being thrown away."""
        firsts, rates = [], []
        for number, prompt in enumerate([*prompts[:1], *prompts]):
            (each,) = self.written(model, [prompt], TIMED_TOKENS)
            if number and each.seconds > each.first and len(each.ids) > 1:
                rates.append((len(each.ids) - 1) / (each.seconds - each.first))
            if number:
                firsts.append(each.first)
        return {
            "first_token": statistics.median(firsts) if firsts else None,
            "tokens_per_second": statistics.median(rates) if rates else None,
        }

    def written(self, model: Released, prompts: list[list[int]], limit: int) -> list[together.Written]:
        """Raises Stopped where a stop was asked for before all was written."""
        made = together.write(
            model.model,
            prompts,
            limit,
            ends=generating.end_ids(model.model, model.tokenizer),
            arithmetic=model.arithmetic,
            stopping=self.job.stopping,
            tell=self.told.add if len(prompts) > 1 else lambda done: None,
        )
        self.job.raise_if_stopped()
        return made

    def memorised(self, model: Released, subject: Subject) -> list[float]:
        """Of each beginning: the share of the words that it goes on with as they stand in the row."""
        beginnings = self.beginnings(subject)
        prompts = [begun_ids(model.tokenizer, each, subject.model.system) for each in beginnings]
        written = self.written(model, prompts, CONTINUED_TOKENS)
        return [
            memorising.repeated(text_of(model, said), set(memorising.runs_of(each.rest)))
            for each, said in zip(beginnings, written, strict=True)
        ]

    def grades(self) -> dict[tuple[str, str], list[float | None]]:
        """By the judge's metric and the subject's name: its grade of each answer, as a score."""
        found: dict[tuple[str, str], list[float | None]] = {}
        for metric in self.order.metrics:
            if not isinstance(metric, Judge) or metric.name not in self.order.judges:
                continue
            part = f"grades.{metric.name}"
            missing = [subject for subject in subjects_of(self.order) if not self.has(subject, part)]
            if missing:
                self.ask_judge(self.order.judges[metric.name], part, missing)
            for subject in subjects_of(self.order):
                none: list[float | None] = [None] * len(self.chosen.questions)
                found[metric.name, subject.name] = self.kept(subject, part) if self.has(subject, part) else none
        return found

    def ask_judge(self, judge: EvaluatedModel, part: str, missing: list[Subject]) -> None:
        """Keeps its grades. One that cannot be loaded gives none: what else was measured is worth having without."""
        with ExitStack() as stack:
            try:
                model = stack.enter_context(self.loaded(judge))
            except CANNOT_LOAD as problem:
                why = problem.message if isinstance(problem, UserError) else "It could not be loaded."
                self.job.note(f"{judge.name} gives no grades. {why}", level="warning")
                return
            for subject in missing:
                self.job.phase("evaluating", f"{judge.name} grades {subject.model.name}")
                self.keep(subject, part, self.graded(model, subject))

    def graded(self, model: Released, subject: Subject) -> list[float | None]:
        asked = [
            scores.judge_prompt(question.shown, question.expected, answer["text"])
            for question, answer in zip(self.chosen.questions, self.kept(subject, "answers")["answers"], strict=True)
        ]
        prompts = [generating.prompt_ids(model.tokenizer, [{"role": "user", "content": text}]) for text in asked]
        written = self.written(model, prompts, GRADE_TOKENS)
        return [scores.grade_of(text_of(model, each)) for each in written]

    def leave(self, graded: dict[tuple[str, str], list[float | None]]) -> dict[str, Any]:
        """Writes the four files."""
        self.job.phase("saving", "Writing down what was measured")
        subjects, out = list(subjects_of(self.order)), self.job.out
        rows = [
            {"arm": subject.arm, "seed": subject.seed, "set": part} | line
            for subject in subjects
            for part in ("held_out", "probe")
            for line in self.kept(subject, part)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "rows.parquet")
        write_lines(out / "prompts.jsonl", [self.prompt(question) for question in self.chosen.questions])
        write_lines(out / "answers.jsonl", [line for subject in subjects for line in self.answer_lines(subject, graded)])
        facts = {
            "results": [self.result(subject) for subject in subjects],
            "bases": {arm.number: stands_for(self.order, arm) for arm in self.order.arms},
            "probe": self.chosen.probe_name,
            "held_out": len(self.chosen.held_out),
            "of": self.chosen.of,
            "left_out": self.chosen.left_out,
            "memorised_from": "rows that all arms were trained on" if self.chosen.common else "rows that each arm was trained on",
            "ungraded": sum(grade is None for each in graded.values() for grade in each),
            "host": f"{cpu_count()} processor cores",
        }
        (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        return {"held_out": facts["held_out"], "probe": len(self.chosen.probe), "results": len(subjects)}

    @staticmethod
    def prompt(question: Question) -> dict[str, Any]:
        asked = question.row.get("messages") or question.row["text"]
        return {"prompt": asked, "shown": question.shown[:LONGEST_TEXT], "expected": question.expected[:LONGEST_TEXT]}

    def answer_lines(self, subject: Subject, graded: dict[tuple[str, str], list[float | None]]) -> Lines:
        lines = []
        for number, (answer, question) in enumerate(zip(self.kept(subject, "answers")["answers"], self.chosen.questions, strict=True)):
            found = {name: score(answer["text"], question.expected) for name, score in self.scorers.items()}
            for (metric, name), grades in graded.items():
                if name == subject.name and (grade := grades[number]) is not None:
                    found[metric] = grade
            overlap = memorising.repeated(answer["text"], self.known_runs[subject.rows] - self.asked_runs[number])
            lines.append({"arm": subject.arm, "seed": subject.seed, "prompt": number, "scores": found, "overlap": overlap} | answer)
        return lines

    @cached_property
    def scorers(self) -> dict[str, scores.Scorer]:
        expected = [question.expected for question in self.chosen.questions]
        found = ((metric.name, scores.scorer(metric, expected)) for metric in self.order.metrics)
        return {name: scorer for name, scorer in found if scorer is not None}

    @cached_property
    def asked_runs(self) -> list[set[memorising.Run]]:
        """What stands in each question itself: to say that again is no memory of a row."""
        return [set(memorising.runs_of(memorising.text_of(question.row))) for question in self.chosen.questions]

    @cached_property
    def known_runs(self) -> dict[str, set[memorising.Run]]:
        """By rows.parquet: those runs of the answers that stand in its training rows."""
        wanted: set[memorising.Run] = set()
        for subject in subjects_of(self.order):
            for answer in self.kept(subject, "answers")["answers"]:
                wanted.update(memorising.runs_of(answer["text"]))
        found = {}
        for version in {arm.rows for arm in self.order.arms}:
            self.job.raise_if_stopped()
            found[version] = memorising.known_runs(rowfile.read(Path(version), split="train"), wanted)
        return found

    def result(self, subject: Subject) -> dict[str, Any]:
        answered = self.kept(subject, "answers")
        told = subject.told
        trainable = trainable_of(subject.model) if told else 0
        return {
            "arm": subject.arm,
            "seed": subject.seed,
            "size": told.size if told else size_of(Path(subject.model.base)),
            "gguf_size": told.gguf_size if told else None,
            "gguf_adapter_size": F16 * trainable + GGUF_HEADER if told and told.gguf_adapter else None,
            "trainable": trainable,
            "first_token": answered["first_token"],
            "tokens_per_second": answered["tokens_per_second"],
            "memorised": self.kept(subject, "memorised") or None,
        }


def moved_from(base: tuple[Head, Path], number: int, head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> float | None:
    """KL(base || own) of one row in nats per token; None where it reads in other tokens than the base's, or lacks some of its words."""
    before, folder = base
    file = folder / f"{number}.safetensors"
    if not file.is_file():
        return None
    found = load_file(file)
    if not torch.equal(found["targets"], targets):
        return None
    try:
        return divergence(before, found["hidden"], head, hidden)
    except ValueError:
        return None


def prompt_of(tokenizer: Any, row: Row, system: str) -> list[int]:
    if "text" in row:
        return list(tokenizer(row["text"])["input_ids"])
    return generating.prompt_ids(tokenizer, as_asked(row, system)["messages"])


def begun_ids(tokenizer: Any, beginning: Beginning, system: str) -> list[int]:
    if not beginning.messages:
        return list(tokenizer(beginning.begun)["input_ids"])
    before = prompt_of(tokenizer, {"messages": beginning.messages}, system)
    return before + list(tokenizer(beginning.begun, add_special_tokens=False)["input_ids"])


def text_of(model: Released, written: together.Written) -> str:
    return str(model.tokenizer.decode(written.ids, skip_special_tokens=True)).strip()


def trainable_of(told: EvaluatedModel) -> int:
    """Numbers that a result stores of its own: those of its adapter, or of the whole model."""
    folder = Path(told.adapter or told.base)
    files = [folder / ADAPTER] if told.adapter else sorted(folder.glob("*.safetensors"))
    count = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def write_lines(path: Path, lines: Lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Visible once it is whole."""
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
