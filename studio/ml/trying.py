"""The order "trial": a whole prompt set asked of one model after another, several conversations at once, by llama.cpp. No torch.

What has been answered stands in a file that outlives the attempt, so a lost worker's work is gone on from. A model that cannot be loaded
costs its own column alone.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.chatting import refusal, start_server
from studio.ml.gguf import budget
from studio.ml.gguf.serving import prepare
from studio.training.job import Job, Stopped
from studio.training.orders import AskedModel, TrialPayload

AT_ONCE = 4
"""Conversations with one model side by side: together they are written about twice as fast as one after another."""
BATCH = 64
"""Tokens of a prompt that are read before a stop is looked for."""
LOOK_EVERY = 0.25
"""Seconds between two looks at what has been answered, and whether a stop was asked for."""
SMALLEST_CONTEXT, LARGEST_CONTEXT = 1024, 8192
"""Tokens of one conversation."""
SPARE = 1.25
"""Memory beside the weights, as a share of them."""
LEAST = 300_000_000
LONGEST_TEXT = 40_000
"""Characters of an answer that are kept."""
GONE = "This model is not here any more."

Turn = dict[str, Any]
"""`{"text", "tokens", "seconds", "first", "error"}`."""


def run(payload: dict[str, Any], job: Job) -> dict[str, Any]:
    """Leaves job.out/answers.jsonl, a line for each conversation: `{"column", "prompt", "turns"}`; also after a stop."""
    order = TrialPayload.model_validate(payload)
    table = Table.read(order)
    for number, column in enumerate(order.columns):
        left = [place for place in range(len(order.prompts)) if (number, place) not in table.answered]
        if not left or job.stopping():
            continue
        try:
            with loaded(order, column, job=job, said=place_in(order, number)) as model:
                ask_all(order, model, table, number=number, left=left, job=job)
        except UserError as error:
            job.note(f"{column.name}: {error.message}", level="warning")
            table.give_up(number, left, error.message)
        except Stopped:
            break
    if job.pausing():
        raise Stopped  # what was answered stays where the next attempt finds it
    table.leave(job.out)
    return {"answered": table.questions, "of": table.total}


def place_in(order: TrialPayload, number: int) -> str:
    name = order.columns[number].name
    return f"{name} ({number + 1} of {len(order.columns)})" if len(order.columns) > 1 else name


@dataclass
class Table:
    """What has been answered so far, in memory and on the disk."""

    order: TrialPayload
    path: Path
    answered: dict[tuple[int, int], list[Turn]] = field(default_factory=dict)
    """By column and prompt."""
    under_way: int = 0
    """Questions of unfinished conversations that have been answered."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, order: TrialPayload) -> "Table":
        order.state.mkdir(parents=True, exist_ok=True)
        table = cls(order, order.state / "answers.jsonl")
        for line in table.path.read_bytes().splitlines(keepends=True) if table.path.is_file() else ():
            if line.endswith(b"\n"):  # the last one may be cut off where a worker was killed
                told = json.loads(line)
                table.answered[told["column"], told["prompt"]] = told["turns"]
        draft = table.path.with_name("answers.draft")
        draft.write_text(table.lines, encoding="utf-8")
        draft.replace(table.path)  # who watches reads the file at any moment
        return table

    @property
    def total(self) -> int:
        return sum(map(len, self.order.prompts)) * len(self.order.columns)

    @property
    def questions(self) -> int:
        """Answered, or known to have no answer."""
        done = sum(len(self.order.prompts[prompt]) for _, prompt in self.answered)
        return done + self.under_way

    def count_turn(self, number: int = 1) -> None:
        with self.lock:
            self.under_way += number

    def add(self, column: int, prompt: int, turns: list[Turn]) -> None:
        self.answered[column, prompt] = turns
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self.line(column, prompt))
            file.flush()
            os.fsync(file.fileno())

    def give_up(self, column: int, prompts: list[int], why: str) -> None:
        for prompt in prompts:
            if (column, prompt) not in self.answered:
                self.add(column, prompt, [failed(why)])

    def line(self, column: int, prompt: int) -> str:
        return json.dumps({"column": column, "prompt": prompt, "turns": self.answered[column, prompt]}) + "\n"

    @property
    def lines(self) -> str:
        return "".join(self.line(*place) for place in self.answered)

    def leave(self, folder: Path) -> None:
        if self.answered:
            (folder / "answers.jsonl").write_text(self.lines, encoding="utf-8")


@dataclass(frozen=True)
class Model:
    """A column in memory."""

    asked: AskedModel
    server: Any
    lora: list[dict[str, Any]]


@contextmanager
def loaded(order: TrialPayload, column: AskedModel, *, job: Job, said: str) -> Iterator[Model]:
    """llama.cpp with what a column names, gone at the end. Raises UserError where it cannot be."""
    base = Path(column.base)
    if not column.base or not base.exists():
        raise UserError(GONE)
    job.phase("loading", f"Loading {said}")
    served = prepare(base=base, adapter=Path(column.adapter) if column.adapter else None, cache=order.cache)
    need = min(LEAST + int(SPARE * served.model.stat().st_size), budget.limit())
    with (
        budget.reserved(need, job=job, limit=budget.limit(), folder=budget.ledger()),
        tempfile.TemporaryDirectory(prefix="studio-trial-") as sockets,
    ):
        job.phase("loading", f"Loading {said}")
        adapters = [str(served.adapter)] if served.adapter else []
        socket = os.path.join(sockets, "s.sock")
        try:
            context = context_for(order, column)
            server = start_server(str(served.model), adapters, context=context, at_once=AT_ONCE, socket=socket, batch=BATCH)
        except RuntimeError as error:  # llama.cpp says in the log what it could not read
            raise UserError("llama.cpp could not load this model. The log says why.") from error
        job.phase("evaluating", f"Asking {said}")
        yield Model(column, server, [{"id": 0, "scale": 1.0}] if adapters else [])


def context_for(order: TrialPayload, column: AskedModel) -> int:
    """Tokens that the longest conversation may need: two bytes are rarely more than one token."""
    longest = max(sum(len(turn.encode()) // 2 + column.max_tokens for turn in turns) for turns in order.prompts)
    need = longest + len(column.system.encode()) // 2 + 512
    return min(LARGEST_CONTEXT, max(SMALLEST_CONTEXT, -(-need // 256) * 256))


def ask_all(order: TrialPayload, model: Model, table: Table, *, number: int, left: list[int], job: Job) -> None:
    """Asks the conversations that are left, AT_ONCE side by side. What a stop cuts off is not kept."""
    halted = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {pool.submit(converse, model, order.prompts[place], seed=order.seed, halted=halted, table=table): place for place in left}
        pending = set(asked)
        try:
            while pending:
                finished, pending = wait(pending, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
                for future in finished:
                    if (turns := future.result()) is not None:
                        table.count_turn(-len(turns))
                        table.add(number, asked[future], turns)
                job.progress(table.questions, table.total, "questions")
                if job.stopping():
                    break
        finally:
            halted.set()
            pool.shutdown(cancel_futures=True)
    table.under_way = 0


def converse(model: Model, questions: list[str], *, seed: int, halted: threading.Event, table: Table) -> list[Turn] | None:
    """The answers to one conversation; what cannot be answered ends it. None where it was halted."""
    messages = [{"role": "system", "content": model.asked.system}] if model.asked.system else []
    turns: list[Turn] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        try:
            turn = answer_to(model, messages, seed=seed, halted=halted)
        except UserError as error:
            turn = failed(error.message)
        if halted.is_set():
            return None
        turns.append(turn)
        table.count_turn()
        if turn["error"]:
            break
        messages.append({"role": "assistant", "content": turn["text"]})
    return turns


def failed(why: str) -> Turn:
    return {"text": "", "tokens": 0, "seconds": 0.0, "first": 0.0, "error": why[:500]}


def answer_to(model: Model, messages: list[dict[str, str]], *, seed: int, halted: threading.Event) -> Turn:
    """One answer. Raises UserError where llama.cpp refuses, such as for a conversation that is too long."""
    asked_at, first, pieces, refused, timings = time.monotonic(), list[float](), list[str](), list[str](), dict[str, float]()

    def on_chunk(chunk: Any) -> bool:
        told = chunk if isinstance(chunk, dict) else json.loads(chunk)
        timings.update(told.get("timings") or {})
        if problem := told.get("error"):
            refused.append(refusal(problem))
        for choice in told.get("choices", []):
            if piece := choice.get("delta", {}).get("content"):
                first.append(time.monotonic())
                pieces.append(piece)
        return halted.is_set()

    asked = model.asked
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "seed": seed,
        "stream": True,
        "return_progress": True,  # so that a stop is heard while a long prompt is read
        "lora": model.lora,
    }
    if asked.top_p is not None:
        body["top_p"] = asked.top_p
    if asked.stop:
        body["stop"] = asked.stop
    model.server.handle_chat_completions(body, on_chunk)
    if refused:
        raise UserError(refused[0])
    ended_at = time.monotonic()
    begun_at = first[0] if first else ended_at
    seconds = timings.get("predicted_ms", 1000 * (ended_at - begun_at)) / 1000
    return {
        "text": "".join(pieces)[:LONGEST_TEXT],
        "tokens": int(timings.get("predicted_n", len(pieces))),
        "seconds": round(seconds, 3),
        "first": round(begun_at - asked_at, 3),
        "error": "",
    }
