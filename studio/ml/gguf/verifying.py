"""Does what was built say what the model says? Figures, and a sentence for each reason why not. A fault is reported, not raised.

llama.cpp opens a file in a process of its own, after our own reader has found its header sound; a crash in it is a failed check.
What it says is held against transformers and PEFT, which share no code with the building. All files of a build are held against one
pass of them: first every file answers, then the reference weighs the rows and each answer.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError

from studio.errors import UserError
from studio.ml.gguf import architectures
from studio.ml.gguf.answering import LOGITS
from studio.ml.gguf.asking import Answer, Logits, Refused, ask_llamacpp
from studio.ml.gguf.cases import BUILT_IN, MOST_LOGITS, Case, Row, ends, make_case, read
from studio.ml.gguf.comparing import Comparison, compare, judge
from studio.ml.gguf.exporting import export
from studio.ml.gguf.header import read_header
from studio.ml.gguf.limits import reasons_against
from studio.ml.gguf.lora import read_adapter
from studio.ml.gguf.reference import Reference
from studio.ml.gguf.weights import Weights
from studio.training.job import Job

__all__ = ["BUILT_IN", "MOST_LOGITS", "Row", "verify", "verify_adapter", "verify_all", "verify_merged"]

UNTAKEN: dict[str, Any] = {
    "loads": False, "tokenizer_texts": None, "tokenizer_equal": None, "tokenizer_adjusted": 0, "caveats": [], "template": False,
    "stops": False, "tokens": None, "mean_kl": None, "max_kl": None, "perplexity": None, "perplexity_reference": None, "top1": None,
    "greedy_prompts": None, "greedy_equal": None, "greedy_undecided": None, "tokens_per_second": None,
    "prompt_tokens_per_second": None, "memory": None, "load_seconds": None, "sandbox": [],
}  # fmt: skip
"""Every figure, before it is taken. A figure that is no number, or was never taken, is None."""


@dataclass(frozen=True)
class Subject:
    """One file that is checked."""

    gguf: Path
    quantization: str
    adapter: Path | None = None
    """A GGUF adapter that llama.cpp adds to it."""


def verify(
    *,
    gguf: Path,
    base: Path,
    adapter: Path | None,
    quantization: str,
    rows: list[Row],
    job: Job,
    threads: int = 1,
    memory: int | None = None,
) -> dict[str, Any]:
    """`verify_all` for one file; `memory` is what is free without."""
    found = verify_all(
        {"": gguf},
        quantizations={"": quantization},
        base=base,
        adapter=adapter,
        rows=rows,
        job=job,
        threads=threads,
        memory=psutil.virtual_memory().available if memory is None else memory,
    )
    return found[""]


def verify_all(
    files: Mapping[str, Path],
    *,
    quantizations: Mapping[str, str],
    base: Path,
    adapter: Path | None,
    rows: list[Row],
    job: Job,
    threads: int,
    memory: int,
) -> dict[str, dict[str, Any]]:
    """Compares each file with base + adapter on held-out `rows`; by the keys of `files`, the figures, `passed`, and `reasons`.

    KL is KL(reference || file) in nats per token; perplexities are over the same tokens; `top1` is the share of tokens whose likeliest
    next one is the same. Speeds are tokens per second with `threads` threads, `memory` of the result is the most bytes that llama.cpp had
    in memory, its mapped file included. The argument `memory` is what the reference may take, in bytes. `job.work` takes logits for a
    while: up to MOST_LOGITS for each file.
    """
    subjects = {key: Subject(path, quantizations[key]) for key, path in files.items()}
    return _verified(subjects, base=base, adapter=adapter, rows=rows, job=job, threads=threads, memory=memory)


def verify_adapter(
    *,
    gguf: Path,
    base: Path,
    adapter: Path,
    rows: list[Row],
    job: Job,
    threads: int,
    memory: int,
    base_gguf: Path | None = None,
) -> dict[str, Any]:
    """The same figures for an adapter that llama.cpp adds to its base while it runs: to `base_gguf`, or to one in f16 made for this."""
    with ExitStack() as made:
        if base_gguf is None:
            base_gguf = job.work / "base-f16.gguf"
            made.callback(base_gguf.unlink, missing_ok=True)
            export(base=base, adapter=None, quantization="f16", target=base_gguf, name="base", threads=threads, stopping=job.stopping)
        subject = Subject(base_gguf, "f16", adapter=gguf)
        return _verified({"": subject}, base=base, adapter=adapter, rows=rows, job=job, threads=threads, memory=memory)[""]


def verify_merged(
    *, folder: Path, base: Path, adapter: Path | None, precision: str, rows: list[Row], job: Job, memory: int
) -> dict[str, Any]:
    """Compares a folder of merged safetensors, as transformers loads it, with base + adapter as PEFT computes it.

    `precision` is f32, f16 or bf16. The folder's tokenizer and template must be the adapter's.
    """
    job.progress(0, 3, "checks")
    tokenizer_folder = _tokenizer_folder(base, adapter)
    case = make_case(base, rows, tokenizer_folder=tokenizer_folder)
    logits = job.work / LOGITS
    try:
        figures = {"loads": True, **_same_words(folder, tokenizer_folder, case)}
        columns = _leave_logits(folder, case, logits, job=job, memory=memory)
    except (UserError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        return unloaded(f"transformers cannot load the folder: {error}"[:300])
    job.progress(1, 3, "checks")
    comparison, left = Comparison(), Logits(logits, tokens=sum(map(len, case.sequences)), columns=columns)
    with Reference(base, adapter, job=job, memory=memory) as reference:
        for ids, ours in zip(case.sequences, reference.forward(case.sequences), strict=True):
            compare(ours, ids, [(comparison, left.take(len(ids)))])
    left.close()
    logits.unlink()
    job.progress(3, 3, "checks")
    return _verdict(UNTAKEN | figures | comparison.figures(), precision)


def _verified(
    subjects: Mapping[str, Subject], *, base: Path, adapter: Path | None, rows: list[Row], job: Job, threads: int, memory: int
) -> dict[str, dict[str, Any]]:
    steps = len(subjects) + 3
    job.progress(0, steps, "checks")
    case = make_case(base, rows, tokenizer_folder=_tokenizer_folder(base, adapter))
    verdicts: dict[str, dict[str, Any]] = {}
    answers: dict[str, tuple[Answer, Logits]] = {}
    with ExitStack() as opened:
        for number, (key, subject) in enumerate(subjects.items()):
            job.progress(1 + number, steps, "checks")
            folder = opened.enter_context(_emptied(job.work / f"llamacpp-{number}"))
            try:
                answers[key] = _asked(subject, case, folder=folder, job=job, threads=threads)
            except (Refused, UserError) as reason:
                verdicts[key] = unloaded(str(reason))
            else:
                opened.callback(answers[key][1].close)
        if answers:
            with Reference(base, adapter, job=job, memory=memory) as reference:
                begun = 1 + len(subjects)
                found = _weighed(
                    reference, case, answers, progress=lambda done, total: job.progress(begun + 2 * done / total, steps, "checks")
                )
            for key, comparison in found.items():
                figures = UNTAKEN | _spoken(case, answers[key][0]) | comparison.figures()
                figures |= {"greedy_prompts": len(case.prompts), "greedy_equal": comparison.equal, "greedy_undecided": comparison.undecided}
                verdicts[key] = _verdict(figures, subjects[key].quantization)
    job.progress(steps, steps, "checks")
    return {key: verdicts[key] for key in subjects}


def _asked(subject: Subject, case: Case, *, folder: Path, job: Job, threads: int) -> tuple[Answer, Logits]:
    for path in filter(None, (subject.gguf, subject.adapter)):
        read_header(path)
    return ask_llamacpp(subject.gguf, case, adapter=subject.adapter, folder=folder, job=job, threads=threads)


def _weighed(reference: Reference, case: Case, answers: Mapping[str, tuple[Answer, Logits]], *, progress: Any) -> dict[str, Comparison]:
    """One pass over the rows and over each prompt with each answer that a file gave to it; equal ones are read once."""
    found = {key: Comparison() for key in answers}
    given: dict[tuple[int, ...], list[tuple[str, list[int]]]] = {}
    for key, (answer, _) in answers.items():
        for prompt, words in zip(case.prompts, answer.answers, strict=True):
            given.setdefault((*prompt, *words[:-1]), []).append((key, words))
    sequences = case.sequences + [list(ids) for ids in given]
    keep = [len(ids) for ids in case.sequences] + [len(group[0][1]) for group in given.values()]
    passed = reference.forward(sequences, keep=keep, progress=progress)
    for ids in case.sequences:
        compare(next(passed), ids, [(found[key], logits.take(len(ids))) for key, (_, logits) in answers.items()])
    for group, logits in zip(given.values(), passed, strict=True):
        for key, words in group:
            judge(found[key], logits, words, case.ends)
    return found


def _spoken(case: Case, answer: Answer) -> dict[str, Any]:
    """What can be compared word for word, and what was measured on the way."""
    ours, theirs = zip(case.text_ids, case.letter_ids, strict=True), zip(answer.texts, answer.letters, strict=True)
    return {
        "loads": True,
        "tokenizer_texts": len(case.texts),
        "tokenizer_equal": sum(one == other for one, other in zip(ours, theirs, strict=True)),
        "tokenizer_adjusted": case.adjusted,
        "caveats": case.caveats,
        "template": answer.chats == case.chat_ids,
        "stops": bool(case.ends) and all(answer.ends),
        "tokens_per_second": round(answer.tokens_per_second, 1),
        "prompt_tokens_per_second": round(answer.prompt_tokens_per_second, 1),
        "load_seconds": round(answer.load_seconds, 3),
        "memory": answer.memory,
        "sandbox": answer.sandbox,
    }


def _same_words(folder: Path, tokenizer_folder: Path, case: Case) -> dict[str, Any]:
    from studio.ml.tokens import load_tokenizer

    ours, theirs = load_tokenizer(tokenizer_folder), load_tokenizer(folder)
    equal = zip(
        zip(case.text_ids, case.letter_ids, strict=True),
        zip(read(theirs, case.texts, letters=False), read(theirs, case.texts, letters=True), strict=True),
        strict=True,
    )
    return {
        "tokenizer_texts": len(case.texts),
        "tokenizer_equal": sum(one == other for one, other in equal),
        "template": ours.chat_template == theirs.chat_template,
        "stops": bool(case.ends) and set(ends(tokenizer_folder, ours)) <= set(ends(folder, theirs)),
    }


def _leave_logits(folder: Path, case: Case, path: Path, *, job: Job, memory: int) -> int:
    """Writes what the model in `folder` says of the rows; returns the size of its vocabulary."""
    columns = 0
    with Reference(folder, None, job=job, memory=memory) as merged, path.open("wb") as file:
        for logits in merged.forward(case.sequences):
            logits.tofile(file)
            columns = logits.shape[1]
    return columns


def _tokenizer_folder(base: Path, adapter: Path | None) -> Path:
    """The adapter's where the vocabulary grew in training, else the base's."""
    if adapter is None:
        return base
    with Weights.of_model(base) as weights, read_adapter(adapter, weights, tied=architectures.read_shape(base).tied) as read_in:
        return read_in.tokenizer or base


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """An empty folder inside the block, gone behind it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verdict(figures: dict[str, Any], quantization: str) -> dict[str, Any]:
    reasons = reasons_against(figures, quantization)
    return {**figures, "passed": not reasons, "reasons": reasons}


def unloaded(reason: str) -> dict[str, Any]:
    return {**UNTAKEN, "passed": False, "reasons": [reason]}
