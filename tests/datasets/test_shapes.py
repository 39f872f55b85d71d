"""The spellings that people's rows come in are recognised, and each becomes the same canonical row."""

from typing import Any

import pytest

from studio.datasets import rows
from studio.datasets.messages import Unusable
from studio.datasets.shapes import Converter, detect
from studio.errors import UserError

ASKED = {"role": "user", "content": "2 + 2?"}
ANSWERED = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
BRIEFED = {"role": "system", "content": "Be brief."}
CHAT = {"messages": [ASKED, ANSWERED]}
PAIR = {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [WRONG]}
TURNS = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]


@pytest.mark.parametrize(
    ("columns", "spelling", "row"),
    [
        ({"messages": [ASKED, ANSWERED]}, "OpenAI messages", CHAT),
        ({"messages": [BRIEFED, ASKED, ANSWERED]}, "OpenAI messages", {"messages": [BRIEFED, ASKED, ANSWERED]}),
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, ASKED, ANSWERED]},
            "OpenAI messages",
            {"messages": [BRIEFED, ASKED, ANSWERED]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2?"}]}, ANSWERED]},
            "OpenAI messages",
            CHAT,
        ),
        ({"messages": [ASKED, {**ANSWERED, "weight": 1}]}, "OpenAI messages", CHAT),
        (
            {"messages": [ASKED, {**ANSWERED, "weight": 0}, ASKED, {**ANSWERED, "weight": 2}]},
            "OpenAI messages",
            {"messages": [ASKED, {**ANSWERED, "weight": 0.0}, ASKED, {**ANSWERED, "weight": 2.0}]},
        ),
        ({"conversations": TURNS}, "ShareGPT", CHAT),
        ({"conversations": TURNS, "system": "Be brief."}, "ShareGPT", {"messages": [BRIEFED, ASKED, ANSWERED]}),
        ({"conversation": [ASKED, ANSWERED]}, "ShareGPT", CHAT),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, "Alpaca", CHAT),
        ({"instruction": "", "input": "2 + 2?", "output": "4"}, "Alpaca", CHAT),
        (
            {"instruction": "Add.", "input": "2 + 2", "output": "4"},
            "Alpaca",
            {"messages": [{"role": "user", "content": "Add.\n\n2 + 2"}, ANSWERED]},
        ),
        ({"Instruction": "2 + 2?", "Output": "4", "text": "### all of it"}, "Alpaca", CHAT),
        (
            {"instruction": "And 2 + 2?", "output": "4", "history": [["2 + 2?", "4"]]},
            "Alpaca",
            {"messages": [ASKED, ANSWERED, {"role": "user", "content": "And 2 + 2?"}, ANSWERED]},
        ),
        ({"instruction": "2 + 2?", "context": "", "response": "4", "category": "sums"}, "Dolly", CHAT),
        ({"prompt": "2 + 2?", "completion": "4"}, "prompt and completion", CHAT),
        ({"prompt": [BRIEFED, ASKED], "completion": [ANSWERED]}, "prompt and completion", {"messages": [BRIEFED, ASKED, ANSWERED]}),
        ({"question": "2 + 2?", "answer": "4"}, "question and answer", CHAT),
        ({"input": "2 + 2?", "output": "4"}, "input and output", CHAT),
        ({"text": "Two and two make four."}, "text", {"text": "Two and two make four."}),
        ({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "preference pairs", PAIR),
        ({"prompt": "2 + 2?", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WRONG]}, "preference pairs", PAIR),
        ({"chosen": [ASKED, ANSWERED], "rejected": [ASKED, WRONG]}, "preference conversations", PAIR),
        ({"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": {"from": "gpt", "value": "5"}}, "ShareGPT preference", PAIR),
        ({"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"}, "Alpaca preference", PAIR),
        ({"input": {"messages": [ASKED]}, "preferred_output": [ANSWERED], "non_preferred_output": [WRONG]}, "OpenAI preference", PAIR),
    ],
)
def test_a_spelling_is_recognised_and_becomes_a_canonical_row(columns: dict[str, Any], spelling: str, row: dict[str, Any]) -> None:
    detection = detect([columns])
    assert (detection.format, detection.sure) == (spelling, True)
    assert Converter(detection).row(columns) == row
    assert detection.reason.startswith(f"Recognised as {spelling} by its columns: ")


LIKED = {"prompt": [ASKED], "chosen": [ANSWERED]}
DISLIKED = {"prompt": [ASKED], "rejected": [ANSWERED]}


@pytest.mark.parametrize(
    ("columns", "spelling", "row"),
    [
        ({"prompt": "2 + 2?", "completion": "4", "label": True}, "prompt and completion", LIKED),
        ({"prompt": "2 + 2?", "completion": "4", "label": False}, "prompt and completion", DISLIKED),
        ({"prompt": [ASKED], "completion": [ANSWERED], "label": 1}, "prompt and completion", LIKED),
        ({"prompt": "2 + 2?", "completion": "4", "label": 0}, "prompt and completion", DISLIKED),
        ({"question": "2 + 2?", "answer": "4", "feedback": "thumbs_up"}, "question and answer", LIKED),
        ({"question": "2 + 2?", "answer": "4", "Thumbs": "Thumbs down"}, "question and answer", DISLIKED),
        ({"messages": [ASKED, ANSWERED], "label": "good"}, "OpenAI messages", LIKED),
        ({"messages": [ASKED, ANSWERED], "label": "bad"}, "OpenAI messages", DISLIKED),
        ({"messages": [ASKED, ANSWERED], "label": "👍"}, "OpenAI messages", LIKED),
        ({"conversations": TURNS, "kto_tag": True}, "ShareGPT", LIKED),
        ({"instruction": "2 + 2?", "input": "", "output": "4", "kto_tag": "false"}, "Alpaca", DISLIKED),
    ],
)
def test_a_thumb_beside_an_answer_is_recognised(columns: dict[str, Any], spelling: str, row: dict[str, Any]) -> None:
    detection = detect([columns])
    assert (detection.shape, detection.format) == ("preference", f"{spelling} with thumbs up or down")
    assert detection.reason.startswith(f"Recognised as {spelling} with thumbs up or down by its columns: ")
    assert Converter(detection).row(columns) == row


def test_a_label_of_another_kind_is_a_column_like_any_other() -> None:
    columns = {"prompt": "2 + 2?", "completion": "4", "label": "billing"}
    assert (detect([columns]).shape, detect([columns]).format) == ("chat", "prompt and completion")


def test_a_thumb_that_says_neither_is_refused() -> None:
    detection = detect([{"prompt": "2 + 2?", "completion": "4", "label": True}])
    for value, found in [(None, "nothing"), ("maybe", '"maybe"'), (7, '"7"'), ([], "a list")]:
        with pytest.raises(Unusable) as refused:
            Converter(detection).row({"prompt": "2 + 2?", "completion": "4", "label": value})
        assert refused.value.sentence("Line 9") == (
            f"Line 9: label must say whether the answer is good (true) or bad (false), found {found}."
        )


def test_a_person_says_which_column_is_the_thumb() -> None:
    columns = {"Frage": "2 + 2?", "Antwort": "4", "Daumen": "down"}
    detection = detect([columns], mapping={"prompt": "Frage", "completion": "Antwort", "label": "Daumen"})
    assert detection.shape == "preference"
    assert Converter(detection).row(columns) == DISLIKED


CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"


@pytest.mark.parametrize(
    "text", [CHATML, CHATML.rstrip() + "<|endoftext|>", CHATML.removesuffix("<|im_end|>\n"), CHATML + "<|im_start|>assistant\n"]
)
@pytest.mark.parametrize("column", ["text", "content", "messages"])
def test_chatml_that_is_written_out_is_a_conversation(column: str, text: str) -> None:
    detection = detect([{column: text}])
    assert (detection.shape, detection.format, detection.sure) == ("chat", "ChatML", True)
    assert detection.reason == f"Recognised as ChatML: {column} is written with <|im_start|> and <|im_end|>."
    assert Converter(detection).row({column: text}) == {"messages": [BRIEFED, ASKED, ANSWERED]}


def test_chatml_in_pieces_is_refused_with_the_turn() -> None:
    detection = detect([{"text": CHATML}])
    for text, sentence in [
        (CHATML.replace("?<|im_end|>\n", "?\n"), "Line 9: text is not whole ChatML: turn 2 does not end with <|im_end|>."),
        (CHATML + "and more", "Line 9: text is not whole ChatML: turn 4 does not end with <|im_end|>."),
        (CHATML.replace("user", "bot"), 'Line 9, message 2: role "bot" is unknown. Use system, user, assistant or tool.'),
        ("plain text", "Line 9: text must be a list of messages, found text."),
    ]:
        with pytest.raises(Unusable) as refused:
            Converter(detection).row({"text": text})
        assert refused.value.sentence("Line 9") == sentence


def test_text_that_mentions_chatml_now_and_then_stays_text() -> None:
    assert detect([{"text": CHATML}, {"text": "A text about <|im_start|>."}]).shape == "text"


def test_messages_kept_as_json_text_are_parsed_and_the_person_is_asked() -> None:
    columns = {"messages": '[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]'}
    detection = detect([columns])
    assert (detection.sure, detection.reason) == (False, "messages is text containing JSON. Parse it?")
    assert Converter(detection).row(columns) == CHAT


def test_a_person_says_which_column_is_which() -> None:
    columns = {"Frage": "2 + 2?", "Antwort": "4", "id": "7"}
    assert detect([columns]).shape is None
    detection = detect([columns], mapping={"prompt": "Frage", "completion": "Antwort"})
    assert (detection.shape, detection.sure) == ("chat", True)
    assert Converter(detection).row(columns) == CHAT
    assert detect([columns], mapping={"prompt": "Frage", "answer": "Antwort"}).mapping == detection.mapping


def test_a_mapping_that_does_not_fit_is_refused_with_what_there_is() -> None:
    for mapping, sentence in [
        ({"text": "body"}, 'Column "body" not found. Available: a, b.'),
        (
            {"title": "a"},
            '"title" is not a field. Choose from: messages, system, prompt, context, history, completion, text, chosen, rejected, '
            "label, tools.",
        ),
    ]:
        with pytest.raises(UserError, match=r".") as refused:
            detect([{"a": "", "b": ""}], mapping=mapping)
        assert refused.value.message == sentence
        assert refused.value.fields["mapping"] == sentence
    with pytest.raises(UserError, match=r"Choose columns for messages, or for prompt \+ completion"):
        detect([{"a": "", "b": ""}], mapping={"prompt": "a"})


def test_columns_that_hold_no_training_text_are_named() -> None:
    detection = detect([{"id": "1", "city": "Rome"}])
    assert detection.shape is None
    assert detection.reason == "Found: id, city. Need messages, or prompt + completion, or text."


def test_columns_with_hostile_names_are_columns_like_any_other() -> None:
    columns = {"__class__": "2 + 2?", "pk__in": "4", "constructor": "", "id": ""}
    detection = detect([columns], mapping={"prompt": "__class__", "completion": "pk__in"})
    assert Converter(detection).row(columns) == CHAT


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "Line 9: no messages."),
        ([ASKED, {"role": "bot", "content": "4"}], 'Line 9, message 2: role "bot" is unknown. Use system, user, assistant or tool.'),
        ([{"content": "4"}], "Line 9, message 1: the role is missing. Use system, user, assistant or tool."),
        ([ASKED, ASKED, ANSWERED], "Line 9, message 2: expected assistant after user."),
        ([ANSWERED, ASKED, ANSWERED], "Line 9, message 1: expected user at the beginning, found assistant."),
        ([ASKED, ANSWERED, ANSWERED], "Line 9, message 3: expected user after assistant."),
        ([ASKED, ANSWERED, BRIEFED], "Line 9, message 3: expected user after assistant."),
        ([BRIEFED, ANSWERED], "Line 9, message 2: expected user after system."),
        ([ASKED], "Line 9 ends with a question. Every chat must end with an answer."),
        ([BRIEFED], "Line 9 has no answer. Every chat must end with an answer."),
        ([ASKED, {"role": "assistant", "content": " "}], "Line 9: the assistant message is empty, there is nothing to learn."),
        ([ASKED, {"role": "assistant", "content": None}], "Line 9: the assistant message is empty, there is nothing to learn."),
        ([{"role": "user", "content": ""}, ANSWERED], "Line 9, message 1: the user message is empty."),
        ([{"role": "user", "content": 5}, ANSWERED], "Line 9, message 1: content must be text, found number."),
        ([{"role": "user", "content": {}}, ANSWERED], "Line 9, message 1: content must be text, found an object."),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, ANSWERED],
            "Line 9, message 1: Images are not supported by this base model.",
        ),
        ([ASKED, {"role": "tool", "content": "4", "tool_call_id": "call_7"}], "Line 9, message 2: no tool call with id call_7."),
        (
            [ASKED, {"role": "assistant", "content": None, "tool_calls": [{}]}],
            "Line 9, message 2: a tool call must be an object with a name and arguments.",
        ),
        (["hi"], "Line 9, message 1: must be an object with role and content, found text."),
        ([ASKED, {**ANSWERED, "weight": "2"}], "Line 9, message 2: weight must be a number from 0 to 100, found 2."),
        ([ASKED, {**ANSWERED, "weight": True}], "Line 9, message 2: weight must be a number from 0 to 100, found True."),
        ([ASKED, {**ANSWERED, "weight": -1}], "Line 9, message 2: weight must be a number from 0 to 100, found -1."),
        ([ASKED, {**ANSWERED, "weight": 0}], "Line 9: every answer has the weight 0, there is nothing to learn."),
        (7, "Line 9: messages must be a list of messages, found number."),
        ("hello", "Line 9: messages must be a list of messages, found text."),
    ],
)
def test_a_conversation_that_cannot_be_learnt_from_says_where_and_why(messages: Any, sentence: str) -> None:
    with pytest.raises(Unusable) as refused:
        Converter(detect([{"messages": [ASKED, ANSWERED]}])).row({"messages": messages})
    assert refused.value.sentence("Line 9") == sentence


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"instruction": "2 + 2?", "output": ""}, "Line 9: output is empty, there is nothing to learn."),
        ({"instruction": "2 + 2?"}, "Line 9: output is missing, there is nothing to learn."),
        ({"instruction": "2 + 2?", "output": 4}, "Line 9: output must be text, found number."),
        ({"instruction": " ", "output": "4"}, "Line 9: instruction is empty, there is nothing to answer."),
    ],
)
def test_a_pair_without_a_question_or_an_answer_says_so(columns: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Unusable) as refused:
        Converter(detect([{"instruction": "", "output": ""}])).row(columns)
    assert refused.value.sentence("Line 9") == sentence


def test_identical_answers_teach_nothing() -> None:
    with pytest.raises(Unusable, match="chosen and rejected are identical, they teach nothing"):
        Converter(detect([{"prompt": "", "chosen": "", "rejected": ""}])).row({"prompt": "2 + 2?", "chosen": "4", "rejected": "4"})


FILES: list[tuple[str, str, str, str, dict[str, Any]]] = [
    (
        "openai.jsonl",
        '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}, '
        '{"role": "assistant", "content": "4", "weight": 1}]}',
        "OpenAI messages",
        "messages",
        {"messages": [BRIEFED, ASKED, ANSWERED]},
    ),
    (
        "sharegpt.json",
        '[{"id": "identity_0", "system": "Be brief.", "conversations": [{"from": "human", "value": "2 + 2?"}, '
        '{"from": "gpt", "value": "4"}]}]',
        "ShareGPT",
        "conversations (as messages), system",
        {"messages": [BRIEFED, ASKED, ANSWERED]},
    ),
    ("alpaca.json", '[\n  {\n    "instruction": "",\n    "input": "2 + 2?",\n    "output": "4"\n  }\n]', "Alpaca", "instruction", CHAT),
    (
        "dolly.jsonl",
        '{"instruction": "2 + 2?", "context": "", "response": "4", "category": "open_qa"}',
        "Dolly",
        "instruction (as prompt), response (as completion), context",
        CHAT,
    ),
    ("pairs.csv", "input,output\n2 + 2?,4\n", "input and output", "input (as prompt), output (as completion)", CHAT),
    ("faq.csv", "id;Question;Answer\n1;2 + 2?;4\n", "question and answer", "Question (as prompt), Answer (as completion)", CHAT),
    ("sft.jsonl", '{"prompt": "2 + 2?", "completion": "4"}', "prompt and completion", "prompt, completion", CHAT),
    (
        "trl.jsonl",
        '{"prompt": [{"role": "user", "content": "2 + 2?"}], "chosen": [{"role": "assistant", "content": "4"}], '
        '"rejected": [{"role": "assistant", "content": "5"}]}',
        "preference pairs",
        "prompt, chosen, rejected",
        PAIR,
    ),
    (
        "openai_dpo.jsonl",
        '{"input": {"messages": [{"role": "user", "content": "2 + 2?"}], "tools": [], "parallel_tool_calls": true}, '
        '"preferred_output": [{"role": "assistant", "content": "4"}], "non_preferred_output": [{"role": "assistant", "content": "5"}]}',
        "OpenAI preference",
        "input (as prompt), preferred_output (as chosen), non_preferred_output (as rejected)",
        PAIR,
    ),
    (
        "dpo_en.json",
        '[{"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"}]',
        "Alpaca preference",
        "instruction (as prompt), chosen, rejected, input (as context)",
        PAIR,
    ),
    (
        "sharegpt_dpo.json",
        '[{"conversations": [{"from": "human", "value": "2 + 2?"}], "chosen": {"from": "gpt", "value": "4"}, '
        '"rejected": {"from": "gpt", "value": "5"}}]',
        "ShareGPT preference",
        "conversations (as prompt), chosen, rejected",
        PAIR,
    ),
    (
        "kto_en.json",
        '[{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}], "label": true}]',
        "OpenAI messages with thumbs up or down",
        "messages, label",
        LIKED,
    ),
    (
        "kto_tag.json",
        '[{"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "kto_tag": false}]',
        "ShareGPT with thumbs up or down",
        "conversations (as messages), kto_tag (as label)",
        DISLIKED,
    ),
    ("corpus.jsonl", '{"text": "Two and two make four."}', "text", "text", {"text": "Two and two make four."}),
]


@pytest.mark.parametrize(("name", "content", "spelling", "columns", "row"), FILES, ids=[file[0] for file in FILES])
def test_a_file_as_people_have_it_is_recognised_and_says_by_what(
    write: Any, import_file: Any, job: Any, name: str, content: str, spelling: str, columns: str, row: dict[str, Any]
) -> None:
    facts = import_file(write(name, content))
    assert (facts["format"], facts["rows"], facts["refused"]) == (spelling, 1, 0)
    assert facts["reason"].startswith(f"Recognised as {spelling} by its columns: {columns}")
    assert list(rows.read(job.out / "rows.parquet")) == [row]
