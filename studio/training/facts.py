"""What a plugin is told about the case at hand, and what it answers before anything runs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Linear(Fact):
    """Linear layers that share a name and a shape, such as every `q_proj`."""

    name: str
    inputs: int
    outputs: int
    count: int


class ModelFacts(Fact):
    """A base model, as read from its headers; nothing is loaded."""

    name: str
    architecture: str
    """The class in config.json, such as LlamaForCausalLM."""
    family: str
    """config.json's model_type, such as llama."""
    parameters: int
    hidden_size: int
    layers: int
    intermediate_size: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    context_length: int
    tied: bool
    """True where the output layer is the embedding."""
    dtype: str
    size: int
    """Bytes of its weights on disk."""
    linears: list[Linear]
    chat_template: bool
    takes_tools: bool | None = None
    """Whether its chat template writes tool calls; None where that was not looked for when it was added."""
    license: str = ""
    new_tokens: int = 0
    """Tokens that it was given here and has never seen."""


class Cut(Fact):
    """What a max length would take of the rows."""

    max_length: int
    rows: int
    """Rows that are longer; of a preference row the longer answer counts."""
    tokens: int
    """Tokens behind the cut."""
    supervised: int
    """Those of them that carry a loss."""
    empty: int
    """Rows that have something to learn, and nothing within the cut: a run leaves them out."""


class TokenFacts(Fact):
    """Lengths of the rows of one dataset version under one base model's tokenizer and template."""

    total: int
    supervised: int
    """Tokens that carry a loss."""
    p50: int
    p95: int
    p99: int
    longest: int
    histogram: list[tuple[int, int]] = []
    """(upper edge in tokens, rows) pairs."""
    cuts: list[Cut] = []
    """By rising max length, up to the first that cuts nothing; empty in facts of earlier studios."""
    sample: int = 0
    """Rows that were read where those stand for all, drawn by chance; 0 where every row was read. All counts are of all rows."""


class DatasetFacts(Fact):
    name: str
    shape: Literal["chat", "text", "preference"]
    rows: int
    train: int
    validation: int
    tokens: TokenFacts | None = None
    unpaired: int = 0
    """Of a preference: rows with one answer alone, which somebody liked or disliked."""
    liked: int = 0
    """Those of them whose answer was liked."""
    tools: int = 0
    """Rows with tools or calls of them."""


class Gpu(Fact):
    name: str
    memory: int
    """Bytes."""


class HostFacts(Fact):
    """The worker slot that would run it."""

    name: str
    cpus: int
    memory: int
    """Bytes of main memory."""
    gpus: list[Gpu] = []
    bf16: bool = False
    """True where bf16 arithmetic is faster than fp32."""
    gflops: float = 100.0
    """Measured matrix speed, GFLOP/s, in the format that training would use."""
    traffic: float = 0.0
    """Measured bytes per second that small operations of a layer keep, forward and back; 0 where nobody measured."""
    packages: dict[str, str] = {}


class Issue(Fact):
    """One thing to know before starting. An error keeps the run from starting."""

    level: Literal["error", "warning", "note"]
    message: str
    field: str = ""
    instead: str = ""
    """The name of the plugin to offer in place of this one."""


class Span(Fact):
    low: float
    high: float


class Memory(Fact):
    """Bytes at the peak, by what takes them; `low` and `high` bound their sum."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    low: int
    high: int


class Estimate(Fact):
    memory: Memory
    trainable_parameters: int
    steps: int
    seconds: Span
    disk: int
    """Bytes that the result and its checkpoints take."""
    available: int
    """Bytes of memory that the host has for it."""
    reasons: list[str] = []
