"""What a build can be stored as: each type with a plain sentence, its size before anything runs, and what is refused early. No database.

The web process never reads weights: sizes come from a base model's facts, by llama.cpp's mixes (src/llama-quant.cpp) as shares of layers.
The exact plan is made by studio.ml.gguf; tests hold both together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from studio.errors import UserError
from studio.training import ModelFacts

SUPPORTED: dict[str, str] = {
    "LlamaForCausalLM": "Llama (SmolLM2, Llama 2 and 3, TinyLlama)",
    "MistralForCausalLM": "Mistral",
    "Qwen2ForCausalLM": "Qwen2 and Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3",
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3 (text)",
    "Phi3ForCausalLM": "Phi-3 and Phi-4-mini",
    "SmolLM3ForCausalLM": "SmolLM3",
    "Olmo2ForCausalLM": "OLMo 2",
    "GraniteForCausalLM": "Granite 3",
}
"""The class in config.json of what can be built, and how people call it. studio.ml.gguf.architectures has what each needs."""

BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_1": 6.0,
    "Q5_K": 5.5,
    "Q5_0": 5.5,
    "Q4_K": 4.5,
    "Q4_0": 4.5,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "MXFP4": 4.25,
    "Q3_K": 3.4375,
    "Q2_K": 2.625,
}
"""Bits per weight of ggml's types, with their scales."""
IN_256 = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "IQ4_XS": "IQ4_NL", "Q3_K": "Q4_0", "Q2_K": "Q4_0"}
"""Types that pack 256 weights, and what llama.cpp takes where a row is no multiple of that."""
ROUGH = ("F32", "F16", "BF16")
"""Types that take a row of any length."""

Better = tuple[str, float]
"""A type, and the share of the layers that get it in place of the default; the mixes round up or down by a layer."""


@dataclass(frozen=True)
class Quantization:
    """One type of a GGUF's weights, as people choose it."""

    name: str
    default: str
    """ggml's type of the matrices that get no other."""
    sentence: str
    importance: bool = True
    """Whether measured importance changes the file."""
    output: str = "Q6_K"
    """Of the output layer, also where that is the embedding."""
    embedding: str = ""
    """Of an embedding that is not the output layer too; the default where empty."""
    better: Mapping[str, Better] = field(default_factory=dict)
    """By what a linear layer's name ends with: v_proj is also qkv_proj, which llama.cpp treats alike."""

    @property
    def bits(self) -> float:
        """Bits per weight, about: of a model whose layers are like those of most."""
        return round(sum(self.bits_of(role) * share for role, share in TYPICAL.items()), 1)

    def bits_of(self, linear: str, columns: int = 256) -> float:
        """Bits per weight of a linear layer by its name, on average over the layers."""
        kind, share = next((better for end, better in self.better.items() if linear.endswith(end)), (self.default, 1.0))
        return share * bits(kind, columns) + (1 - share) * bits(self.default, columns)


TYPICAL = {"q_proj": 0.1, "k_proj": 0.04, "v_proj": 0.04, "o_proj": 0.1, "gate_proj": 0.24, "up_proj": 0.24, "down_proj": 0.24}
"""Shares of the weights in the layers of a Llama."""

QUANTIZATIONS: dict[str, Quantization] = {
    entry.name: entry
    for entry in (
        Quantization("f32", "F32", "4 bytes per weight: every digit, twice the size of the original.", importance=False, output="F32"),
        Quantization("bf16", "BF16", "2 bytes per weight, as most models are published.", importance=False, output="BF16"),
        Quantization("f16", "F16", "2 bytes per weight: finer steps than bf16, and faster on a processor.", importance=False, output="F16"),
        Quantization("q8_0", "Q8_0", "Half the size, and answers as the original does.", importance=False, output="Q8_0"),
        Quantization("q6_k", "Q6_K", "Two fifths of the size; hardly to be told from the original."),
        Quantization(
            "q5_k_m",
            "Q5_K",
            "A third of the size, with more care where it matters; answers seldom differ.",
            better={"v_proj": ("Q6_K", 0.47), "down_proj": ("Q6_K", 0.47)},
        ),
        Quantization("q5_k_s", "Q5_K", "A little smaller than q5_k_m, and as even everywhere."),
        Quantization(
            "q4_k_m",
            "Q4_K",
            "Three tenths of the size, the usual choice from a billion weights up; answers may differ a little.",
            better={"v_proj": ("Q6_K", 0.47), "down_proj": ("Q6_K", 0.47)},
        ),
        Quantization(
            "q4_k_s",
            "Q4_K",
            "A little smaller than q4_k_m; answers differ a little more.",
            better={"v_proj": ("Q5_K", 0.15), "down_proj": ("Q5_K", 0.1)},
        ),
        Quantization("q4_0", "Q4_0", "The oldest 4-bit type: quick on phones and ARM processors, less exact than q4_k_s."),
        Quantization("iq4_nl", "IQ4_NL", "4 bits in uneven steps; takes rows of any width.", better={"down_proj": ("Q5_K", 0.1)}),
        Quantization("iq4_xs", "IQ4_XS", "Smaller than q4_k_s and about as exact, but slower.", better={"down_proj": ("Q5_K", 0.1)}),
        Quantization(
            "mxfp4", "MXFP4", "4-bit floating point, as newer graphics cards compute it.", importance=False, output="Q8_0", embedding="Q8_0"
        ),
        Quantization(
            "q3_k_m",
            "Q3_K",
            "A quarter of the size; answers differ, and small models suffer.",
            better={"v_proj": ("Q4_K", 1.0), "o_proj": ("Q4_K", 1.0), "down_proj": ("Q4_K", 1.0)},
        ),
        Quantization(
            "q2_k",
            "Q2_K",
            "The smallest, for large models on small machines; answers differ clearly.",
            better={"v_proj": ("Q3_K", 1.0), "o_proj": ("Q3_K", 1.0), "down_proj": ("Q3_K", 1.0)},
        ),
    )
}
"""From the largest to the smallest."""

PRECISIONS: dict[str, dict[str, str]] = {
    "gguf_adapter": {
        "f16": "2 bytes per weight; as good as exact for an adapter.",
        "f32": "4 bytes per weight: every digit that was learnt.",
    },
    "merged": {
        "bf16": "2 bytes per weight, as most models are published.",
        "f16": "2 bytes per weight: finer steps, a smaller range.",
        "f32": "4 bytes per weight: every digit, twice the size.",
    },
}
"""What a GGUF adapter and merged weights can be stored as, the first by default."""
SMALL = 1_000_000_000
"""Parameters below which 4 bits cost too much: SmolLM2-135M lost 0.16 nats per token in q4_k_m, and 0.011 in q8_0."""
PER_TOKEN = 36
"""Bytes that a GGUF spends on each token of its vocabulary: its text, its type, and the merge that makes it."""


def choices(kind: str) -> dict[str, str]:
    """What a build of this kind can be stored as, each with a sentence, in the order in which it is offered."""
    if kind == "gguf":
        return {name: entry.sentence for name, entry in QUANTIZATIONS.items()}
    return PRECISIONS[kind]


def recommended(kind: str, facts: ModelFacts) -> str:
    """The one to take where nobody knows better: of a GGUF q8_0 below a billion parameters and q4_k_m above."""
    if kind == "gguf":
        return "q8_0" if facts.parameters < SMALL else "q4_k_m"
    stored = {"float16": "f16", "float32": "f32", "bfloat16": "bf16"}.get(facts.dtype, "")
    return stored if kind == "merged" and stored else next(iter(PRECISIONS[kind]))


def bits(kind: str, columns: int) -> float:
    """Bits per weight of a ggml type in rows of `columns` weights, which may force another type."""
    if kind in IN_256 and columns % 256:
        kind = IN_256[kind]
    return BITS["F16" if kind not in ROUGH and columns % 32 else kind]


def estimated_size(facts: ModelFacts, quantization: str) -> int:
    """Bytes of the GGUF, within a few per cent, from what is known of the base model alone."""
    entry = QUANTIZATIONS[quantization]
    layers = sum(linear.inputs * linear.outputs * linear.count * entry.bits_of(linear.name, linear.inputs) for linear in facts.linears)
    table = facts.vocabulary * facts.hidden_size
    tables = table * bits(entry.output, facts.hidden_size)
    if not facts.tied:
        tables += table * bits(entry.embedding or entry.default, facts.hidden_size)
    norms = (2 * facts.layers + 1) * facts.hidden_size * BITS["F32"]
    return int((layers + tables + norms) / 8) + facts.vocabulary * PER_TOKEN


def expected_size(facts: ModelFacts, kind: str, name: str) -> int | None:
    """Bytes of what a build leaves; None of an adapter, whose rank the base model does not tell."""
    if kind == "gguf":
        return estimated_size(facts, name)
    return int(facts.parameters * BITS[name.upper()] / 8) if kind == "merged" else None


def refuse_unsupported(facts: ModelFacts) -> None:
    """Raises UserError, with the list of what can be built, for a base model of another family."""
    if facts.architecture not in SUPPORTED:
        text = f"A GGUF cannot be built from {facts.architecture} yet. Supported are: {'; '.join(dict.fromkeys(SUPPORTED.values()))}."
        raise UserError(text, fields={"kind": text}, code="unsupported_architecture")


def refuse_unknown(kind: str, names: Sequence[str]) -> None:
    """Raises UserError where one of the types is none of this kind's, or none was chosen."""
    known = choices(kind)
    if not names or any(name not in known for name in names):
        text = f"Choose from {', '.join(known)}."
        raise UserError(text, fields={"quantization": text})


def uses_importance(kind: str, name: str) -> bool:
    return kind == "gguf" and QUANTIZATIONS[name].importance
