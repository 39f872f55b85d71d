"""A row token by token: every token says its text, and whether it is learnt; a template that hides the answer says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from studio.datasets import rows
from studio.errors import UserError
from studio.ml import tokenview
from studio.ml.tokens import encode_row, load_tokenizer
from studio.ml.tokenview import Spelling
from studio.training.job import Stopped
from tests.jobs import ListeningJob

CHAT = {
    "messages": [
        {"role": "user", "content": "Hello 12"},
        {"role": "assistant", "content": "How can I help you?"},
        {"role": "user", "content": "Größe\n\n\tin 🦊"},
        {"role": "assistant", "content": "你好, Привет é"},
    ]
}
PAIR = {
    "prompt": [{"role": "user", "content": "Hello"}],
    "chosen": [{"role": "assistant", "content": "How can I help you?"}],
    "rejected": [{"role": "assistant", "content": "user"}],
}
LAST_ONLY = "{{ messages[-1]['content'] | upper }}<|im_end|>"
ENDLESS = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def seen(tokenizer: Any, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(tokenview.views(tokenizer, iter(enumerate(rows))))


def said(reading: dict[str, Any], runs: str = "learnt") -> str:
    """The words of the tokens that are learnt."""
    return "".join(reading["texts"][place] or "" for begin, end, _ in reading[runs] for place in range(begin, end))


def test_every_token_says_its_part_of_the_text_and_what_is_learnt(tokenizer: Any) -> None:
    [row] = seen(tokenizer, CHAT)
    [reading] = row["readings"]
    assert reading["ids"] == encode_row(tokenizer, CHAT, max_length=None).ids
    assert len(reading["texts"]) == len(reading["ids"]) == reading["total"]
    assert "".join(text or "" for text in reading["texts"]) == tokenizer.decode(reading["ids"])
    assert said(reading) == "How can I help you?<|im_end|>你好, Привет é<|im_end|>"
    assert said(reading, "last") == "你好, Привет é<|im_end|>"
    assert {reading["texts"][place] for place in reading["special"]} == {"<|im_start|>", "<|im_end|>"}


def test_a_letter_that_is_spread_over_tokens_stands_with_its_first(tokenizer: Any) -> None:
    ids = tokenizer.backend_tokenizer.encode("🦊", add_special_tokens=False).ids
    assert len(ids) > 1
    assert tokenview.texts(Spelling(tokenizer), ids) == ["🦊", *[None] * (len(ids) - 1)]
    assert tokenview.texts(Spelling(tokenizer), ids[:-1]) == ["\ufffd", *[None] * (len(ids) - 2)]
    assert "".join(text or "" for text in tokenview.texts(Spelling(tokenizer), [*ids[:-1], *ids])) == "\ufffd🦊"


def test_a_vocabulary_that_marks_spaces_and_falls_back_to_bytes_is_read_too(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = {
        token: number for number, token in enumerate(["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b"])
    }
    backend = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "<unk>"}))
    [row] = seen(load_tokenizer(tmp_path), {"text": "a é🦊b"})
    assert row["readings"][0]["texts"] == ["a", " ", "é", None, "🦊", None, None, None, "b", "</s>"]


def test_of_a_preference_row_both_answers_are_read(tokenizer: Any) -> None:
    [row] = seen(tokenizer, PAIR)
    assert [(reading["name"], said(reading)) for reading in row["readings"]] == [
        ("chosen", "How can I help you?<|im_end|>"),
        ("rejected", "user<|im_end|>"),
    ]


def test_an_answer_that_somebody_only_disliked_is_read_alone(tokenizer: Any) -> None:
    [row] = seen(tokenizer, {"prompt": PAIR["prompt"], "rejected": PAIR["rejected"]})
    assert [(reading["name"], said(reading)) for reading in row["readings"]] == [("rejected", "user<|im_end|>")]


def test_tool_calls_that_a_template_cannot_write_are_told_and_not_left_out(tokenizer: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "12"},
    ]
    [row] = seen(tokenizer, {"messages": messages})
    assert "tool calls" in row["error"]
    assert row["readings"] == []


def test_an_answer_without_weight_is_only_read_and_others_tell_theirs(tokenizer: Any) -> None:
    messages = [dict(message) for message in CHAT["messages"]]
    messages[1]["weight"], messages[3]["weight"] = 0, 0.5
    [row] = seen(tokenizer, {"messages": messages})
    [(_, _, weight)] = row["readings"][0]["learnt"]
    assert weight == 0.5
    assert said(row["readings"][0]) == "你好, Привет é<|im_end|>"


def test_plain_text_is_learnt_whole(tokenizer: Any) -> None:
    [row] = seen(tokenizer, {"text": "A city of people"})
    assert said(row["readings"][0]) == "A city of people<|im_end|>"


def test_a_template_that_cannot_mark_the_answer_says_why_and_shows_no_tokens(tokenizer: Any) -> None:
    tokenizer.chat_template = LAST_ONLY
    hidden, text = seen(tokenizer, CHAT, {"text": "A city"})
    assert "cannot be told from the rest" in hidden["error"]
    assert hidden["readings"] == []
    assert (text["error"], len(text["readings"])) == ("", 1)


def test_an_endless_template_is_tried_once_and_not_for_each_row(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.ml.chattemplate.LONGEST_RENDERING", 0.2)
    tokenizer.chat_template = ENDLESS
    first, second = seen(tokenizer, CHAT, PAIR)
    assert "does not end within" in first["error"]
    assert second["error"] == first["error"]


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    def written(count: int) -> Path:
        with rows.RowWriter(tmp_path / "draft.parquet") as writer:
            for number in range(count):
                chat = [{"role": "user", "content": f"Hello {number}"}, {"role": "assistant", "content": f"a reply {number}"}]
                writer.add(line=number + 1, row=json.dumps({"messages": chat}))
        rows.finish(
            tmp_path / "draft.parquet",
            tmp_path / "rows.parquet",
            validation=np.zeros(count, bool),
            flags=np.zeros(count, np.uint32),
            hashes=np.arange(count, dtype=np.uint64),
        )
        return tmp_path / "rows.parquet"

    return written


def lines(job: ListeningJob) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (job.out / tokenview.ROWS).read_bytes().splitlines()]


def test_an_order_writes_the_block_that_it_names(tiny_model: Path, rows_file: Callable[..., Path], listening_job: ListeningJob) -> None:
    payload = {"rows": str(rows_file(2030)), "base": str(tiny_model), "begin": 1990, "count": 50}
    assert tokenview.run(payload, listening_job) == {"rows": 40}
    assert [row["index"] for row in lines(listening_job)] == list(range(1990, 2030))
    assert said(lines(listening_job)[15]["readings"][0]) == "a reply 2005<|im_end|>"
    assert listening_job.steps[-1] == (40, 50)


def test_a_very_long_row_is_written_in_part_and_counted_whole(
    tiny_model: Path, rows_file: Callable[..., Path], listening_job: ListeningJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenview, "LONGEST", 10)
    tokenview.run({"rows": str(rows_file(1)), "base": str(tiny_model), "begin": 0, "count": 50}, listening_job)
    [reading] = lines(listening_job)[0]["readings"]
    assert len(reading["ids"]) == len(reading["texts"]) == 10 < reading["total"]
    assert reading["special"] and max(reading["special"]) < 10
    assert max(end for _, end, _ in reading["learnt"]) > 10


def test_a_stop_is_heeded(tiny_model: Path, rows_file: Callable[..., Path], tmp_path: Path) -> None:
    job = ListeningJob(tmp_path / "stopped", stop_after=3)
    with pytest.raises(Stopped):
        tokenview.run({"rows": str(rows_file(20)), "base": str(tiny_model), "begin": 0, "count": 50}, job)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, rows_file: Callable[..., Path], listening_job: ListeningJob) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        tokenview.run({"rows": str(rows_file(1)), "base": str(tmp_path), "begin": 0, "count": 50}, listening_job)
