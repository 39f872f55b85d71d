"""Every setting that plugins share: its type, bounds, default and one plain sentence, written once."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


def setting(
    default: Any,
    *,
    label: str,
    advanced: bool = False,
    hint: str = "",
    unit: str = "",
    log: bool = False,
    search: tuple[float, float] | None = None,
    **bounds: Any,
) -> Any:
    """A pydantic field that also knows how the form shows it.

    `hint` explains a term of the trade in one sentence (dotted underline), `unit` stands after the value,
    `advanced` folds the field away. `log` says that multiples of it matter, not differences, and `search` between which values it is
    worth looking for the best; without it, around its default. `bounds` go to `pydantic.Field` (ge, gt, le, lt, ...).
    """
    shown: dict[str, Any] = {"label": label, "advanced": advanced, "hint": hint, "unit": unit}
    shown |= ({"log": True} if log else {}) | ({"search": list(search)} if search else {})
    return Field(default, json_schema_extra=shown, allow_inf_nan=False if isinstance(default, float) else None, **bounds)


class TrainConfig(BaseModel):
    """What every way to train can be told."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    epochs: float = setting(3.0, label="Epochs", gt=0, le=1000)
    """How many times the whole training set is read."""
    max_steps: int = setting(0, label="Step limit", advanced=True, ge=0, le=10_000_000)
    """Ends after this many steps; 0 goes by epochs."""
    learning_rate: float = setting(
        2e-4,
        label="Learning rate",
        gt=0,
        le=0.1,
        log=True,
        hint="How far each step moves the weights. Too high forgets, too low learns nothing.",
    )
    """The highest step size, reached after warm-up."""
    batch_size: int = setting(8, label="Batch size", ge=1, le=1024, hint="Rows read at once. More needs more memory.")
    """Rows that go through the model together."""
    gradient_accumulation: int = setting(1, label="Accumulation", advanced=True, ge=1, le=1024)
    """Batches that are added up before one step is made."""
    max_length: int = setting(512, label="Max length", unit="tokens", ge=16, le=131_072)
    """Tokens kept of each row; the rest is cut."""
    warmup: float = setting(0.05, label="Warm-up", advanced=True, ge=0, lt=1, search=(0, 0.2))
    """Share of the steps in which the learning rate rises from zero."""
    scheduler: Literal["linear", "cosine", "constant"] = setting("cosine", label="Schedule", advanced=True)
    """How the learning rate falls after warm-up."""
    weight_decay: float = setting(0.0, label="Weight decay", advanced=True, ge=0, le=1, search=(0, 0.1))
    """Pulls trained weights towards zero a little at every step."""
    max_grad_norm: float = setting(1.0, label="Gradient limit", advanced=True, gt=0, le=1000, log=True)
    """Longer gradients are shortened to this norm."""
    seed: int = setting(42, label="Seed", advanced=True, ge=0, le=4_294_967_295)
    """The same seed, rows and settings give the same run."""
    evaluate_every: int = setting(0, label="Evaluate every", unit="steps", advanced=True, ge=0, le=1_000_000)
    """Steps between looks at the validation rows; 0 chooses about ten looks in a run."""
    save_every: int = setting(0, label="Save every", unit="steps", advanced=True, ge=0, le=1_000_000)
    """Steps between checkpoints; 0 saves at every evaluation."""
    keep: Literal["last", "best"] = setting("last", label="Keep", advanced=True)
    """Which weights become the result: the last ones, or those with the lowest validation loss."""
    early_stopping: int = setting(
        0, label="Early stopping", unit="looks", advanced=True, ge=0, le=1000, hint="Ends a run that has stopped getting better."
    )
    """Looks at the validation rows without a lower loss after which it ends, keeping the best; 0 never ends early."""
    learn_from: Literal["answers", "last_answer"] = setting("answers", label="Learn from", advanced=True)
    """In a conversation: all of its answers, or only the last one. A message's own weight, where it has one, counts as well."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting("auto", label="Precision", advanced=True)
    """Number format of the arithmetic; auto takes bf16 where the device is fast at it. fp16 is for older GPUs."""
    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "auto", label="Gradient checkpointing", advanced=True, hint="Recomputes parts of the model to save memory; about 40 % slower."
    )
    """Trades time for memory; auto turns it on only where the run would not fit otherwise."""


class PreferenceConfig(TrainConfig):
    """What a plugin can be told that also learns from pairs of a better and a worse answer."""

    preference: Literal["dpo", "orpo", "kto", "simpo"] = setting(
        "dpo", label="Preference loss", advanced=True, hint="Only for rows with a chosen and a rejected answer. DPO suits most of them."
    )
    """How two answers are compared: DPO and KTO hold against the base model, ORPO and SimPO do without it."""
    preference_beta: float = setting(0.0, label="Preference strength", advanced=True, ge=0, le=100, log=True, search=(0.05, 0.5))
    """How strictly answers follow the pairs; 0 takes the usual, 0.1 (SimPO: 2). With DPO and KTO, less strays further from the base."""
    preference_margin: float = setting(1.0, label="Preference margin", advanced=True, ge=0, le=100, search=(0.5, 2))
    """SimPO alone: by how much the better answer must win."""


class LoraConfig(PreferenceConfig):
    """What every LoRA plugin can be told besides."""

    rank: int = setting(
        16, label="Rank", ge=1, le=512, log=True, hint="Width of the adapter's matrices. More can learn more, and is larger."
    )
    """Size of the adapter: 8 for style, 16 for most tasks, 64 for new knowledge."""
    alpha: float = setting(32.0, label="Alpha", advanced=True, gt=0, le=4096, log=True)
    """Strength of the adapter; its output is scaled by alpha divided by rank."""
    dropout: float = setting(0.0, label="Dropout", advanced=True, ge=0, lt=1, search=(0, 0.2))
    """Share of the adapter's inputs that is dropped at random while training."""
    targets: list[str] = setting(
        ["all-linear"], label="Targets", advanced=True, hint="The layers that get an adapter, by name: q_proj, k_proj, v_proj, o_proj, ..."
    )
    """Names of the layers that get an adapter; all-linear takes every linear layer except the output."""
    variant: Literal["lora", "rslora", "dora"] = setting("lora", label="Variant", advanced=True)
    """Plain LoRA, rsLoRA (scaled by the root of the rank), or DoRA (direction and size apart; slower)."""
    quantization: Literal["none", "8bit", "4bit"] = setting(
        "none",
        label="Quantization",
        advanced=True,
        hint="QLoRA: the base model is kept in 8 or 4 bits per weight while the adapter learns.",
    )
    """4bit needs about a quarter of the memory for the base model, and gives up a little accuracy and speed."""

    def goes_with(self, bits: str) -> bool:
        """Whether the other settings allow a base model in so many bits; what a plugin's check refuses is not proposed either."""
        return not (bits == "8bit" and self.variant == "dora")

    @field_validator("targets", mode="before")
    @classmethod
    def split_names(cls, value: object) -> object:
        """A form sends one line of text; a list stays what it is."""
        if isinstance(value, str):
            return [name for name in value.replace(",", " ").split() if name]
        return value

    @field_validator("targets")
    @classmethod
    def at_least_one(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("Name at least one layer, or all-linear.")
        return value


class FullConfig(PreferenceConfig):
    """What every plugin that trains all weights can be told besides."""

    learning_rate: float = setting(
        2e-5,
        label="Learning rate",
        gt=0,
        le=0.1,
        log=True,
        hint="How far each step moves the weights. Too high forgets, too low learns nothing.",
    )
    """The highest step size, reached after warm-up. All weights need about a tenth of what an adapter needs."""
    weights: Literal["mixed", "bf16"] = setting(
        "mixed", label="Weights", advanced=True, hint="mixed is the safe choice; bf16 needs about half the memory and learns the same."
    )
    """mixed: weights in fp32 and arithmetic in bf16. bf16: weights, gradients and optimizer in bf16, rounded at random."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = setting("adamw", label="Optimizer", advanced=True)
    """AdamW, or on a GPU AdamW whose memory takes 8 bits per number; paged moves it to main memory when the GPU is full."""
    freeze_embeddings: bool = setting(False, label="Freeze embeddings", advanced=True)
    """Leaves the table of words, and an output layer that shares it, as they are."""
    freeze_layers: int = setting(0, label="Freeze layers", advanced=True, ge=0, le=1000, search=(0, 8))
    """Leaves so many of the lowest layers as they are; less memory and time, and less is learnt."""
    embedding_rate: float = setting(1.0, label="Embedding rate", advanced=True, gt=0, le=10, log=True, search=(0.1, 1))
    """The embeddings' learning rate, as a multiple of the others'."""
    layer_decay: float = setting(1.0, label="Layer decay", advanced=True, gt=0, le=1, search=(0.8, 1))
    """Each layer's learning rate as a share of the one above it; 1 trains all alike."""
    processes: int = setting(1, label="Processes", advanced=True, ge=1, le=64)
    """Over how many processes weights and rows are spread: one for each GPU."""
