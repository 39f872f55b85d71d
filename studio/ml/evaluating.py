"""The order "evaluation": the loss of a release on held-out rows and that of the one in production, row by row, and what both answer.

What the two are compared by is the loss of the same answers, so models that read in other tokens are comparable too. The interval of the
change is a paired bootstrap over the rows: where it is wide, nobody can tell.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studio.errors import UserError
from studio.ml import generating
from studio.ml.gguf import budget
from studio.ml.heldout import Question, Row, answers_of, as_asked, held_out, questions
from studio.ml.releasedmodel import Released, load, memory_of, tokenizer_of
from studio.ml.rowlosses import LONGEST_ROW, Losses, longest_for, row_losses
from studio.ml.tokens import load_tokenizer
from studio.training.job import Job
from studio.training.orders import EvaluatedModel, EvaluationPayload

SAMPLES, ANSWER_TOKENS = 5, 128
LONGEST_TEXT = 2000
"""Characters of a prompt, an answer and an expected answer that are kept."""
LEAST_ROWS = 8
"""With fewer rows an interval would say nothing."""
RESAMPLES, SEED = 4000, 20
COVERED = 0.95
"""Share of the resamples that the interval holds."""


@dataclass(frozen=True)
class Measured:
    """What one model says of all rows."""

    losses: Losses
    """Nats of each row's answers; NaN of one that is too long for it, or teaches nothing."""
    tokens: Losses
    answers: list[str]
    """To the questions."""


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Returns what `releases.Evaluation.result` describes. Raises UserError where there is nothing to measure, or no room for a model."""
    order = EvaluationPayload.model_validate(payload)
    models = [order.release, *([order.before] if order.before else [])]
    job.phase("reading", "Choosing rows that nothing was trained on")
    known = [Path(model.learnt) for model in models if model.learnt]
    found = held_out(Path(order.rows), split=order.split, learnt_from=known, parameters=max(1, *(model.parameters for model in models)))
    refuse_none(found.of, learnt=found.learnt)
    unknown = [model.name for model in models if not model.learnt]
    asked = questions(found.rows, limit=SAMPLES, fits=fitting(models))
    own, before = (measured(model, found.rows, asked, job=job) if model else None for model in (order.release, order.before))
    assert own is not None  # a release is always measured
    facts = compared(own, before, characters=np.array([len(answers_of(as_asked(row, ""))) for row in found.rows], dtype=float))
    samples = [
        {
            "prompt": question.shown[:LONGEST_TEXT],
            "expected": question.expected[:LONGEST_TEXT],
            "answer": own.answers[number][:LONGEST_TEXT],
            "before": before.answers[number][:LONGEST_TEXT] if before else None,
        }
        for number, question in enumerate(asked)
    ]
    return facts | {"of": found.of, "learnt": found.learnt, "unknown": unknown, "samples": samples}


def fitting(models: list[EvaluatedModel], *, room: int = ANSWER_TOKENS) -> Callable[[Question], bool]:
    """Whether a question leaves `room` tokens for an answer, for each model: a long one would take more memory than was set aside."""
    readers = [(told, load_tokenizer(tokenizer_of(told)), longest_for(told) - room) for told in models]
    return lambda question: all(len(ids_of(question, tokenizer, told)) <= most for told, tokenizer, most in readers)


def ids_of(question: Question, tokenizer: Any, told: EvaluatedModel) -> list[int]:
    """What a model reads before it answers."""
    if "text" in question.row:
        return list(tokenizer(question.row["text"])["input_ids"])
    return generating.prompt_ids(tokenizer, as_asked(question.row, told.system)["messages"])


def refuse_none(count: int, *, learnt: int) -> None:
    if not count:
        why = f"All {learnt} of these rows were trained on, so they tell nothing." if learnt else "There are no rows."
        raise UserError(f"{why} Hold out other rows of this client, and name them in the project's gate.")


def measured(told: EvaluatedModel, rows: list[Row], asked: list[Question], *, job: Job) -> Measured:
    """Loads one model, measures it and lets go of it."""
    need = min(memory_of(told), budget.limit())
    with budget.reserved(need, job=job, limit=budget.limit(), folder=budget.ledger()):
        job.phase("loading", f"Loading {told.name}")
        model = load(told)
        try:
            job.phase("evaluating", f"Measuring {told.name}")
            losses, tokens = row_losses(model, [as_asked(row, told.system) for row in rows], told, job=job)
            return Measured(losses, tokens, [answer_to(model, question, told, job=job) for question in asked])
        finally:
            del model
            gc.collect()


def answer_to(model: Released, question: Question, told: EvaluatedModel, *, job: Job) -> str:
    """Greedily, so that the same question gets the same answer; ended at the release's own stop texts."""
    job.phase("evaluating", f"Asking {told.name}")
    job.raise_if_stopped()
    if "text" in question.row:
        text = generating.continuation(model.model, model.tokenizer, question.row["text"], ANSWER_TOKENS, stopping=job.stopping)
    else:
        messages = as_asked(question.row, told.system)["messages"]
        text = generating.answer(model.model, model.tokenizer, messages, ANSWER_TOKENS, stopping=job.stopping)
    job.raise_if_stopped()
    return until(text, told.stop)


def until(text: str, stops: list[str]) -> str:
    """The text up to where the first of `stops` begins in it."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def compared(own: Measured, before: Measured | None, *, characters: Losses) -> dict[str, Any]:
    """The figures over the rows that each model could read whole."""
    both = np.isfinite(own.losses) & (np.isfinite(before.losses) if before else True)
    if not both.any():
        raise UserError(f"No row fits into {LONGEST_ROW:,} tokens, or none has an answer. Hold out shorter rows.")
    alike = before is None or bool((own.tokens[both] == before.tokens[both]).all())
    size = float((own.tokens if alike else np.maximum(characters, 1))[both].sum())
    mine = own.losses[both]
    theirs = before.losses[both] if before else None
    low, high = interval(mine, theirs) if theirs is not None else (None, None)
    return {
        "rows": int(both.sum()),
        "cut": int((~both).sum()),
        "tokens": int(own.tokens[both].sum()),
        "unit": "token" if alike else "character",
        "loss": float(mine.sum() / size),
        "before": float(theirs.sum() / size) if theirs is not None else None,
        "change": float((mine.sum() / theirs.sum() - 1) * 100) if theirs is not None and theirs.sum() > 0 else None,
        "low": low,
        "high": high,
    }


def interval(mine: Losses, theirs: Losses) -> tuple[float | None, float | None]:
    """Where the change of the whole loss in per cent lies, by drawing the rows again and again.

    None for too few rows, and where the other is so certain that some draw has no loss, of which nothing is a share.
    """
    if len(mine) < LEAST_ROWS:
        return None, None
    drawn = np.random.default_rng(SEED).integers(0, len(mine), (RESAMPLES, len(mine)))
    sums = theirs[drawn].sum(axis=1)
    if not (sums > 0).all():
        return None, None
    changes = (mine[drawn].sum(axis=1) / sums - 1) * 100
    edge = (1 - COVERED) / 2
    low, high = np.quantile(changes, (edge, 1 - edge))
    return float(low), float(high)
