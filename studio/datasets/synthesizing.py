"""Rows that a model writes after seeds and an instruction. Runs in a worker process; no Django. Whether a row is used, a person decides.

Each row is asked for in two steps, the question first and then its answer, with the seeds as a conversation before it: small models can
do that as well as large ones, and no format has to be parsed. What comes back is a stranger's text: it is cut, judged like a typed row,
and left out where it repeats what is there.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from studio import rowfile
from studio.datasets.messages import Unusable
from studio.datasets.typed import accepted
from studio.errors import UserError
from studio.training.job import Job
from studio.training.orders import SynthesisPayload

EXAMPLES = 3
"""Seeds that the model is shown at a time; others for each row, so that the rows differ."""
SHOWN = 1500
"""Characters of a seed that the model is shown."""
TRIES = 3
"""Answers that are asked for, for each row that is wanted, before it is given up."""
ALIKE = 0.8
"""Share of words that two questions may have in common (Jaccard); above it the newer one is taken for a copy."""
LONGEST_QUESTION, LONGEST_ANSWER = 400, 1000
"""Tokens."""
MOST_KNOWN = 1_000_000
WORD = re.compile(r"\w+")
LABEL = re.compile(r"^(?:\d{1,3}[.)]|[-*•]|(?:new )?(?:question|example|text|answer)\s*:)\s*", re.IGNORECASE)

Messages = list[dict[str, str]]


class Writer(Protocol):
    def answer(self, messages: Messages, *, max_tokens: int, temperature: float, seed: int) -> str: ...


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves job.out/rows.jsonl, a canonical row on each line; returns how many were made, left out and asked for."""
    order = SynthesisPayload.model_validate(payload)
    job.phase("loading", f"Asking {order.writer_name}")
    writer = writer_of(order)
    job.phase("preparing", "Looking at the rows that are there")
    known = Known.read(order)
    job.phase("evaluating", "Writing rows")
    outcome = Outcome()
    with (job.out / "rows.jsonl").open("wb") as file:
        for row in written(
            order, writer, known, outcome, stopping=job.stopping, tell=lambda: job.progress(outcome.made, order.target, "rows")
        ):
            file.write(orjson.dumps(row) + b"\n")
    if not outcome.made:
        (job.out / "rows.jsonl").unlink()
        if not job.stopping():
            raise UserError(
                f"The model wrote nothing that can be used. {outcome.words} Try another model, other seeds, or a clearer instruction."
            )
    if outcome.made < order.target and not job.stopping():
        job.note(f"{outcome.made} of {order.target} rows were written. {outcome.words}", level="warning")
    return {"made": outcome.made, "repeated": outcome.repeated, "unusable": outcome.unusable, "asked": outcome.asked}


def writer_of(order: SynthesisPayload) -> Writer:
    if order.url:
        from studio.datasets.endpoints import Endpoint

        return Endpoint(url=order.url, model=order.model, private=order.private)
    from studio.ml.chatting import Chatter

    return Chatter(base=order.base, adapter=order.adapter, cache=order.cache, context=order.context)


@dataclass
class Outcome:
    made: int = 0
    repeated: int = 0
    unusable: int = 0
    asked: int = 0

    @property
    def words(self) -> str:
        told = [(self.repeated, "repeated what was there"), (self.unusable, "could not be used")]
        return ", ".join(f"{number} {words}" for number, words in told if number) + "." if self.repeated or self.unusable else ""


@dataclass
class Known:
    """What is there already, so that nothing is written twice."""

    exact: set[int] = field(default_factory=set)
    words: list[frozenset[str]] = field(default_factory=list)
    """Of the seeds and of what was written."""

    @classmethod
    def read(cls, order: SynthesisPayload) -> "Known":
        found = cls()
        for seed in order.seeds:
            found.add(subject(seed))
        if order.rows is not None:
            for _, row in zip(range(MOST_KNOWN), rowfile.read(order.rows), strict=False):
                found.exact.add(hash(plain(subject(row))))
        return found

    def holds(self, text: str) -> bool:
        if hash(plain(text)) in self.exact:
            return True
        words = words_of(text)
        return any(len(words & other) > ALIKE * len(words | other) for other in self.words)

    def add(self, text: str) -> None:
        self.exact.add(hash(plain(text)))
        self.words.append(words_of(text))


def subject(row: dict[str, Any]) -> str:
    """What a row is about: its question, or its text."""
    if "text" in row:
        return str(row["text"])
    return "\n".join(message["content"] for message in row.get("messages", row.get("prompt", [])) if message["role"] == "user")


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def words_of(text: str) -> frozenset[str]:
    return frozenset(WORD.findall(text.lower()))


def written(
    order: SynthesisPayload, writer: Writer, known: Known, outcome: Outcome, *, stopping: Callable[[], bool], tell: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Rows until there are as many as wanted, or too many tries gave none."""
    chance = random.Random(order.seed)
    ends_at = time.monotonic() + order.seconds
    while outcome.made < order.target and outcome.asked < TRIES * order.target and time.monotonic() < ends_at:
        if stopping():
            return
        tell()
        outcome.asked += 1
        seeds = chance.sample(order.seeds, min(EXAMPLES, len(order.seeds)))
        try:
            row = accepted(one(order, writer, seeds, number=outcome.asked, chance=chance), order.shape)
        except Unusable:
            outcome.unusable += 1
            continue
        if known.holds(subject(row)):
            outcome.repeated += 1
            continue
        known.add(subject(row))
        outcome.made += 1
        yield row


def one(order: SynthesisPayload, writer: Writer, seeds: list[dict[str, Any]], *, number: int, chance: random.Random) -> dict[str, Any]:
    """A row as the model writes it, unjudged."""

    def ask(messages: Messages, *, longest: int) -> str:
        said = writer.answer(messages, max_tokens=longest, temperature=order.temperature, seed=chance.randrange(1 << 31))
        return cleaned(said)

    kind = "text" if order.shape == "text" else "question"
    opening = ask(
        asking_for_one(order.instruction, [subject(seed) for seed in seeds], kind=kind),
        longest=LONGEST_ANSWER if kind == "text" else LONGEST_QUESTION,
    )
    if kind == "text":
        return {"text": opening}
    answered = [pair for seed in seeds for pair in first_exchange(seed)]
    system = next((message["content"] for message in seeds[0]["messages"] if message["role"] == "system"), "") if seeds else ""
    told = "\n\n".join(part for part in (system, order.instruction) if part)
    before: Messages = [{"role": "system", "content": told}] if told else []
    answer = ask([*before, *answered, {"role": "user", "content": opening}], longest=LONGEST_ANSWER)
    kept = [{"role": "system", "content": system}] if system else []
    return {"messages": [*kept, {"role": "user", "content": opening}, {"role": "assistant", "content": answer}]}


def asking_for_one(instruction: str, examples: list[str], *, kind: str) -> Messages:
    """The prompt that asks for one more of the same kind: the seeds stand there as what the model answered before."""
    wish = f"Write one new {kind}{' of this kind' if examples else ''}. Write the {kind} alone."
    messages: Messages = [{"role": "system", "content": instruction}] if instruction else []
    for text in examples:
        messages += [{"role": "user", "content": wish}, {"role": "assistant", "content": text[:SHOWN]}]
    return [*messages, {"role": "user", "content": wish}]


def first_exchange(seed: dict[str, Any]) -> Messages:
    """A seed's first question and its answer, as the model is shown them."""
    said = [message for message in seed.get("messages", ()) if message["role"] != "system"][:2]
    if [message["role"] for message in said] != ["user", "assistant"]:
        return []
    return [{"role": message["role"], "content": message["content"][:SHOWN]} for message in said]


def cleaned(text: str) -> str:
    """Without what models put around a text: thoughts, a number, a label, quotes."""
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", text.replace("\0", ""), flags=re.DOTALL).strip()
    text = LABEL.sub("", text, count=1).strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text
