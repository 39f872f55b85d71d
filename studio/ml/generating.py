"""A model's answer to a conversation, greedily: the same question gets the same answer. No streaming, no sampling."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")
"""How known templates close a turn; each counts only where the tokenizer knows it as one token."""


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: Any,
    messages: Sequence[dict[str, str]],
    max_new_tokens: int = 48,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> str:
    """The next message, as text. Ends at the end of the turn, after `max_new_tokens`, or as soon as `stopping()` is true."""
    return _completed(model, tokenizer, prompt_ids(tokenizer, messages), max_new_tokens, stopping).strip()


@torch.no_grad()
def continuation(model: Any, tokenizer: Any, text: str, max_new_tokens: int = 48, *, stopping: Callable[[], bool] = lambda: False) -> str:
    """How a model of plain text goes on with one. Ends as `answer` does."""
    return _completed(model, tokenizer, list(tokenizer(text)["input_ids"]), max_new_tokens, stopping).rstrip()


def _completed(model: Any, tokenizer: Any, ids: list[int], limit: int, stopping: Callable[[], bool]) -> str:
    was_training = model.training
    model.eval()
    try:
        made = _greedy(model, ids, limit, end_ids(model, tokenizer), stopping)
    finally:
        model.train(was_training)
    return str(tokenizer.decode(made, skip_special_tokens=True))


def _greedy(model: Any, ids: list[int], limit: int, ends: set[int], stopping: Callable[[], bool]) -> list[int]:
    device = next(model.parameters()).device
    made: list[int] = []
    cache = None
    feed = torch.tensor([ids], device=device)
    last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}  # a word's logits are wide, and a prompt has many words
    while len(made) < limit and not stopping():
        out = model(input_ids=feed, past_key_values=cache, use_cache=True, **last)
        cache = out.past_key_values
        token = int(out.logits[0, -1].argmax())
        if token in ends:
            break
        made.append(token)
        feed = torch.tensor([[token]], device=device)
    return made


def prompt_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """The conversation up to where the answer begins; without a chat template, its texts one below another."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n".join(message["content"] for message in messages))["input_ids"])


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer: what the tokenizer, the model's configs and known templates name."""
    named = [tokenizer.eos_token_id, getattr(model.config, "eos_token_id", None)]
    generation = getattr(model, "generation_config", None)
    named.append(getattr(generation, "eos_token_id", None))
    ends = {token for entry in named for token in (entry if isinstance(entry, list) else [entry]) if token is not None}
    known = tokenizer.get_added_vocab()
    return ends | {known[text] for text in TURN_ENDS if text in known}
