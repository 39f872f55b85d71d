"""What a sound file of each type stays below, and a sentence for each limit that a file does not keep."""

import math
from dataclasses import dataclass
from typing import Any

ANSWER_TOKENS = 20
"""Tokens of the greedy answers that are compared."""


@dataclass(frozen=True)
class Limit:
    """What a sound file of one type stays below, set some ten times above what was measured."""

    mean_kl: float
    """Nats per token."""
    greedy: float = 0.0
    """Share of greedy answers whose first tokens are equal, or part where the reference was undecided."""


LIMITS = {
    # SmolLM2-135M with a rank-16 adapter, mean KL(reference || file) over 371 tokens of chat, code, English and German:
    "f32": Limit(1e-4, 0.9),
    "f16": Limit(1e-3, 0.9),  # 1.1e-5, 99.5 % of the likeliest tokens equal
    "bf16": Limit(5e-3),  # 4.5e-4, 99.5 %
    "q8_0": Limit(5e-2),  # 1.1e-2, 95 %: llama.cpp also rounds activations to 8 bits, which alone is 7e-3
    "q6_k": Limit(0.3),
    "q5_k_m": Limit(1.0),
    "q5_k_s": Limit(1.0),
    "q4_k_m": Limit(0.5),  # 0.16, 84 %: a small model suffers more from 4 bits than a large one
    "q4_k_s": Limit(1.0),
    "q4_0": Limit(1.0),
    "q3_k_m": Limit(1.5),
    "q2_k": Limit(3.0),
    "iq4_nl": Limit(1.0),
    "iq4_xs": Limit(1.0),
    "mxfp4": Limit(1.5),
}
"""A wrong rope order, template, scale or vocabulary gives 1 to 20 nats (an rsLoRA scaled as LoRA: 3.7)."""


def reasons_against(figures: dict[str, Any], quantization: str) -> list[str]:
    """A sentence for each limit that the file does not keep; empty where it passes. Figures that were not taken are not judged."""
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
    prompts = figures["greedy_prompts"] or 0
    if prompts and figures["greedy_equal"] + figures["greedy_undecided"] < math.floor(limit.greedy * prompts):
        reasons.append(f"Only {figures['greedy_equal']} of {prompts} answers begin with the same {ANSWER_TOKENS} tokens.")
    return reasons
