"""Asks llama.cpp about a file in a process that is locked in, and believes nothing of what comes back before it has been checked."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.ml import lockedin
from studio.ml.gguf.answering import ANSWER, LOGITS
from studio.ml.gguf.cases import MOST_LOGITS, Case
from studio.ml.gguf.limits import ANSWER_TOKENS
from studio.ml.gguf.weights import Array
from studio.ml.sandbox import Bounds
from studio.training.job import Job

LONGEST_CHILD = 1800.0
"""Seconds after which llama.cpp is given up on."""
LARGEST_ANSWER = 16 << 20
"""Bytes of answer.json; two hundred texts and ten answers take some hundred thousand."""
WORKING_MEMORY = 3 << 30
"""Bytes that llama.cpp may take beyond the weights: Python, the context of a few hundred tokens, the logits of one batch."""
LIBRARIES = 4 << 30
"""Bytes of address space for libraries and for what threads reserve but do not use."""

Token = Annotated[int, Field(ge=0)]
Figure = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Refused(Exception):
    """The file gives no answer. The message is a sentence for the reader."""


class Answer(BaseModel):
    """What the process says, before it is held against what it was asked."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    vocabulary: Annotated[int, Field(gt=0, le=4_000_000)]
    texts: list[list[Token]]
    letters: list[list[Token]]
    ends: list[bool]
    answers: list[Annotated[list[Token], Field(min_length=1, max_length=ANSWER_TOKENS)]]
    chats: list[list[Token]]
    tokens_per_second: Figure
    prompt_tokens_per_second: Figure
    load_seconds: Figure
    memory: Annotated[int, Field(ge=0, le=1 << 50)]
    """Bytes. What the process says of itself: the system does not tell it apart from what the process was a copy of."""
    sandbox: list[Annotated[str, Field(max_length=40)]]

    def fits(self, case: Case) -> bool:
        """True where it answers what was asked, no more and no less."""
        asked = [len(case.texts), len(case.texts), len(case.ends), len(case.prompts), len(case.chats)]
        told: list[list[Any]] = [self.texts, self.letters, self.ends, self.answers, self.chats]
        known = all(number < self.vocabulary for ids in self.answers for number in ids)
        return known and [len(entry) for entry in told] == asked


class Logits:
    """The logits that the process left: one sequence's after another's, read in that order."""

    def __init__(self, path: Path, *, tokens: int, columns: int):
        """Raises Refused where the file is not of that size."""
        self._file, size = _opened(path)
        self._columns = columns
        if size != tokens * columns * 4:
            self.close()
            raise Refused("llama.cpp left another number of logits than it was asked for.")

    def take(self, tokens: int) -> Array:
        """Of the next tokens, shape (tokens, columns)."""
        return np.fromfile(self._file, np.float32, tokens * self._columns).reshape(tokens, self._columns)

    def close(self) -> None:
        self._file.close()


def ask_llamacpp(gguf: Path, case: Case, *, folder: Path, job: Job, threads: int, adapter: Path | None = None) -> tuple[Answer, Logits]:
    """The file's answers, with a GGUF adapter added to it if one is given. `folder` is the only one that the process can write to.

    Raises Refused where it gives none, or none that makes sense, and Stopped once a stop was asked for.
    """
    longest = max(len(ids) for ids in [*case.sequences, *case.prompts])
    request = {
        "gguf": str(gguf.resolve()),
        "adapter": str(adapter.resolve()) if adapter else "",
        "threads": threads,
        "context": -(-(longest + ANSWER_TOKENS + 1) // 256) * 256,
        "texts": case.texts,
        "chats": case.chats,
        "sequences": case.sequences,
        "prompts": case.prompts,
        "count": ANSWER_TOKENS,
        "ends": case.ends,
        "bounds": asdict(_bounds(gguf, adapter, threads)),
    }
    (folder / ANSWER).unlink(missing_ok=True)
    try:
        lockedin.run("studio.ml.gguf.answering", request, folder=folder, job=job, seconds=LONGEST_CHILD)
    except lockedin.Silent as silence:
        raise Refused(f"llama.cpp {silence}. The log has its last words.") from silence
    answer = _believed(folder / ANSWER, case)
    return answer, Logits(folder / LOGITS, tokens=sum(map(len, case.sequences)), columns=answer.vocabulary)


def _bounds(gguf: Path, adapter: Path | None, threads: int) -> Bounds:
    """The file may be held twice beside being mapped: for weights in another order than in the file, by the model and by its server."""
    size = gguf.stat().st_size + (adapter.stat().st_size if adapter else 0)
    return Bounds(
        memory=2 * size + WORKING_MEMORY,
        mapped=2 * size + LIBRARIES,
        seconds=int(LONGEST_CHILD) * (threads + 1),
        file=MOST_LOGITS + LARGEST_ANSWER,
    )


def _opened(path: Path) -> tuple[BinaryIO, int]:
    try:
        return lockedin.opened(path)
    except lockedin.Silent as silence:
        raise Refused(f"llama.cpp {silence}. The log has its last words.") from silence


def _believed(path: Path, case: Case) -> Answer:
    file, _ = _opened(path)
    with file:
        content = file.read(LARGEST_ANSWER)
    with suppress(ValidationError):
        raise Refused(_Refusal.model_validate_json(content).refused)
    try:
        answer = Answer.model_validate_json(content)
    except ValidationError as error:
        raise Refused("llama.cpp gave an answer that makes no sense.") from error
    if not answer.fits(case):
        raise Refused("llama.cpp answered something else than it was asked.")
    return answer


class _Refusal(BaseModel):
    refused: Annotated[str, Field(max_length=2000)]
