"""Unsloth's models for our loop: what must be said before it is imported, how a model is loaded, how it is told where documents end.

Importing Unsloth changes transformers and peft for the whole process. So nothing imports it but `start`, which only the process
of a training calls, and nothing of the kind may have been imported before.
"""

import gc
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from studio.errors import UserError

if TYPE_CHECKING:
    import torch

    from studio.ml.loading import Arithmetic

CHANGED = ("transformers", "peft", "trl")
"""What Unsloth changes, and can change in full only where it comes first."""


def environment(work: Path, *, on_cpu: bool) -> dict[str, str]:
    """No word to anybody, nothing installed, nothing kept outside the attempt's own folder.

    Logits are never replaced by an empty tensor: the proof that a reading is right compares them. `on_cpu` is for tests alone.
    """
    said = {
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(work / "huggingface"),
        "HF_HUB_CACHE": str(work / "huggingface" / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_XET_CACHE": str(work / "huggingface" / "xet"),
        "MLFLOW_DISABLE_TELEMETRY": "true",  # accelerate imports it where it is installed
        "TMPDIR": str(work / "temporary"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "compiled" / "inductor"),
        "TRITON_CACHE_DIR": str(work / "compiled" / "triton"),
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_COMPILE_LOCATION": str(work / "compiled" / "unsloth"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_MEGA_CACHE": "0",
        "UNSLOTH_RETURN_LOGITS": "1",
    }
    return said | {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_DISABLE": "1"} if on_cpu else said


def start(work: Path, *, on_cpu: bool) -> None:
    """Imports Unsloth, before the libraries that it changes. Raises RuntimeError where one of them is here already."""
    early = [name for name in CHANGED if name in sys.modules]
    if early and "unsloth" not in sys.modules:
        raise RuntimeError(f"{', '.join(early)} was imported before Unsloth, which then changes only a part of it")
    os.environ.update(environment(work, on_cpu=on_cpu))
    Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)
    tempfile.tempdir = None  # asked for before, it would stay what it was
    if on_cpu:
        _describe_a_gpu()
    import unsloth  # noqa: F401

    gc.freeze()  # Unsloth collects garbage at every turn, and each time would look through all that was imported: half a second


def _describe_a_gpu() -> None:
    """Loading a model makes Unsloth print the GPU's name and size, which torch does not know where there is none."""
    import torch

    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    made_up = SimpleNamespace(name="CPU", total_memory=size, major=8, minor=0, multi_processor_count=1)
    torch.cuda.get_device_properties = lambda *_: made_up  # type: ignore[assignment]


def load_model(folder: Path, *, arithmetic: "Arithmetic", max_length: int, quantization: str, checkpointing: bool, seed: int) -> Any:
    """The base model with Unsloth's kernels, from the files in `folder` and no others. `quantization` is none, 4bit or 8bit.

    On a CPU, where the kernels do not run, Unsloth's general class stands in. Raises UserError where Unsloth could not quantize.
    """
    device = arithmetic.device
    model, _ = family(device).from_pretrained(
        **load_arguments(
            folder,
            device=device,
            dtype=arithmetic.dtype,
            max_length=max_length,
            quantization=quantization,
            checkpointing=checkpointing,
            seed=seed,
        )
    )
    got = "4bit" if getattr(model, "is_loaded_in_4bit", False) else "8bit" if getattr(model, "is_loaded_in_8bit", False) else "none"
    if got != quantization:
        raise UserError(
            f"Unsloth did not load the base model in {quantization} here. Set the quantization to none, or use LoRA (PEFT).",
            fields={"quantization": "It did not work on this worker."},
        )
    return model


def load_arguments(
    folder: Path, *, device: "torch.device", dtype: "torch.dtype", max_length: int, quantization: str, checkpointing: bool, seed: int
) -> dict[str, Any]:
    """Everything that Unsloth can be told when it loads: its own choices change between releases, and some download another model."""
    on_gpu = device.type == "cuda"
    return {
        "model_name": str(folder),
        "max_seq_length": max_length,
        "dtype": dtype,
        "load_in_4bit": quantization == "4bit",
        "load_in_8bit": quantization == "8bit",
        "load_in_16bit": quantization == "none" and on_gpu,
        "load_in_fp8": False,
        "full_finetuning": False,
        "float32_mixed_precision": None,
        "qat_scheme": None,
        "token": None,
        "revision": None,
        "trust_remote_code": False,
        "local_files_only": True,
        "use_exact_model_name": True,
        "text_only": False,
        "device_map": {"": 0} if on_gpu else "cpu",
        "rope_scaling": None,
        "fix_tokenizer": False,
        "resize_model_vocab": None,
        "offload_embedding": False,
        "use_gradient_checkpointing": _checkpointing(checkpointing, device),
        "unsloth_tiled_mlp": False,
        "fast_inference": False,
        "random_state": seed,
    }


def add_adapter(
    model: Any, *, targets: list[str], rank: int, alpha: float, dropout: float, rslora: bool, checkpointing: bool, seed: int, work: Path
) -> Any:
    """A peft model around it, whose adapter is the only thing that learns."""
    adapted = family(model.device).get_peft_model(
        model,
        **adapter_arguments(
            device=model.device,
            targets=targets,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            rslora=rslora,
            checkpointing=checkpointing,
            seed=seed,
            work=work,
        ),
    )
    _speak_our_language(adapted)
    return adapted


def adapter_arguments(
    *,
    device: "torch.device",
    targets: list[str],
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    checkpointing: bool,
    seed: int,
    work: Path,
) -> dict[str, Any]:
    """Everything that Unsloth can be told about an adapter."""
    return {
        "r": rank,
        "target_modules": targets,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "layers_to_transform": None,
        "layers_pattern": None,
        "finetune_last_n_layers": None,
        "use_gradient_checkpointing": _checkpointing(checkpointing, device),
        "random_state": seed,
        "use_rslora": rslora,
        "modules_to_save": None,
        "init_lora_weights": True,
        "loftq_config": {},
        "temporary_location": str(work / "buffers"),
        "qat_scheme": None,
        "target_parameters": None,
        "ensure_weight_tying": None,
        "offload_layers": None,
        "checkpoint_skip_layers": 0,
    }


def family(device: "torch.device") -> Any:
    """Hand-written kernels for the families that have them; elsewhere, and on a CPU, what Unsloth makes of transformers' own code."""
    from unsloth import FastLanguageModel, FastModel

    return FastLanguageModel if device.type == "cuda" else FastModel


def _checkpointing(wanted: bool, device: "torch.device") -> str | bool:
    """Unsloth's own moves what is kept to main memory, through buffers that only a GPU's driver can give."""
    return "unsloth" if wanted and device.type == "cuda" else wanted


def _speak_our_language(model: Any) -> None:
    """The loop's way of asking, in Unsloth's words."""
    from unsloth.utils import mark_allow_overlength

    causal = model.get_base_model()
    mark_allow_overlength(model)  # rows are cut by us; Unsloth would cut a flattened batch, or a long prompt, at the max length
    causal.base_model.register_forward_pre_hook(_name_lengths, with_kwargs=True)
    causal.register_forward_pre_hook(_read_anew, with_kwargs=True)
    causal.register_forward_hook(_remember, with_kwargs=True)
    if model.device.type == "cuda":
        from unsloth.utils.hf_packed_attention import enable_hf_packed_attention

        enable_hf_packed_attention()  # for families without kernels of Unsloth's own


def _name_lengths(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Our `documents`, [(0, 12), (12, 40)], as Unsloth's `packed_seq_lengths`, [12, 28]."""
    import torch

    if documents := kwargs.pop("documents", None):
        kwargs["packed_seq_lengths"] = torch.tensor([end - start for start, end in documents], dtype=torch.int32)
    return args, kwargs


def _read_anew(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Reads all tokens so far at every new one, by the code of training: Unsloth's own decoder can be driven by `generate` alone.

    What is handed out as the cache is the tokens themselves.
    """
    import torch

    before = kwargs.pop("past_key_values", None)
    if before is not None:
        kwargs["input_ids"] = torch.cat([before, kwargs["input_ids"]], dim=1)
    return args, kwargs | {"use_cache": False}


def _remember(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
    output.past_key_values = kwargs.get("input_ids")
    return output
