"""Every family that a GGUF can be built from says in llama.cpp what it says in transformers; what would differ is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from studio.errors import UserError
from studio.ml import llamacpp
from studio.ml.gguf.architectures import entries, extra_tensors, read_shape, supported
from studio.ml.gguf.exporting import export
from studio.ml.gguf.families import FAMILIES
from studio.ml.gguf.header import read_header

VOCABULARY = 512
WINDOW = 24
TOKENS = 160
"""More than a window, and than what models are trained on before their context is stretched."""
DECIDED = 0.05
"""Two likeliest tokens whose logits lie closer may change places: llama.cpp keeps keys and values in float16."""
MEAN_KL = 1e-4

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW}
ORIGINAL = {"original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500_000.0, **ORIGINAL}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, **ORIGINAL}


def longrope(columns: int, **more: Any) -> dict[str, Any]:
    short = [1.0 + 0.05 * place for place in range(columns // 2)]
    return {"rope_type": "longrope", "short_factor": short, "long_factor": [4 * factor for factor in short], "rope_theta": 10_000.0, **more}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama with heads of its own width and shared tables": ("Llama", {"head_dim": 32, "tie_word_embeddings": True}),
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama 3's rope": ("Llama", {"rope_parameters": LLAMA3}),
    "Llama, linear": ("Llama", {"rope_parameters": LINEAR}),
    "Llama, YaRN": ("Llama", {"rope_parameters": YARN}),
    "Llama, YaRN of a given length": ("Llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "Llama, LongRoPE": ("Llama", {"rope_parameters": longrope(16, factor=8.0, **ORIGINAL)}),
    "Mistral": ("Mistral", {"sliding_window": None, "head_dim": 24}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, YaRN": ("Qwen2", {"rope_parameters": YARN}),
    "Qwen3": ("Qwen3", {"head_dim": 32}),
    "Qwen3, YaRN": ("Qwen3", {"head_dim": 32, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}}),
    "Gemma 2": ("Gemma2", {**GEMMA, "num_hidden_layers": 3}),
    "Gemma 3": ("Gemma3", {**GEMMA, "num_hidden_layers": 7}),
    "Gemma 3, linear": (
        "Gemma3",
        {
            **GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {**LINEAR, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "Gemma 3 with other windows": (
        "Gemma3",
        {**GEMMA, "layer_types": ["full_attention", "sliding_attention"], "final_logit_softcapping": 20.0, "tie_word_embeddings": False},
    ),
    "Gemma 3 without windows": ("Gemma3", {**GEMMA, "layer_types": ["full_attention"] * 2}),
    "Phi-3": ("Phi3", {}),
    "Phi-3, LongRoPE": ("Phi3", {"rope_parameters": longrope(16, partial_rotary_factor=1.0), **ORIGINAL}),
    "Phi-4-mini": (
        "Phi3",
        {"rope_parameters": longrope(12, partial_rotary_factor=0.75), "tie_word_embeddings": True, **ORIGINAL},
    ),
    "SmolLM3": ("SmolLM3", {"num_hidden_layers": 5}),
    "SmolLM3, YaRN": ("SmolLM3", {"num_hidden_layers": 4, "rope_parameters": YARN}),
    "OLMo 2": ("Olmo2", {}),
    "Granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.15,
            "logits_scaling": 0.7,
        },
    ),
    "Granite with biases, Llama 3's rope": ("Granite", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
}
ONE_OF_EACH = list({family: name for name, (family, _) in reversed(MODELS.items())}.values())

Maker = Callable[[str], Path]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Maker:
    """`model_of(name)`: the folder of a random model out of MODELS, with weights that make it sure of what it says."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        family, settings = MODELS[name]
        kind = "Gemma3Text" if family == "Gemma3" else family
        config = getattr(transformers, f"{kind}Config")(**(SIZES | settings))
        torch.manual_seed(11)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        sharpen(model, around=0.0 if family.startswith("Gemma") else 1.0)
        folder = tmp_path_factory.mktemp("model") / "base"
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tiny_model / file, folder)
        made[name] = folder
        return folder

    return make


def sharpen(model: Any, *, around: float) -> None:
    """Norms lie around `around`. Queries and keys are large, so that what a word looks at depends on where things stand."""
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.normal_(around, 0.2)
        elif "q_proj" in name or "k_proj" in name or "qkv_proj" in name:
            weight.data.normal_(std=0.2)
        else:
            weight.data.normal_(std=0.1)
    model.model.norm.weight.data.add_(2.0)


def sequences() -> list[list[int]]:
    drawn = np.random.default_rng(5).integers(3, 300, (2, TOKENS))
    return [[int(number) for number in row] for row in drawn]


def in_transformers(model: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()
    return found


def loaded(base: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return (PeftModel.from_pretrained(model, adapter).merge_and_unload() if adapter else model).eval()


def built(base: Path, folder: Path, *, adapter: Path | None = None) -> Path:
    export(base=base, adapter=adapter, quantization="f32", target=folder / "f32.gguf", name="tiny")
    return folder / "f32.gguf"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def difference(model: Any, gguf: Path, *, context: int = TOKENS) -> tuple[float, float]:
    """Mean KL(transformers || llama.cpp) in nats per token, and the share of likeliest tokens that are equal where one is clearly so."""
    divergences, equal = [], []
    with llamacpp.Model(gguf, context=context) as theirs:
        for ids in sequences():
            ours, found = in_transformers(model, ids[:context]), theirs.logits(ids[:context]).astype(np.float64)
            left, right = log_softmax(ours), log_softmax(found)
            divergences.append((np.exp(left) * (left - right)).sum(axis=1))
            best = np.sort(ours, axis=1)
            decided = best[:, -1] - best[:, -2] > DECIDED
            assert decided.mean() > 0.8
            equal.append((ours.argmax(axis=1) == found.argmax(axis=1))[decided])
    return float(np.concatenate(divergences).mean()), float(np.concatenate(equal).mean())


@pytest.mark.parametrize("name", MODELS)
def test_a_file_says_what_the_model_says_in_transformers(model_of: Maker, tmp_path: Path, name: str) -> None:
    base = model_of(name)
    supported(base)
    divergence, equal = difference(loaded(base), built(base, tmp_path))
    assert divergence < MEAN_KL and equal == 1.0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_adapter_on_every_linear_layer_is_merged_as_peft_does(model_of: Maker, tmp_path: Path, name: str) -> None:
    base = model_of(name)
    torch.manual_seed(7)
    settings = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    gguf = built(base, tmp_path, adapter=tmp_path / "adapter")
    divergence, equal = difference(loaded(base, tmp_path / "adapter"), gguf)
    assert divergence < MEAN_KL and equal == 1.0
    assert difference(loaded(base), gguf)[0] > 0.05


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3's rope": ("Llama 3's rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "linear": ("Llama, linear", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
    "YaRN": ("Qwen2, YaRN", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
    "YaRN's length": ("Qwen3, YaRN", {"rope_parameters": YARN}),
    "LongRoPE": ("Phi-3, LongRoPE", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
    "what is left unrotated": ("Phi-4-mini", {"rope_parameters": longrope(16, partial_rotary_factor=1.0)}),
    "Gemma 2's window": ("Gemma 2", {"sliding_window": 400}),
    "Gemma 3's window": ("Gemma 3", {"sliding_window": 400}),
    "Gemma 3's layers": ("Gemma 3 with other windows", {"layer_types": ["sliding_attention", "full_attention"]}),
    "Gemma 2's cap": ("Gemma 2", {"attn_logit_softcapping": 5.0}),
    "Granite's attention": ("Granite", {"attention_multiplier": 0.25}),
    "Granite's residual": ("Granite", {"residual_multiplier": 1.0}),
    "Granite's embedding": ("Granite", {"embedding_multiplier": 1.0}),
    "Granite's logits": ("Granite", {"logits_scaling": 1.0}),
}


@pytest.mark.parametrize("setting", CHANGES)
def test_the_models_are_sure_enough_to_tell_a_setting_that_is_wrong(model_of: Maker, tmp_path: Path, setting: str) -> None:
    name, change = CHANGES[setting]
    base = model_of(name)
    shutil.copytree(base, tmp_path / "changed")
    configured(tmp_path / "changed", **change)
    assert difference(loaded(base), built(tmp_path / "changed", tmp_path))[0] > 100 * MEAN_KL


def configured(folder: Path, **changes: Any) -> Path:
    """The model in `folder` with other words in its config.json; a None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize("name", ["Phi-3, LongRoPE", "Llama, LongRoPE"])
def test_a_context_that_is_not_stretched_has_longropes_short_factors(model_of: Maker, tmp_path: Path, name: str) -> None:
    shutil.copytree(model_of(name), tmp_path / "base")
    rope = json.loads((tmp_path / "base" / "config.json").read_text())["rope_parameters"]
    unstretched = {"original_max_position_embeddings": 256}  # llama.cpp makes room for 256 tokens at least
    base = configured(tmp_path / "base", rope_parameters=rope | unstretched, **unstretched)
    divergence, equal = difference(loaded(base), built(base, tmp_path))
    assert divergence < MEAN_KL and equal == 1.0
    assert difference(loaded(model_of(name)), tmp_path / "f32.gguf")[0] > 100 * MEAN_KL


@pytest.mark.parametrize(
    ("family", "window"), [("Mistral", {}), ("Phi3", {}), ("Qwen2", {"use_sliding_window": True, "max_window_layers": 0})]
)
def test_where_llamacpp_knows_no_window_the_context_ends_with_it(
    model_of: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, window: dict[str, Any]
) -> None:
    monkeypatch.setitem(MODELS, f"{family} with a window", (family, {"sliding_window": WINDOW, **window}))
    base = model_of(f"{family} with a window")
    gguf = built(base, tmp_path)
    assert read_header(gguf).get(f"{read_shape(base).family.arch}.context_length") == WINDOW
    assert "reaches back 24 tokens" in read_shape(base).notes[0]
    assert difference(loaded(base), gguf, context=WINDOW) < (MEAN_KL, 1.1)
    assert difference(loaded(base), gguf)[0] > 100 * MEAN_KL


def test_the_words_of_older_configs_are_read_too(model_of: Maker, tmp_path: Path) -> None:
    for name, older in {
        "Llama 3's rope": {"rope_theta": 500_000.0, "rope_scaling": {**LLAMA3, "rope_theta": None}},
        "Qwen2, YaRN": {"rope_theta": 10_000.0, "rope_scaling": {"type": "yarn", "factor": 4.0, **ORIGINAL}},
        "Gemma 3, linear": {
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "layer_types": None,
            "sliding_window_pattern": 6,
        },
        "Phi-4-mini": {
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {key: value for key, value in longrope(12).items() if key != "rope_type"} | {"type": "su"},
        },
        "SmolLM3": {"rope_theta": 2_000_000.0, "tie_word_embeddings": None, "no_rope_layers": None, "layer_types": None},
    }.items():
        folder = tmp_path / name
        shutil.copytree(model_of(name), folder)
        now = read_shape(folder)
        then = read_shape(configured(folder, rope_parameters=None, **older))
        assert entries(then, vocabulary=512) == entries(now, vocabulary=512)
        assert then.tied == now.tied
        for key, factors in extra_tensors(now).items():
            np.testing.assert_array_equal(extra_tensors(then)[key], factors)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "stretches its context with dynamic"),
    ("Qwen2", {"rope_parameters": LLAMA3}, "stretches its context with llama3"),
    ("Llama", {"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
    ("Llama", {"rope_parameters": {**LLAMA3, "factor": float("nan")}}, "factor is nan"),
    ("Llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "not below"),
    ("Llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "computes with 32"),
    ("Llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate"),
    ("Llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "8 of a head's 16 columns"),
    ("Phi-3", {"rope_parameters": longrope(12)}, "has to hold 8 numbers"),
    ("Phi-3", {"head_dim": 32}, "heads are not"),
    ("Qwen2", {"head_dim": 32}, "heads are not"),
    ("Qwen3", {"attention_bias": True}, "attention has biases"),
    ("SmolLM3", {"mlp_bias": True}, "have biases"),
    ("SmolLM3", {"no_rope_layers": [1, 1, 0, 1, 1]}, "every fourth"),
    ("OLMo 2", {"tie_word_embeddings": True}, "shares one table"),
    ("Gemma 2", {"tie_word_embeddings": False}, "table of its own"),
    ("Gemma 2", {"query_pre_attn_scalar": 24}, "scales its queries by 24, llama.cpp by 32"),
    ("Gemma 3", {"num_hidden_layers": 62, "layer_types": None}, "scales its queries by 32, llama.cpp by 16"),
    ("Gemma 2", {"hidden_activation": "gelu"}, "uses gelu where llama.cpp expects gelu_pytorch_tanh"),
    ("Gemma 2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "every other one"),
    ("Gemma 2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
    ("Gemma 3", {"attn_logit_softcapping": 50.0}, "caps its attention"),
    ("Gemma 3", {"use_bidirectional_attention": True}, "words that follow"),
    ("Gemma 3", {"layer_types": ["chunked_attention"] * 7}, "layer_types"),
    ("Granite", {"attention_multiplier": 0.0}, "attention_multiplier is 0.0"),
    ("Llama", {"hidden_act": "relu2"}, "relu2 where llama.cpp expects silu"),
    ("Llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ("Llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ("Llama", {"num_key_value_heads": 3}, "4 heads, 3 of keys"),
    ("Llama", {"hidden_size": "64"}, "hidden_size is 64"),
    ("Llama", {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    ("Llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 1 << 40}}, "original_max_position_embeddings is 1099"),
    ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e300}}, "rope_theta is 1e"),
    ("Gemma 3", {"rope_parameters": {"full_attention": 5}}, "rope_parameters cannot be read"),
    ("Llama", {"architectures": ["Gemma3ForConditionalGeneration"]}, "also sees images"),
    ("Llama", {"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM yet. Supported are: Llama .*; Mistral; .*; Granite 3"),
    ("Llama", {"architectures": "LlamaForCausalLM"}, "this model yet"),
]


@pytest.mark.parametrize(("name", "changes", "sentence"), REFUSED)
def test_what_llamacpp_would_compute_otherwise_is_refused_by_its_config_alone(
    model_of: Maker, tmp_path: Path, name: str, changes: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "config.json").write_bytes((model_of(name) / "config.json").read_bytes())
    supported(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=sentence):
        supported(tmp_path)


def test_a_tensor_that_the_family_does_not_have_is_refused_by_name(model_of: Maker) -> None:
    qwen3, llama = read_shape(model_of("Qwen3")), read_shape(model_of("Llama with biases"))
    for name in ("model.layers.0.self_attn.o_proj.bias", "lm_head.bias", "model.layers.9.mlp.up_proj.weight", "model.layers.0.mlp.experts"):
        with pytest.raises(UserError, match=name):
            qwen3.tensor_name(name)
    assert llama.tensor_name("model.layers.1.self_attn.o_proj.bias") == "blk.1.attn_output.bias"
    assert llama.tensor_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None


def test_every_family_is_tried_and_needs_what_its_checkpoints_hold(model_of: Maker) -> None:
    assert {f"{family}ForCausalLM" for family, _ in MODELS.values()} == FAMILIES.keys()
    for name in ONE_OF_EACH:
        shape, found = read_shape(model_of(name)), loaded(model_of(name)).state_dict()
        names = {shape.tensor_name(key) for key in found} - {None}
        assert {f"{needed}.weight" for needed in shape.needed()} == {key for key in names if key and key.endswith(".weight")}
        assert shape.may_untie == (name != "Gemma 2")
