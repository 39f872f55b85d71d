"""A base model, ready to learn: on its device, in its number format, with the fastest reading of rows that is provably right."""

import importlib.util
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from studio.errors import UserError
from studio.ml import attention
from studio.ml.batches import Batch, Layout, make_batch, token_row
from studio.ml.loss import Head, head_of
from studio.training import FullConfig, HostFacts, Job, LoraConfig
from studio.training.memory import wants_checkpointing

TOLERANCE = {"bf16": 0.06, "fp16": 0.02, "fp32": 0.002}
"""Largest relative difference of logits that rounding explains, by the format of the arithmetic."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Arithmetic:
    """Where and in which number format the model computes."""

    device: torch.device
    bf16: bool
    fp16: bool = False
    """Half precision with a loss scale, for GPUs that know no bf16."""

    @property
    def number_format(self) -> str:
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Format of frozen weights. Trained ones stay in fp32 and are cast on the way."""
        return DTYPES[self.number_format]

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if not self.fp16 else torch.float16, enabled=self.bf16 or self.fp16)


def choose_arithmetic(*, precision: str, host: HostFacts) -> Arithmetic:
    """A GPU where the slot has one. `precision` is auto, bf16, fp16 or fp32; auto takes bf16 where the host is fast at it."""
    if host.gpus and not torch.cuda.is_available():
        raise UserError(
            f"This worker has {host.gpus[0].name}, but the installed torch cannot use it. "
            "Install torch for your CUDA version, or start a worker without a GPU."
        )
    device = torch.device("cuda" if host.gpus else "cpu")
    return Arithmetic(device=device, bf16=host.bf16 if precision == "auto" else precision == "bf16", fp16=precision == "fp16")


def recompute_where_needed(model: Any, config: LoraConfig | FullConfig, job: Job) -> None:
    """Turns gradient checkpointing on where the config or the memory asks for it, and says so where it was the memory."""
    if not wants_checkpointing(config, job.model, job.data, job.host):
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.gradient_checkpointing == "auto":
        job.note("Gradient checkpointing is on: the run would not fit into memory otherwise.")


def load_base(folder: Path, *, arithmetic: Arithmetic, dtype: torch.dtype | None = None, quantization: str = "none") -> Any:
    """The transformers causal model in `folder`, from safetensors alone, with per-document attention.

    Its weights have the arithmetic's format, as frozen ones may, or `dtype` where given; those of its linear layers 8 or 4 bits
    where `quantization` says so, the output layer excepted.
    """
    quantized = quantization != "none"
    name = attention.register()
    if arithmetic.device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        name = "flash_attention_2"  # it finds the documents in position_ids by itself, in one kernel
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype or arithmetic.dtype,
        attn_implementation=name,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        quantization_config=_in_bits(quantization, arithmetic) if quantized else None,
        device_map={"": arithmetic.device} if quantized else None,
    )
    model.config.use_cache = False
    return _learning_through(model) if quantized else model.to(arithmetic.device)


def _in_bits(quantization: str, arithmetic: Arithmetic) -> BitsAndBytesConfig:
    """LLM.int8, or NF4 whose scales are quantized as well (Dettmers et al. 2022 and 2023)."""
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=arithmetic.dtype
    )


def _learning_through(model: Any) -> Any:
    """The same quantized model, which gradients go through also after it was looked at without them.

    On processors with avx512_bf16 bitsandbytes repacks a 4-bit layer at its first such look, for a product that has no backward pass
    and is then used for training as well: what lies before the layer would learn nothing through it, and nothing would say so.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


class Reader:
    """Runs batches through a model up to the hidden states whose next token is supervised."""

    def __init__(self, model: Any, *, arithmetic: Arithmetic, layout: Layout):
        self.model = model
        self.backbone = model.base_model
        self.head: Head = head_of(model)
        self.arithmetic = arithmetic
        self.layout: Layout = layout

    def batch(self, rows: Any) -> Batch:
        return make_batch(rows, layout=self.layout, device=self.arithmetic.device)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """[N, hidden size]: one row for each of the batch's targets."""
        states = self.backbone(**batch.inputs, use_cache=False).last_hidden_state
        chosen: torch.Tensor = states.reshape(-1, states.shape[-1]).index_select(0, batch.positions)
        return chosen


def choose_reader(model: Any, *, arithmetic: Arithmetic) -> Reader:
    """The flattened reading if it gives what the model itself says of each document alone, else the padded one.

    It is tried, not assumed: a family with a state that runs along the row (convolutions, recurrences), with attention of
    its own, or with logits that are scaled in a way not known here, would learn something else than it is asked later.
    """
    for layout in ("flattened", "padded"):
        reader = Reader(model, arithmetic=arithmetic, layout=layout)
        if layout == "padded":
            model.set_attn_implementation("sdpa")
        if _agrees(reader):
            return reader
    raise UserError(
        f"{type(model).__name__} computes its answers in a way that this plugin does not know. Choose a base model of another family."
    )


@torch.no_grad()
def _agrees(reader: Reader) -> bool:
    model, arithmetic = reader.model, reader.arithmetic
    was_training = model.training
    model.eval()
    top = min(model.get_input_embeddings().num_embeddings, 30_000)
    documents = [np.random.default_rng(length).integers(0, top, length) for length in (11, 24)]
    rows = [token_row(ids.tolist(), [True] * len(ids)) for ids in documents]
    try:
        with arithmetic.autocast():
            ours = reader.head.logits(reader.hidden(reader.batch(rows)))
            alone = [
                model(input_ids=torch.from_numpy(ids)[None].to(arithmetic.device), use_cache=False).logits[0, :-1] for ids in documents
            ]
    except TypeError:  # a family whose forward does not take what the layout hands it
        return False
    finally:
        model.train(was_training)
    theirs = torch.cat(alone).float()
    return bool((ours - theirs).norm() <= TOLERANCE[arithmetic.number_format] * theirs.norm())
