"""What a sound file of each type stays below, and a sentence for each limit that a file does not keep."""

import math
from dataclasses import dataclass
from typing import Any

ANSWER_TOKENS = 20
"""Tokens of the greedy answers that are compared."""


FAR = 0.5
"""Nats per token beyond which it is asked whether the file still chooses the model's words."""


@dataclass(frozen=True)
class Limit:
    """What a sound file of one type stays below, some ten times above what was measured where that is still less than a wrong file's."""

    mean_kl: float
    """Nats per token."""
    greedy: float = 0.0
    """Share of greedy answers whose first tokens are equal, or part where the reference was undecided."""
    top1: float = 0.0
    """Share of likeliest next tokens that a file farther than FAR away must have in common with the model."""


LIMITS = {
    # Mean KL(reference || file) and the share of likeliest tokens in common, measured on SmolLM2-135M with a random rank-16 adapter over
    # 541 tokens of chat, code, English and German. So small a model suffers more from few bits than any larger one.
    "f32": Limit(1e-4, greedy=0.9),  # 3.0e-6, 100 %: llama.cpp keeps keys and values in f16
    "f16": Limit(1e-3, greedy=0.9),  # 1.1e-5, 100 %
    "bf16": Limit(5e-3),  # 3.6e-4, 99.8 %
    "q8_0": Limit(0.05),  # 6.4e-3, 96 %: llama.cpp also rounds activations to 8 bits
    "q6_k": Limit(0.3),  # 0.026, 91 %
    "q5_k_m": Limit(1.0, top1=0.4),  # 0.14, 83 %: this model's weights lie on a grid of 4 bits, which suits 5 bits worse than 4
    "q5_k_s": Limit(1.0, top1=0.4),  # 0.15, 84 %
    "q4_k_m": Limit(1.0, top1=0.4),  # 0.12, 82 %
    "q4_k_s": Limit(1.0, top1=0.4),  # 0.13, 81 %
    "q3_k_m": Limit(1.5, top1=0.4),  # 0.21, 76 %
    "q4_0": Limit(2.0, top1=0.35),  # 0.59, 62 %
    "iq4_nl": Limit(2.0, top1=0.35),  # 0.43, 75 %
    "iq4_xs": Limit(2.0, top1=0.35),  # 0.44, 75 %
    "mxfp4": Limit(3.0, top1=0.35),  # 1.06, 60 %
    "q2_k": Limit(3.0, top1=0.35),  # 0.68, 62 %
}
"""A wrong rope order, template, scale or vocabulary gives 1 to 20 nats: an rsLoRA scaled as LoRA gave 3.7, with 27 % in common. Where ten
times the measured value would let that pass, the tokens in common tell a wrong file from a coarse one; perplexity does not, which may
even fall when a file is wrong."""


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
    elif mean > FAR and figures["top1"] < limit.top1:
        reasons.append(
            f"Only {figures['top1']:.0%} of the likeliest next words are the model's; of {quantization}, {limit.top1:.0%} must be."
        )
    prompts = figures["greedy_prompts"] or 0
    if prompts and figures["greedy_equal"] + figures["greedy_undecided"] < math.floor(limit.greedy * prompts):
        reasons.append(f"Only {figures['greedy_equal']} of {prompts} answers begin with the same {ANSWER_TOKENS} tokens.")
    return reasons
