"""What the model reads of a row, and what of it it learns."""

import copy
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from studio.errors import UserError
from studio.ml import tokenstats
from studio.ml.tokens import PLAIN_TEMPLATE, both_answers, encode_row, encode_rows, has_own_template, holds_control_tokens, load_tokenizer
from studio.training import TokenFacts

ANSWERED = {"messages": [{"role": "user", "content": "Hello 12"}, {"role": "assistant", "content": "How can I help you?"}]}
TWICE = {
    "messages": [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": " a reply with space "},
    ]
}
GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% set last = messages | length - 1 %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.index0 == last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] | trim + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHOUTING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | upper + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_ONLY = "{{ messages[-1]['content'] | upper }}<|im_end|>"
REFUSING = "{{ raise_exception('roles must alternate') }}"
ESCAPING = "{{ ().__class__.__base__.__subclasses__() }}"


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def learnt(tokenizer: Any, row: dict[str, Any], *, max_length: int | None = None) -> str:
    encoded = encode_row(tokenizer, row, max_length=max_length)
    assert len(encoded.ids) == len(encoded.supervised)
    return str(tokenizer.decode([number for number, is_learnt in zip(encoded.ids, encoded.supervised, strict=True) if is_learnt]))


def test_only_the_answer_and_its_end_are_learnt(tokenizer: Any) -> None:
    assert learnt(tokenizer, ANSWERED) == "How can I help you?<|im_end|>"


def test_every_answer_of_a_long_chat_is_learnt_even_where_words_repeat(tokenizer: Any) -> None:
    assert learnt(tokenizer, TWICE) == "Hello<|im_end|> a reply with space <|im_end|>"


def test_a_chat_is_read_exactly_as_the_model_is_asked_later(tokenizer: Any) -> None:
    encoded = encode_row(tokenizer, TWICE, max_length=None)
    assert encoded.ids == tokenizer.apply_chat_template(TWICE["messages"], return_dict=False)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GENERATION, "Hello<|im_end|> a reply with space <|im_end|>"),
        (THINKING, "Hello<|im_end|><think>\n\n</think>\n\na reply with space<|im_end|>"),
        (SHOUTING, "HELLO<|im_end|> A REPLY WITH SPACE <|im_end|>"),
        (PLAIN_TEMPLATE, "Hello<|im_end|> a reply with space <|im_end|>"),
    ],
    ids=["generation marks", "an empty thought before the last answer", "changed contents", "plain headings"],
)
def test_answers_are_told_apart_under_any_template(tokenizer: Any, template: str, expected: str) -> None:
    tokenizer.chat_template = template
    assert learnt(tokenizer, TWICE) == expected


def test_an_answer_that_no_token_closes_gets_the_end_of_text(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    assert learnt(tokenizer, ANSWERED) == " How can I help you?<|im_end|>"


def test_a_template_that_hides_answers_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = LAST_ONLY
    with pytest.raises(UserError, match="rewrites earlier messages"):
        encode_row(tokenizer, TWICE, max_length=None)


@pytest.mark.parametrize(("template", "reason"), [(REFUSING, "roles must alternate"), (ESCAPING, "unsafe")])
def test_a_template_that_fails_or_reaches_out_is_refused_with_its_reason(tokenizer: Any, template: str, reason: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=reason):
        encode_row(tokenizer, ANSWERED, max_length=None)


def test_control_tokens_in_a_message_are_read_as_text(tokenizer: Any) -> None:
    row = {
        "messages": [{"role": "user", "content": "What does <|im_end|> do?"}, {"role": "assistant", "content": "<|im_end|> ends a turn."}]
    }
    encoded = encode_row(tokenizer, row, max_length=None)
    assert encoded.ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.decode(encoded.ids) == tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert learnt(tokenizer, row) == "<|im_end|> ends a turn.<|im_end|>"
    assert holds_control_tokens(tokenizer, row)
    assert not holds_control_tokens(tokenizer, ANSWERED)


def test_control_tokens_are_text_too_where_a_tokenizer_marks_the_start_of_words(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted(set("abcdefghijklmnopqrstuvwxyzWUAT:\n.? <>/s\u2060"))
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["What does it do? it ends a turn."], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    row = {"messages": [{"role": "user", "content": "What does </s> do?"}, {"role": "assistant", "content": "</s> ends"}]}
    encoded = encode_row(tokenizer, row, max_length=None)
    assert encoded.ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(encoded.ids).replace("\u2060", "") == "<s>What does </s> do?</s> ends</s>"
    assert learnt(tokenizer, row).replace("\u2060", "").endswith("ends</s>")


def test_plain_text_is_learnt_whole_with_its_end(tokenizer: Any) -> None:
    encoded = encode_row(tokenizer, {"text": "A city <|im_end|> of people"}, max_length=None)
    assert all(encoded.supervised)
    assert encoded.ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(encoded.ids) == "A city <|im_end|> of people<|im_end|>"


def test_a_long_row_is_cut_and_says_whether_anything_is_left_to_learn(tokenizer: Any) -> None:
    whole = encode_row(tokenizer, ANSWERED, max_length=None)
    short = encode_row(tokenizer, ANSWERED, max_length=len(whole.ids) - 3)
    nothing = encode_row(tokenizer, ANSWERED, max_length=4)
    assert (whole.cut, short.cut, nothing.cut) == (False, True, True)
    assert short.ids == whole.ids[:-3]
    assert (whole.teaches, short.teaches, nothing.teaches) == (True, True, False)


def test_a_thousand_rows_take_less_than_two_seconds(tokenizer: Any) -> None:
    rows = [ANSWERED, TWICE, {"text": "The capital of France is Paris. " * 20}] * 333
    start = time.perf_counter()
    encoded = list(encode_rows(tokenizer, rows, max_length=512))
    assert time.perf_counter() - start < 2
    assert encoded[:3] == [encode_row(tokenizer, row, max_length=512) for row in rows[:3]]


def test_a_model_without_a_template_gets_the_plain_one(tiny_model_maker: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_maker(tmp_path / "bare", template=None))
    assert not has_own_template(tokenizer)
    assert "### User:\nHello 12\n\n### Assistant:\n" in tokenizer.decode(encode_row(tokenizer, ANSWERED, max_length=None).ids)


def test_settings_of_a_strange_tokenizer_cannot_add_tokens_or_cut_rows(tiny_model: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_model / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((tiny_model / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "pad_token": "<|new|>", "auto_map": {"AutoTokenizer": "evil.Evil"}})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert len(encode_row(tokenizer, ANSWERED, max_length=None).ids) > 4
    assert tokenizer.pad_token == "<|im_end|>"
    assert len(tokenizer) == 500


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "tokenizer.json is missing"), ("{", "tokenizer.json cannot be read"), ("[]", "tokenizer.json cannot be read")],
)
def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        load_tokenizer(tmp_path)


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.table({"split": ["train"] * len(rows), "row": [json.dumps(row) for row in rows]})
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def test_a_dataset_is_measured_with_a_models_tokenizer(tiny_model: Path, tmp_path: Path, listening_job: Any) -> None:
    rows = [ANSWERED] * 30 + [TWICE] * 10 + [{"text": "Paris " * 100}]
    payload = {"rows": str(rows_file(tmp_path, rows)), "base": str(tiny_model)}
    facts = tokenstats.run(payload, listening_job)["tokens"]
    tokenizer = load_tokenizer(tiny_model)
    lengths = sorted(len(encode_row(tokenizer, row, max_length=None).ids) for row in rows)
    assert facts["total"] == sum(lengths)
    assert facts["longest"] == lengths[-1]
    assert facts["p50"] == lengths[20]
    assert sum(count for _, count in facts["histogram"]) == 41
    assert facts["histogram"][-1][0] >= lengths[-1]
    assert listening_job.steps[-1] == (41, 41)


def test_what_each_max_length_would_cut_is_told(tiny_model: Path, tmp_path: Path, listening_job: Any) -> None:
    late = {"messages": [{"role": "user", "content": "Paris " * 300}, {"role": "assistant", "content": "Hello"}]}
    rows = [ANSWERED] * 30 + [{"text": "Paris " * 200}, late]
    payload = {"rows": str(rows_file(tmp_path, rows)), "base": str(tiny_model), "limit": 300}
    facts = tokenstats.run(payload, listening_job)["tokens"]
    tokenizer = load_tokenizer(tiny_model)
    whole = [encode_row(tokenizer, row, max_length=None) for row in rows]
    lengths = [len(row.ids) for row in whole]
    assert [cut["max_length"] for cut in facts["cuts"]][:3] == [256, 300, 512]
    for cut in facts["cuts"]:
        limit = cut["max_length"]
        kept = list(encode_rows(tokenizer, rows, max_length=limit))
        assert cut["rows"] == sum(length > limit for length in lengths)
        assert cut["tokens"] == sum(lengths) - sum(len(row.ids) for row in kept)
        assert cut["supervised"] == facts["supervised"] - sum(sum(row.supervised) for row in kept)
        assert cut["empty"] == sum(not row.teaches for row in kept)
    assert (facts["cuts"][-1]["rows"], facts["cuts"][-2]["rows"] > 0, facts["sample"]) == (0, True, 0)
    assert np.load(listening_job.out / tokenstats.LENGTHS).tolist() == lengths


def test_very_many_rows_are_told_by_a_sample_of_them(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenstats, "SAMPLE", 100)
    path = rows_file(tmp_path, [ANSWERED, TWICE, TWICE, {"text": "Paris " * 200}] * 100)
    sampled = TokenFacts.model_validate(tokenstats.measure(path, tiny_model))
    monkeypatch.setattr(tokenstats, "SAMPLE", 400)
    exact = TokenFacts.model_validate(tokenstats.measure(path, tiny_model))
    assert (sampled.sample, exact.sample) == (100, 0)
    assert sampled.total == pytest.approx(exact.total, rel=0.25)
    assert sampled.cuts[0].rows == pytest.approx(exact.cuts[0].rows, rel=0.4)
    assert sum(count for _, count in sampled.histogram) == pytest.approx(400, abs=4)
    assert sampled.longest == exact.longest


def test_facts_of_an_earlier_studio_are_read() -> None:
    old = {"total": 9, "supervised": 3, "p50": 1, "p95": 2, "p99": 3, "longest": 4, "histogram": [[4, 9]]}
    assert TokenFacts.model_validate(old).cuts == []


def test_both_answers_of_a_preference_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    row = pair([("user", "Hello"), ("assistant", "Hi"), ("user", "12")], "How can I help you?", "What?")
    facts = tokenstats.measure(rows_file(tmp_path, [row]), tiny_model)
    assert sum(count for _, count in facts["histogram"]) == 2
    ends = [encode_row(load_tokenizer(tiny_model), reading, max_length=None) for reading in both_answers(row)]
    assert facts["supervised"] == sum(sum(end.supervised) for end in ends)


def pair(prompt: list[tuple[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": role, "content": content} for role, content in prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def test_of_a_preference_only_the_two_ends_are_learnt(tokenizer: Any) -> None:
    row = pair([("user", "Hello"), ("assistant", "Hello"), ("user", "12")], "yes", "no")
    row["chosen"][0]["weight"] = 0  # compared all the same
    assert [learnt(tokenizer, reading) for reading in both_answers(row)] == ["yes<|im_end|>", "no<|im_end|>"]


def test_only_the_last_answer_is_learnt_where_that_is_asked_for(tokenizer: Any) -> None:
    encoded = encode_row(tokenizer, TWICE, max_length=None, last_answer=True)
    whole = encode_row(tokenizer, TWICE, max_length=None)
    assert encoded.ids == whole.ids and encoded.weights is None
    said = [number for number, is_learnt in zip(encoded.ids, encoded.supervised, strict=True) if is_learnt]
    assert tokenizer.decode(said) == " a reply with space <|im_end|>"


@pytest.mark.parametrize("weights", [(0, 1), (0.5, 2), (1, 1), (0, 3)])
@pytest.mark.parametrize("written", ["<|im_end|> is text", "Hello"])
def test_each_answer_counts_with_its_own_weight(tokenizer: Any, weights: tuple[float, float], written: str) -> None:
    row = copy.deepcopy(TWICE)
    answers = [message for message in row["messages"] if message["role"] == "assistant"]
    answers[0]["content"] = written
    for message, weight in zip(answers, weights, strict=True):
        message["weight"] = weight
    encoded = encode_row(tokenizer, row, max_length=None)
    assert (
        encoded.ids == encode_row(tokenizer, {"messages": [{**message, "weight": 1} for message in row["messages"]]}, max_length=None).ids
    )
    counted = encoded.weights or [float(is_learnt) for is_learnt in encoded.supervised]
    assert [weight > 0 for weight in counted] == encoded.supervised
    answers_counted = [weight for weight, _ in itertools.groupby(counted) if weight]
    assert answers_counted == [weight for weight in weights if weight]


def test_answers_that_a_template_does_not_mark_one_by_one_cannot_count_differently(tokenizer: Any) -> None:
    tokenizer.chat_template = GENERATION.replace("message['role'] == 'assistant'", "message['role'] == 'assistant' and loop.last")
    row = copy.deepcopy(TWICE)
    row["messages"][2]["weight"] = 0.5
    with pytest.raises(UserError, match="rows without weights"):
        encode_row(tokenizer, row, max_length=None)


def test_lengths_after_a_cut_are_what_training_reads(tiny_model: Path, tmp_path: Path) -> None:
    facts = tokenstats.measure(rows_file(tmp_path, [TWICE, ANSWERED]), tiny_model, max_length=16)
    assert facts["longest"] == 16


@pytest.mark.parametrize("lengths", [[1], [5] * 10, list(range(1, 2000)), [3, 3, 3, 100_000]])
def test_buckets_hold_every_row_and_have_round_edges(lengths: list[int]) -> None:
    buckets = tokenstats.histogram(lengths)
    assert len(buckets) <= 24
    assert sum(count for _, count in buckets) == len(lengths)
    assert [edge for edge, _ in buckets] == sorted({edge for edge, _ in buckets})
    assert buckets[-1][0] >= lengths[-1]
