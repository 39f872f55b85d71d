"""A base model's short name is stable and says which family it is; a release's name is put together of slugs."""

import pytest

from studio.releases.naming import LONGEST_BASE, release_name, short_base

REAL = {
    "SmolLM2-135M-Instruct": "smollm2",
    "HuggingFaceTB/SmolLM2-1.7B": "smollm2",
    "SmolLM3-3B": "smollm3",
    "Qwen2.5-0.5B-Instruct": "qwen2.5",
    "Qwen/Qwen2.5-Coder-7B-Instruct": "qwen2.5-coder",
    "Qwen3-4B-Instruct-2507": "qwen3",
    "Qwen3-30B-A3B-Instruct-2507": "qwen3",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2",
    "Meta-Llama-3-8B-Instruct": "meta-llama-3",
    "Llama-2-7b-chat-hf": "llama-2",
    "TinyLlama-1.1B-Chat-v1.0": "tinyllama",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral",
    "Mixtral-8x7B-Instruct-v0.1": "mixtral",
    "gemma-2-2b-it": "gemma-2",
    "google/gemma-3-270m-it": "gemma-3",
    "gemma-3n-E2B-it": "gemma-3n",
    "Phi-3-mini-4k-instruct": "phi-3-mini",
    "Phi-3.5-mini-instruct": "phi-3.5-mini",
    "OLMo-2-0425-1B-Instruct": "olmo-2",
    "granite-3.3-2b-instruct": "granite-3.3",
    "DeepSeek-R1-Distill-Qwen-1.5B": "deepseek-r1-distill-qwen",
    "stabilityai/stablelm-2-1_6b-chat": "stablelm-2",
    "EleutherAI/pythia-70m-deduped": "pythia-deduped",
    "facebook/opt-125m": "opt",
    "openai-community/gpt2": "gpt2",
    "unsloth/Llama-3.2-3B-Instruct-bnb-4bit": "llama-3.2",
    "falcon-7b-instruct": "falcon",
}


@pytest.mark.parametrize("name", REAL)
def test_a_base_model_has_a_short_name(name):
    assert short_base(name) == REAL[name]


@pytest.mark.parametrize("name", REAL)
def test_a_short_name_is_its_own_short_name(name):
    assert short_base(REAL[name]) == REAL[name]


def test_a_name_of_sizes_alone_keeps_them():
    assert short_base("7B-Instruct") == "7b-instruct"
    assert short_base("270m") == "270m"


def test_a_name_in_other_letters_is_written_in_plain_ones_or_not_at_all():
    assert short_base("Zürich-7B") == "zurich"
    assert short_base("模型") == "base"
    assert short_base("../../etc/passwd") == "passwd"
    assert short_base("") == "base"


def test_a_long_name_ends_with_a_whole_word():
    name = short_base("a-thing-with-a-name-that-goes-on-for-longer-than-anybody-would-want-to-read")
    assert name == "a-thing-with-a-name-that-goes-on-for"
    assert len(short_base("x" * 300)) == LONGEST_BASE


def test_a_release_is_called_by_rule():
    assert release_name(client="acme", task="support", base="smollm2", version=(1, 2, 0)) == "acme-support-smollm2-v1.2.0"
