"""Does the file say in llama.cpp what the merged model says in transformers? Figures, and a sentence for each reason why not.

llama.cpp opens the file in a process of its own, after our own reader has found the header sound; a crash in it is a failed check.
The reference is made by other code than the file: transformers loads the base in float32 and PEFT merges the adapter.
"""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import studio
from studio.ml import llamacpp
from studio.ml.gguf import vocabulary
from studio.ml.gguf.header import read_header
from studio.training.job import Job

ANSWER_TOKENS = 20
"""Tokens of the greedy answers that are compared."""
LONGEST_ROW = 256
"""Tokens of a held-out row that are looked at."""
MOST_LOGITS = 256 << 20
"""Bytes of logits that are kept on disk; a large vocabulary gets fewer tokens."""
UNDECIDED = 0.2
"""Two words whose logits lie closer than this in the reference may change places; f16 moves logits by up to 0.11."""
LONGEST_CHILD = 1800.0
"""Seconds after which llama.cpp is given up on."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """What a sound file of one type stays below, set some ten times above what was measured."""

    mean_kl: float
    """Nats per token."""
    greedy: float
    """Share of greedy answers whose first tokens are equal, or part where the reference was undecided."""


LIMITS = {
    # SmolLM2-135M with a rank-16 adapter, mean KL(reference || file) over 371 tokens of chat, code, English and German:
    "f16": Limit(1e-3, 0.9),  # 1.1e-5, 99.5 % of the likeliest tokens equal
    "bf16": Limit(5e-3, 0.0),  # 4.5e-4, 99.5 %
    "q8_0": Limit(5e-2, 0.0),  # 1.1e-2, 95 %: llama.cpp also rounds activations to 8 bits, which alone is 7e-3
    "q4_k_m": Limit(0.5, 0.0),  # 0.16, 84 %: a small model suffers more from 4 bits than a large one
}
"""A wrong rope order, template, scale or vocabulary gives 1 to 20 nats (an rsLoRA scaled as LoRA: 3.7)."""

CONVERSATIONS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Give me three tips for staying healthy.", "1. Eat a balanced diet.\n2. Move every day.\n3. Sleep eight hours."),
    ("Write a short reply to a customer who asks where the order is.", "Thank you for writing. Your order left our warehouse today."),
    ("How much is 17 + 25?", "17 + 25 = 42."),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Übersetze ins Deutsche: Good morning!", "Guten Morgen!"),
    ("Summarise: The meeting was moved from Monday to Thursday because the room was taken.", "The meeting is now on Thursday."),
    ("Name the colours of the rainbow.", "Red, orange, yellow, green, blue, indigo and violet."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so we see blue from every direction."),
    ("Write one sentence about the sea.", "The sea was calm, and the boats lay still in the evening light."),
)
BUILT_IN: list[Row] = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} for question, answer in CONVERSATIONS
]
"""Rows to compare on where a build has none of its own."""


@dataclass(frozen=True)
class Case:
    """What both sides are asked."""

    texts: list[str]
    text_ids: list[list[int]]
    chats: list[list[dict[str, str]]]
    """Conversations that end with a question."""
    chat_ids: list[list[int]]
    sequences: list[list[int]]
    """Whole rows, whose every next token is weighed."""
    prompts: list[list[int]]
    ends: list[int]
    """Tokens that end an answer."""


def verify(
    *, gguf: Path, base: Path, adapter: Path | None, quantization: str, rows: list[Row], job: Job, threads: int = 1
) -> dict[str, Any]:
    """Compares `gguf` with base + adapter on held-out `rows`; returns the figures, `passed`, and `reasons` as sentences.

    KL is KL(reference || file) in nats per token; perplexities are over the same tokens. `job.work` takes temporary files.
    A file that llama.cpp cannot load, or that fails a comparison, is reported, not raised.
    """
    read_header(gguf)
    job.progress(0, 4, "checks")
    case = make_case(base, rows or BUILT_IN)
    job.progress(1, 4, "checks")
    answered = ask_llamacpp(gguf, case, folder=job.work, job=job, threads=threads)
    if "refused" in answered:
        return unloaded(str(answered["refused"]))
    job.progress(2, 4, "checks")
    reference = Reference(base, adapter, job=job)
    figures = {"loads": True, **spoken(case, answered), **greedy(reference, case, answered["answers"], job=job)}
    job.progress(3, 4, "checks")
    figures |= compared(reference, case, job.work / llamacpp.LOGITS, columns=int(answered["vocabulary"]), job=job)
    (job.work / llamacpp.LOGITS).unlink()
    job.progress(4, 4, "checks")
    reasons = reasons_against(figures, quantization)
    return {**figures, "passed": not reasons, "reasons": reasons}


def make_case(base: Path, rows: list[Row]) -> Case:
    from studio.ml.generating import prompt_ids
    from studio.ml.tokenizer_proof import TEXTS
    from studio.ml.tokens import encode_row, load_tokenizer

    tokenizer = load_tokenizer(base)
    backend = tokenizer.backend_tokenizer
    encoded = [encode_row(tokenizer, row, max_length=LONGEST_ROW) for row in rows]
    chats = [chat for row in rows if (chat := question(row))]
    chat_ids = [prompt_ids(tokenizer, chat) for chat in chats]
    heads = [row.ids[: max(2, len(row.ids) // 2)] for row, source in zip(encoded, rows, strict=True) if "text" in source]
    turn_ends = {end for row, source in zip(encoded, rows, strict=True) if (end := turn_end(row, source)) is not None}
    ids = backend.get_vocab(with_added_tokens=True)
    ends = vocabulary.special_tokens(base, ids, rows=max(ids.values()) + 1).ends
    return Case(
        texts=list(TEXTS),
        text_ids=[backend.encode(text, add_special_tokens=False).ids for text in TEXTS],
        chats=chats,
        chat_ids=chat_ids,
        sequences=within([row.ids for row in encoded if len(row.ids) > 1], columns=backend.get_vocab_size(with_added_tokens=True)),
        prompts=[ids[-LONGEST_ROW:] for ids in chat_ids] + heads,
        ends=sorted({*ends, *turn_ends}),
    )


def question(row: Row) -> list[dict[str, str]]:
    """A row's conversation up to its last question; empty for a row of text."""
    messages = list(row.get("messages", []))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    return messages


def turn_end(encoded: Any, row: Row) -> int | None:
    """The token that a whole chat was taught to end its answer with."""
    if "messages" not in row or encoded.cut or not encoded.teaches:
        return None
    return int(encoded.ids[-1 - encoded.supervised[::-1].index(True)])


def within(sequences: list[list[int]], *, columns: int) -> list[list[int]]:
    """As many of the tokens as may be weighed; every row keeps its share."""
    share = max(16, MOST_LOGITS // (4 * columns) // max(1, len(sequences)))
    return [ids[:share] for ids in sequences]


def ask_llamacpp(gguf: Path, case: Case, *, folder: Path, job: Job, threads: int) -> dict[str, Any]:
    """The file's answers, from a process of its own; `{"refused": sentence}` where it gives none."""
    request = folder / "request.json"
    longest = max(len(ids) for ids in [*case.sequences, *case.prompts])
    request.write_text(
        json.dumps(
            {
                "gguf": str(gguf),
                "threads": threads,
                "context": -(-(longest + ANSWER_TOKENS + 1) // 256) * 256,
                "texts": case.texts,
                "chats": case.chats,
                "sequences": case.sequences,
                "prompts": case.prompts,
                "count": ANSWER_TOKENS,
                "ends": case.ends,
            }
        )
    )
    answer = folder / llamacpp.ANSWER
    answer.unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "studio.ml.llamacpp", str(request), str(folder)],
        env=_bare_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        timely = _wait(child, job)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if not timely:
        return {"refused": f"llama.cpp did not answer within {LONGEST_CHILD / 60:.0f} minutes."}
    if child.returncode != 0 or not answer.exists():
        return {"refused": f"llama.cpp ended without an answer (exit {child.returncode}). The log has its last words."}
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def _bare_environment() -> dict[str, str]:
    """Nothing of what the studio keeps in its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return kept | {"PYTHONPATH": str(Path(next(iter(studio.__path__))).parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _wait(child: subprocess.Popen[bytes], job: Job) -> bool:
    begun = time.monotonic()
    while time.monotonic() - begun < LONGEST_CHILD:
        try:
            child.wait(timeout=0.25)
            return True
        except subprocess.TimeoutExpired:
            job.raise_if_stopped()
    return False


class Reference:
    """The merged model in transformers: float32 where it fits into memory, else bfloat16, which is said."""

    def __init__(self, base: Path, adapter: Path | None, *, job: Job):
        import torch
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if fits_in_float32(base) else torch.bfloat16
        if dtype is torch.bfloat16:
            job.note("The merged model is compared in bfloat16, since it does not fit into memory in float32.", level="warning")
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter, is_trainable=False).merge_and_unload()
        self.model = model.eval()

    def logits(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """Shape (tokens, vocabulary)."""
        import torch

        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        return found

    def answer(self, ids: list[int], ends: list[int]) -> list[int]:
        """The likeliest next tokens; the one that ends the answer stands last."""
        import torch
        from transformers import GenerationConfig

        prompt = torch.tensor([ids])
        settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=ends or None, pad_token_id=(ends or [0])[0]
        )
        with torch.inference_mode():
            made = self.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        return [int(number) for number in made[0, len(ids) :]]


def fits_in_float32(base: Path) -> bool:
    import psutil

    from studio.ml.gguf.weights import Weights

    with Weights.of_model(base) as weights:
        parameters = sum(math.prod(place.shape) for place in weights.places.values())
    return bool(parameters * 4 * 1.2 + (1 << 30) < psutil.virtual_memory().available)


def spoken(case: Case, answered: dict[str, Any]) -> dict[str, Any]:
    """What can be compared word for word."""
    chats = [answer["ids"] for answer in answered["chats"]]
    return {
        "tokenizer_texts": len(case.texts),
        "tokenizer_equal": sum(ours == theirs for ours, theirs in zip(case.text_ids, answered["texts"], strict=True)),
        "template": chats == case.chat_ids,
        "stops": bool(case.ends) and all(answered["ends"]),
        "tokens_per_second": round(float(answered["tokens_per_second"]), 1),
    }


def greedy(reference: Reference, case: Case, answers: list[list[int]], *, job: Job) -> dict[str, int]:
    """How many greedy answers are equal, and how many part at a word where the reference itself was undecided."""
    equal, undecided = 0, 0
    for prompt, theirs in zip(case.prompts, answers, strict=True):
        job.raise_if_stopped()
        ours = reference.answer(prompt, case.ends)
        parted = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        equal += ours == theirs
        if parted is not None:
            last = reference.logits(prompt + ours[:parted])[-1]
            undecided += bool(last[ours[parted]] - last[theirs[parted]] < UNDECIDED)
    return {"greedy_prompts": len(case.prompts), "greedy_equal": equal, "greedy_undecided": undecided}


def compared(reference: Reference, case: Case, logits: Path, *, columns: int, job: Job) -> dict[str, float | int | None]:
    """Token by token over the held-out rows: KL and both perplexities."""
    divergences, losses, reference_losses = [], [], []
    file = np.memmap(logits, np.float32, mode="r").reshape(-1, columns)
    first = 0
    for ids in case.sequences:
        job.raise_if_stopped()
        ours, theirs = log_probabilities(reference.logits(ids)), log_probabilities(np.asarray(file[first : first + len(ids), :columns]))
        ours, theirs = ours[:, : theirs.shape[1]], theirs[:, : ours.shape[1]]
        divergences.append((np.exp(ours) * (ours - theirs)).sum(axis=1))
        following = np.arange(len(ids) - 1), np.array(ids[1:])
        losses.append(-theirs[following])
        reference_losses.append(-ours[following])
        first += len(ids)
    divergence = np.concatenate(divergences)
    return {
        "tokens": len(divergence),
        "mean_kl": _finite(divergence.mean()),
        "max_kl": _finite(divergence.max()),
        "perplexity": _finite(np.exp(np.concatenate(losses).mean())),
        "perplexity_reference": _finite(np.exp(np.concatenate(reference_losses).mean())),
    }


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """log softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _finite(value: np.floating[Any]) -> float | None:
    """JSON has no NaN: None stands for a figure that is no number."""
    return float(value) if np.isfinite(value) else None


def reasons_against(figures: dict[str, Any], quantization: str) -> list[str]:
    """A sentence for each limit that the file does not keep; empty where it passes."""
    limit = LIMITS[quantization]
    reasons = []
    if figures["tokenizer_equal"] < figures["tokenizer_texts"]:
        wrong = figures["tokenizer_texts"] - figures["tokenizer_equal"]
        reasons.append(f"llama.cpp splits {wrong} of {figures['tokenizer_texts']} test texts into other tokens than the training did.")
    if not figures["template"]:
        reasons.append("The chat template gives another prompt in llama.cpp than in training.")
    if not figures["stops"]:
        reasons.append("llama.cpp does not end an answer at the token that the model ends it with.")
    mean = figures["mean_kl"]
    if mean is None or figures["perplexity"] is None:
        reasons.append("The file's answers hold values that are not numbers.")
    elif mean > limit.mean_kl:
        reasons.append(f"The answers differ from the model's by {mean:.2g} nats per token; {quantization} may by {limit.mean_kl:g}.")
    if figures["greedy_equal"] + figures["greedy_undecided"] < math.floor(limit.greedy * figures["greedy_prompts"]):
        reasons.append(f"Only {figures['greedy_equal']} of {figures['greedy_prompts']} answers begin with the same {ANSWER_TOKENS} tokens.")
    return reasons


def unloaded(reason: str) -> dict[str, Any]:
    return {"loads": False, "template": False, "stops": False, "passed": False, "reasons": [reason]}
