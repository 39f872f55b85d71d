"""The estimator against figures that others have published: inside their range, or off it for a reason that docs/benchmarks.md names."""

from dataclasses import dataclass
from typing import Any

import pytest

from studio.training import DatasetFacts, HostFacts, ModelFacts, TokenFacts
from studio.training.config import FullConfig, LoraConfig
from studio.training.facts import Gpu, Linear
from studio.training.memory import estimate

GB, GIB = 10**9, 1 << 30
CARD = HostFacts(name="gpu", cpus=16, memory=1000 * GB, gpus=[Gpu(name="card", memory=10_000 * GB)], bf16=True, gflops=312e3)


def llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, *, tied: bool = False) -> ModelFacts:
    size = hidden // heads
    shapes = {"q": (hidden, hidden), "k": (hidden, kv_heads * size), "v": (hidden, kv_heads * size), "o": (hidden, hidden)}
    shapes |= {"gate": (hidden, intermediate), "up": (hidden, intermediate), "down": (intermediate, hidden)}
    linears = [Linear(name=f"{name}_proj", inputs=a, outputs=b, count=layers) for name, (a, b) in shapes.items()]
    parameters = sum(each.inputs * each.outputs * layers for each in linears) + vocabulary * hidden * (1 if tied else 2)
    return ModelFacts(
        name="base",
        architecture="LlamaForCausalLM",
        family="llama",
        parameters=parameters,
        hidden_size=hidden,
        layers=layers,
        intermediate_size=intermediate,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        context_length=8192,
        tied=tied,
        dtype="BF16",
        size=parameters * 2,
        linears=linears,
        chat_template=True,
    )


MODELS = {
    "Llama-3.2-1B": llama(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "Llama-3.2-3B": llama(3072, 8192, 28, 24, 8, 128_256, tied=True),
    "Llama-2-7B": llama(4096, 11008, 32, 32, 32, 32_000),
    "Llama-3-8B": llama(4096, 14336, 32, 32, 8, 128_256),
    "Llama-2-13B": llama(5120, 13824, 40, 40, 40, 32_000),
    "Qwen2.5-14B": llama(5120, 13824, 48, 40, 8, 152_064),
    "Qwen2.5-32B": llama(5120, 27648, 64, 40, 8, 152_064),
    "Llama-3.1-70B": llama(8192, 28672, 80, 64, 8, 128_256),
}


def rows_of(length: int) -> DatasetFacts:
    """Rows that are all of one length, every token of them learnt."""
    tokens = TokenFacts(total=1000 * length, supervised=1000 * length, p50=length, p95=length, p99=length, longest=length)
    return DatasetFacts(name="rows", shape="chat", rows=1000, train=1000, validation=0, tokens=tokens)


def foreseen(model: str, config: LoraConfig | FullConfig) -> float:
    """GB at the peak."""
    memory = estimate(config, MODELS[model], rows_of(config.max_length), CARD).memory
    parts = memory.model_dump()
    return sum(value for name, value in parts.items() if name not in ("low", "high")) / GB


def lora(*, length: int, rows: int = 1, checkpointing: str = "on", **settings: Any) -> LoraConfig:
    return LoraConfig(max_length=length, batch_size=rows, gradient_checkpointing=checkpointing, **settings)


def full(*, length: int, rows: int = 1, **settings: Any) -> FullConfig:
    return FullConfig(max_length=length, batch_size=rows, gradient_checkpointing="on", **settings)


@dataclass(frozen=True)
class Published:
    """One figure, with the settings that its source names."""

    source: str
    model: str
    config: LoraConfig | FullConfig
    low: float
    high: float
    """GB."""


QLORA, QV = {"quantization": "4bit", "rank": 32}, {"rank": 8, "targets": ["q_proj", "v_proj"]}
LITGPT_TABLE = "litgpt tutorials/resource-tables.md, A100 40 GB, LoRA r8 on q and v, bf16-true, no checkpointing, 1304 tokens"
LITGPT_HUB = "litgpt config_hub/finetune/README.md, A10G 24 GB, 512 tokens"
AXOLOTL_DOC = "Axolotl docs/choosing_method.qmd @067b021c, 512 to 2048 tokens, 1 or 2 rows"
AXOLOTL_EXAMPLES = "Axolotl example READMEs, 2048 tokens packed, 2 rows, checkpointing, r32"
FACTORY = "LLaMA-Factory README @ff6d4d12, rules of thumb, within 10 %"
INSIDE = [
    Published(AXOLOTL_DOC, "Llama-3.2-3B", lora(length=2048, rows=2, **QLORA), 6, 8),
    Published(AXOLOTL_DOC, "Llama-3-8B", lora(length=2048, rows=2, **QLORA), 10, 14),
    Published(AXOLOTL_DOC, "Llama-3-8B", lora(length=2048, rows=1), 16, 24),
    Published(AXOLOTL_DOC, "Llama-2-13B", lora(length=2048, rows=2), 28, 40),
    Published(AXOLOTL_DOC, "Qwen2.5-32B", lora(length=1024, rows=1), 64, 80),
    Published(AXOLOTL_DOC, "Llama-3.1-70B", lora(length=512, rows=1), 141, 160),
    Published(AXOLOTL_DOC, "Llama-3.1-70B", lora(length=512, rows=1, quantization="4bit"), 40, 48),
    Published(AXOLOTL_DOC, "Llama-2-7B", full(length=2048, rows=2, weights="bf16"), 60 * 0.93, 80),  # 5 % below: 8 bytes a weight are 54 GB
    Published(FACTORY, "Llama-2-7B", full(length=2048, weights="mixed"), 108, 132),
    Published(FACTORY, "Llama-2-7B", full(length=2048, weights="bf16"), 54, 66),
    Published(FACTORY, "Llama-2-7B", lora(length=2048), 14.4, 17.6),
    Published(FACTORY, "Llama-2-7B", lora(length=1024, quantization="8bit"), 9, 11),
    Published(FACTORY, "Llama-2-7B", lora(length=512, quantization="4bit"), 5.4, 6.6),
    Published(LITGPT_TABLE, "Llama-2-7B", lora(length=1304, checkpointing="off", **QV), 21.3 * 0.9, 21.3 * 1.1),
    Published(LITGPT_TABLE, "Llama-2-7B", lora(length=1304, rows=2, checkpointing="off", **QV), 29.07 * 0.9, 29.07 * 1.1),
    Published(LITGPT_TABLE, "Llama-2-13B", lora(length=1304, checkpointing="off", **QV), 38.12 * 0.9, 38.12 * 1.1),
    Published(LITGPT_HUB, "Llama-3.2-1B", lora(length=512, checkpointing="off", **QV), 4.49 * 0.9, 4.49 * 1.1),
    Published(LITGPT_HUB, "Llama-3.2-3B", lora(length=512, checkpointing="off", **QV), 9.67 * 0.9, 9.67 * 1.1),
    Published(LITGPT_HUB, "Llama-2-7B", lora(length=512, rows=2, checkpointing="off", **QV), 19.77 * 0.9, 19.77 * 1.1),
    Published(LITGPT_HUB, "Llama-3-8B", lora(length=512, checkpointing="off", **QV), 19.73 * 0.9, 19.73 * 1.1),
]
LEANER = [
    Published(AXOLOTL_EXAMPLES, "Llama-3-8B", lora(length=2048, rows=2, **QLORA), 8.7 * GIB / GB, 8.7 * GIB / GB),
    Published(AXOLOTL_EXAMPLES, "Llama-3-8B", lora(length=4096, quantization="8bit", rank=32), 11 * GIB / GB, 11 * GIB / GB),
]
"""Axolotl's examples keep AdamW in 8 bits, the output layer's logits never whole, and one input for adapters that share it: we do not."""

HEAVIER = [
    Published(LITGPT_TABLE, "Llama-2-7B", lora(length=1304, checkpointing="off", quantization="4bit", **QV), 14.14, 14.14),
    Published(LITGPT_TABLE, "Llama-2-13B", lora(length=1304, checkpointing="off", quantization="4bit", **QV), 23.14, 23.14),
]
"""litgpt keeps one scale in fp32 for every 64 weights (nf4 without double quantization); what else its peak held is not known."""


@pytest.mark.parametrize("case", INSIDE, ids=lambda case: f"{case.model}, {case.source[:24]}, {case.low:.1f} to {case.high:.1f}")
def test_the_estimate_lies_where_others_measured(case):
    assert case.low <= foreseen(case.model, case.config) <= case.high


@pytest.mark.parametrize("case", LEANER, ids=lambda case: f"{case.model}, {case.high:.1f}")
def test_recipes_that_are_leaner_than_ours_lie_below_by_what_they_spare(case):
    memory = estimate(case.config, MODELS[case.model], rows_of(case.config.max_length), CARD).memory
    spared = memory.optimizer * 3 / 4 + memory.logits
    assert case.high < foreseen(case.model, case.config) - spared / GB < 1.3 * case.high


@pytest.mark.parametrize("case", HEAVIER, ids=lambda case: f"{case.model}, {case.high:.1f}")
def test_an_older_recipe_in_4_bits_lies_above(case):
    assert 0.75 * case.high < foreseen(case.model, case.config) < case.high


@pytest.mark.parametrize(
    ("model", "quantization", "card", "fits"),
    [
        ("Llama-2-7B", "none", 24, True),
        ("Llama-2-7B", "4bit", 24, True),
        ("Llama-2-13B", "none", 24, False),
        ("Llama-2-13B", "4bit", 24, True),
        ("Llama-3.1-70B", "4bit", 24, False),
        ("Llama-2-13B", "none", 80, True),
        ("Llama-3.1-70B", "4bit", 80, True),
    ],
)
def test_what_h2o_found_to_fit_is_thought_to_fit(model, quantization, card, fits):
    """H2O LLM Studio docs, performance page: 512 tokens, 2 rows, rank 4, checkpointing, on an A10G and an A100."""
    config = lora(length=512, rows=2, rank=4, quantization=quantization)
    memory = estimate(config, MODELS[model], rows_of(512), CARD).memory
    assert (memory.high <= card * GIB) is fits
