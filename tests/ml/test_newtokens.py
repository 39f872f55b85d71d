"""A base model gets tokens that it did not have: they are read as one piece, they can be learnt, and they come out in its files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from studio.errors import UserError
from studio.ml import importing
from studio.ml.gguf import vocabulary
from studio.ml.tokens import encode_row, load_tokenizer
from studio.training import DatasetFacts, HostFacts, ModelFacts
from studio.training.defaults import suggest
from training_plugins.peft_lora import PeftLora

TOKENS = ["<order>", "Kundennummer"]
ROW = {"messages": [{"role": "user", "content": "Where is <order> 7?"}, {"role": "assistant", "content": "Kundennummer 12."}]}


@pytest.fixture
def grown(tiny_model: Path, listening_job: Any) -> tuple[ModelFacts, Path]:
    payload = {"source": f"base:{tiny_model}", "tokens": TOKENS, "name": "Tiny + 2 tokens", "cache": str(listening_job.work / "cache")}
    facts = importing.run(payload, listening_job)
    return ModelFacts.model_validate(facts["model"]), listening_job.out


def test_they_are_one_piece_each_and_everything_else_reads_as_before(tiny_model, grown):
    facts, folder = grown
    before, after = load_tokenizer(tiny_model), load_tokenizer(folder)
    ids = encode_row(after, ROW, max_length=None).ids
    assert [ids.count(after.convert_tokens_to_ids(token)) for token in TOKENS] == [1, 1]
    plain = {"messages": [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Good day."}]}
    assert encode_row(after, plain, max_length=None) == encode_row(before, plain, max_length=None)
    assert (facts.new_tokens, facts.name) == (2, "Tiny + 2 tokens")
    assert facts.vocabulary > max(after.get_vocab().values())


def test_they_begin_as_the_mean_of_their_pieces_and_the_rest_is_untouched(tiny_model, grown):
    _, folder = grown
    old, new = (AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight for path in (tiny_model, folder))
    before, after = load_tokenizer(tiny_model), load_tokenizer(folder)
    known = len(before)
    assert torch.equal(new[:known], old[:known])
    for token in TOKENS:
        pieces = before(token, add_special_tokens=False)["input_ids"]
        assert torch.allclose(new[after.convert_tokens_to_ids(token)], old[pieces].mean(0), atol=1e-3)


def test_a_gguf_of_it_names_them_at_their_places(grown):
    facts, folder = grown
    tokens = vocabulary.entries(folder, rows=facts.vocabulary)["tokenizer.ggml.tokens"].value
    tokenizer = load_tokenizer(folder)
    assert [tokens.index(token) for token in TOKENS] == [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]


def test_the_form_proposes_to_train_the_table_and_warns_where_it_is_not(grown):
    facts, _ = grown
    data = DatasetFacts(name="d", shape="chat", rows=100, train=95, validation=5)
    host = HostFacts(name="pc", cpus=2, memory=24 << 30, bf16=True, gflops=1000)
    assert suggest(PeftLora(), base=facts, data=data, host=host)["modules_to_save"].value == ["embed_tokens"]
    found = PeftLora().check(PeftLora.Config(rank=8), facts, data, host)
    assert any(issue.field == "modules_to_save" and "never seen" in issue.message for issue in found)
    learnt = PeftLora().check(PeftLora.Config(rank=8, modules_to_save=["embed_tokens"]), facts, data, host)
    assert not any("never seen" in issue.message for issue in learnt)


def test_a_token_that_is_known_already_is_refused(tiny_model, listening_job):
    payload = {"source": f"base:{tiny_model}", "tokens": ["<|im_end|>"], "cache": str(listening_job.work / "cache")}
    with pytest.raises(UserError, match="is a token of this model already"):
        importing.run(payload, listening_job)
