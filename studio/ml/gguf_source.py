"""Turns a trusted GGUF file into a base model folder: weights by transformers, the tokenizer rebuilt from the file's own entries.

What transformers 5 makes of a GGUF's tokenizer is damaged (it loses the digit splitting and mistakes the end of turn), so that half is
done here and proved against llama.cpp by `tokenizer_proof`.
"""

from pathlib import Path
from typing import Any

from studio.errors import UserError
from studio.ml.gguf.header import Header, read_header
from studio.ml.modelconfig import write_json
from studio.training import Job

CONTROL, USER_DEFINED = 3, 4
"""Token types of llama.cpp: a control token, and a word that is always one token."""
SPECIAL_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def convert(gguf: Path, folder: Path, *, job: Job) -> None:
    """Leaves model.safetensors, config.json, generation_config.json, the tokenizer's files and gguf_tokenizer.json in `folder`."""
    header = read_header(gguf)
    _refuse_unknown(header)
    write_tokenizer(header, folder)
    job.raise_if_stopped()
    _write_model(gguf, folder, header=header)


def write_tokenizer(header: Header, folder: Path) -> None:
    """tokenizer.json, its settings and template, and every tokenizer.* entry word for word for the way back to GGUF."""
    _tokenizer(header).save(str(folder / "tokenizer.json"))
    names: Any = header.get("tokenizer.ggml.tokens")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": header.get(f"{header.get('general.architecture')}.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(header.get("tokenizer.ggml.add_bos_token")),
    }
    for setting, key in SPECIAL_IDS.items():
        number: Any = header.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            settings[setting] = names[number]
    template = header.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    verbatim = {key: entry.value for key, entry in header.entries.items() if key.startswith("tokenizer.")}
    write_json(folder / "gguf_tokenizer.json", verbatim)


def _refuse_unknown(header: Header) -> None:
    # Each name in tokenizer.ggml.pre is a rule of its own in llama.cpp; only the one below is rebuilt here.
    kind = header.get("tokenizer.ggml.model"), header.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise UserError(
            f"This GGUF file splits text in a way that cannot be rebuilt ({kind[0]}, {kind[1]}). Register the model's safetensors instead."
        )


def _tokenizer(header: Header) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names: Any = header.get("tokenizer.ggml.tokens")
    kinds: Any = header.get("tokenizer.ggml.token_type")
    merges: Any = header.get("tokenizer.ggml.merges")
    model = models.BPE(
        vocab={name: number for number, name in enumerate(names)},
        merges=[tuple(merge.split(" ", 1)) for merge in merges],
        fuse_unk=False,
        byte_fallback=False,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for name, kind in zip(names, kinds, strict=True):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(name, special=False, normalized=False)])
    return tokenizer


def _write_model(gguf: Path, folder: Path, *, header: Header) -> None:
    """Stores half precision: a dequantised Q4_1 weight is `d·q + m` with f16 d and m.

    For SmolLM2-135M, float16 keeps it to a relative error of 2e-4 (mean KL of the answers 4e-6), bfloat16 only to 1.4e-3
    (1.4e-4) at the same size; float32 would be exact at twice the size.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    tied = model.config.tie_word_embeddings
    weights = {name: weight.detach() for name, weight in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    largest = max(float(weight.abs().max()) for weight in weights.values())
    if not largest < torch.finfo(torch.float16).max:
        raise UserError("A weight of this file does not fit into half precision. Fetch the file again.")
    halves = {name: weight.to(torch.float16).contiguous() for name, weight in weights.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})

    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    ids = {f"{role}_token_id": header.get(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
    # Where the weights came from is left out: a loader would look for that file and dequantise again.
    config = {key: value for key, value in model.config.to_diff_dict().items() if key != "quantization_config" and key[0] != "_"}
    write_json(folder / "config.json", {**config, **ids, "architectures": [type(model).__name__], "dtype": "float16"})
    write_json(folder / "generation_config.json", ids)
