"""Tool calls in the spellings that people have become rows; what does not belong together is refused with its place."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studio.datasets import rows
from studio.datasets.messages import Unusable
from studio.datasets.models import Dataset, DatasetVersion
from studio.datasets.shapes import Converter, detect
from studio.datasets.typed import accepted
from studio.training import ModelFacts, TrainConfig
from studio.training.checks import row_issues
from tests.fixtures import MODEL_FACTS

Import = Callable[..., dict[str, Any]]
Write = Callable[..., Path]

ASKED = {"role": "user", "content": "What is the weather in Rome?"}
TOLD = {"role": "assistant", "content": "It has 21 degrees in Rome."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def call(name: str = "get_weather", arguments: Any = None, *, id: str = "call_7") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": {"city": "Rome"} if arguments is None else arguments}}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def result(content: str = "21", *, id: str = "call_7", name: str = "get_weather") -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": id, "name": name}


CANONICAL = {"messages": [ASKED, calling(call()), result(), TOLD], "tools": [WEATHER]}
UNNAMED = {"messages": [ASKED, calling(call(id="call00001")), result(id="call00001"), TOLD], "tools": [WEATHER]}
OPENAI = {
    "messages": [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call(arguments='{"city": "Rome"}')]},
        {"role": "tool", "tool_call_id": "call_7", "content": "21"},
        TOLD,
    ],
    "tools": [WEATHER],
    "parallel_tool_calls": False,
}
OLDER_OPENAI = {
    "messages": [
        ASKED,
        {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
        {"role": "function", "name": "get_weather", "content": "21"},
        TOLD,
    ],
    "functions": [WEATHER["function"]],
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": ASKED["content"]},
        {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": TOLD["content"]},
    ],
    "tools": json.dumps([WEATHER["function"]]),
}


@pytest.mark.parametrize(
    ("columns", "spelling", "row"),
    [
        (OPENAI, "OpenAI messages", CANONICAL),
        (CANONICAL, "OpenAI messages", CANONICAL),
        ({**OPENAI, "tools": json.dumps([WEATHER])}, "OpenAI messages", CANONICAL),
        (OLDER_OPENAI, "OpenAI messages", UNNAMED),
        (SHAREGPT, "ShareGPT", UNNAMED),
        (
            {"prompt": [ASKED], "completion": [OPENAI["messages"][1]], "tools": [WEATHER]},
            "prompt and completion",
            {"messages": [ASKED, calling(call())], "tools": [WEATHER]},
        ),
        (
            {
                "input": {"messages": [ASKED], "tools": [WEATHER], "parallel_tool_calls": True},
                "preferred_output": [OPENAI["messages"][1]],
                "non_preferred_output": [TOLD],
            },
            "OpenAI preference",
            {"prompt": [ASKED], "chosen": [calling(call())], "rejected": [TOLD], "tools": [WEATHER]},
        ),
    ],
)
def test_tool_calls_in_every_spelling_are_the_same_row(columns: dict[str, Any], spelling: str, row: dict[str, Any]) -> None:
    detection = detect([columns])
    assert (detection.format, detection.sure) == (spelling, True)
    assert Converter(detection).row(columns) == row


def test_a_file_with_tools_is_imported_and_its_rows_are_counted(
    write: Write, import_file: Import, job: Any, refusals: Callable[[], list[dict[str, Any]]]
) -> None:
    lonely = {"messages": [ASKED, calling(call()), result(id="call_8")], "tools": [WEATHER]}
    file = write("calls.jsonl", [OPENAI] * 2 + [{"messages": [ASKED, TOLD]}, lonely])
    facts = import_file(file)
    assert (facts["shape"], facts["rows"], facts["refused"]) == ("chat", 3, 1)
    assert facts["statistics"]["forms"] == {"tools": 2}
    assert facts["statistics"]["roles"] == {"user": 3, "assistant": 5, "tool": 2}
    assert [row["reason"] for row in refusals()] == ["Line 4, message 3: no tool call with id call_8."]
    assert list(rows.read(job.out / "rows.parquet")).count(CANONICAL) == 2
    assert facts["preview"][0]["tools"][0]["function"]["name"] == "get_weather"
    assert "findings" not in facts or "empty" not in facts["findings"]


def test_thumbs_are_imported_and_counted(write: Write, import_file: Import, job: Any) -> None:
    file = write(
        "thumbs.csv", "question,answer,feedback\n" + "".join(f"What is {n}?,It is {n}.,{'up' if n % 3 else 'down'}\n" for n in range(30))
    )
    facts = import_file(file)
    assert (facts["shape"], facts["rows"]) == ("preference", 30)
    assert facts["statistics"]["forms"] == {"liked": 20, "disliked": 10}
    found = list(rows.read(job.out / "rows.parquet"))
    assert sum("chosen" in row for row in found) == 20 and all(len(row) == 2 for row in found)


def test_rows_without_tools_are_the_same_bytes_as_ever(write: Write, import_file: Import) -> None:
    facts = import_file(
        write("chats.jsonl", [{"messages": [ASKED, TOLD]}, {"messages": [{"role": "system", "content": "Hi"}, ASKED, TOLD]}])
    )
    said = '{"role":"user","content":"What is the weather in Rome?"},{"role":"assistant","content":"It has 21 degrees in Rome."}]}\n'
    canonical = '{"messages":[' + said + '{"messages":[{"role":"system","content":"Hi"},' + said
    assert facts["rows_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert "forms" not in facts["statistics"]


def test_several_calls_may_be_answered_in_any_order() -> None:
    columns = {
        "messages": [
            ASKED,
            calling(call(id="a"), call(arguments={"city": "Oslo"}, id="b")),
            {"role": "tool", "tool_call_id": "b", "content": "3"},
            {"role": "tool", "tool_call_id": "a", "content": "21"},
            TOLD,
        ]
    }
    found = Converter(detect([columns])).row(columns)["messages"]
    assert [(message["tool_call_id"], message["content"]) for message in found if message["role"] == "tool"] == [("b", "3"), ("a", "21")]


def test_calls_without_ids_are_told_apart_by_their_order() -> None:
    turns = [
        {"from": "human", "value": "Rome and Oslo?"},
        {"from": "function_call", "value": '[{"name": "f", "arguments": {"city": "Rome"}}, {"name": "f", "arguments": {"city": "Oslo"}}]'},
        {"from": "observation", "value": "21"},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "21 and 3."},
    ]
    for conversation, answered in [(turns, ["call00001", "call00002"]), (turns[:3] + turns[4:], ["call00001"])]:
        found = Converter(detect([{"conversations": turns}])).row({"conversations": conversation})["messages"]
        assert [call["id"] for call in found[1]["tool_calls"]] == ["call00001", "call00002"]
        assert [message["tool_call_id"] for message in found if message["role"] == "tool"] == answered


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([ASKED, TOLD, ASKED, result()], "Line 9, message 4: no tool call with id call_7."),
        ([ASKED, calling(call()), result(), result(), TOLD], "Line 9, message 4: no tool call with id call_7."),
        ([ASKED, {"role": "tool", "content": "21"}], "Line 9, message 2: a tool result without a tool call before it."),
        ([ASKED, calling(call()), ASKED, TOLD], "Line 9, message 3: tool call call_7 has no result before this message."),
        ([ASKED, calling(call(), call(id="b")), result(), TOLD], "Line 9, message 4: tool call b has no result before this message."),
        ([ASKED, calling(call()), result()], "Line 9 ends with a tool's result. Every chat must end with an answer."),
        ([ASKED, calling(call()), result(), ASKED, TOLD], "Line 9, message 4: expected assistant after tool."),
        ([calling(call()), result(), TOLD], "Line 9, message 1: expected user at the beginning, found assistant."),
        ([ASKED, calling(call(arguments="{city: Rome}"))], "Line 9, message 2: the arguments of get_weather are not JSON."),
        ([ASKED, calling(call(arguments="[1]"))], "Line 9, message 2: the arguments of get_weather must be an object, found a list."),
        ([ASKED, calling(call(arguments=7))], "Line 9, message 2: the arguments of get_weather must be an object, found number."),
        (
            [ASKED, calling(call(arguments='{"a":' + "[" * 64 + "]" * 64 + "}"))],
            "Line 9, message 2: nested deeper than 64.",
        ),
        ([ASKED, calling(call(name=""))], "Line 9, message 2: a tool call must be an object with a name and arguments."),
        ([ASKED, calling(call(name="x" * 201))], "Line 9, message 2: a tool call must be an object with a name and arguments."),
        ([ASKED, calling(*[call(id=str(n)) for n in range(101)])], "Line 9, message 2: more than 100 tool calls."),
        (
            [ASKED, calling(call()), {**result(), "content": {"degrees": 21}}, TOLD],
            "Line 9, message 3: content must be text, found an object.",
        ),
        ([ASKED, {"role": "function_call", "content": "get_weather(Rome)"}], "Line 9, message 2: the tool call is not JSON."),
    ],
)
def test_calls_and_results_that_do_not_belong_together_are_refused_with_their_place(messages: list[Any], sentence: str) -> None:
    with pytest.raises(Unusable) as refused:
        Converter(detect([{"messages": [ASKED, TOLD]}])).row({"messages": messages})
    assert refused.value.sentence("Line 9") == sentence


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        ("{", "Line 9: tools must be a list of functions, found text."),
        (7, "Line 9: tools must be a list of functions, found number."),
        ([7], "Line 9: tool 1 must be an object with a name, found number."),
        ([WEATHER, {"type": "function"}], "Line 9: tool 2 has no name."),
        ([WEATHER] * 201, "Line 9: tools has more than 200 functions."),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, sentence: str) -> None:
    with pytest.raises(Unusable) as refused:
        Converter(detect([OPENAI])).row({**OPENAI, "tools": tools})
    assert refused.value.sentence("Line 9") == sentence


def test_a_conversation_of_nothing_but_calls_has_an_id_for_each() -> None:
    turn = [{"from": "function_call", "value": '[{"name":"f"}]'}, {"from": "observation", "value": ""}]
    columns = {"conversations": [{"from": "human", "value": "Go."}, *turn * 2000, {"from": "gpt", "value": "Gone."}]}
    found = Converter(detect([columns])).row(columns)["messages"]
    assert len({call["id"] for message in found for call in message.get("tool_calls", ())}) == 2000


def test_no_tools_are_no_tools() -> None:
    for nothing in (None, [], "", "[]"):
        assert Converter(detect([OPENAI])).row({"messages": [ASKED, TOLD], "tools": nothing}) == {"messages": [ASKED, TOLD]}


def test_a_call_of_an_unlisted_tool_is_told_and_kept() -> None:
    converter = Converter(detect([OPENAI]))
    converter.row({**OPENAI, "tools": [{"name": "another"}]})
    assert converter.passed_over["A tool call names none of the row's tools"] == 1


def test_a_column_called_tools_that_holds_none_is_left_out() -> None:
    columns = {"instruction": "Hang the picture.", "output": "Use a nail.", "tools": "hammer, nail"}
    assert detect([columns]).mapping == {"prompt": "instruction", "completion": "output"}


def test_a_nul_hidden_in_arguments_is_refused(write: Write, import_file: Import, refusals: Callable[[], list[dict[str, Any]]]) -> None:
    hidden = {"messages": [ASKED, calling(call(arguments='{"city": "Ro\\u0000me"}'))]}
    import_file(write("calls.jsonl", [OPENAI, hidden]))
    assert [row["reason"] for row in refusals()] == ["Line 2: contains a NUL character."]


def test_a_run_is_told_of_tools_and_thumbs_and_refused_where_its_base_has_no_calls() -> None:
    facts = {"shape": "chat", "rows": 40, "split": {"train": 36, "validation": 4}, "statistics": {"forms": {"tools": 7}}}
    data = DatasetVersion(dataset=Dataset(name="Calls"), number=1, facts=facts).dataset_facts(None)
    assert (data.tools, data.unpaired) == (7, 0)
    for takes, found in [(False, True), (True, False), (None, False)]:
        base = ModelFacts.model_validate(MODEL_FACTS | {"takes_tools": takes})
        sentences = [issue.message for issue in row_issues(TrainConfig(), base, data) if issue.level == "error"]
        assert sentences == ["This model's template has no tool calls. Choose another base model: 7 rows have some."] * found
    facts = facts | {"shape": "preference", "statistics": {"forms": {"liked": 25, "disliked": 5}}}
    data = DatasetVersion(dataset=Dataset(name="Thumbs"), number=1, facts=facts).dataset_facts(None)
    assert (data.unpaired, data.liked, data.tools) == (30, 25, 0)


def test_a_typed_row_is_looked_through_for_nul_as_a_file_is() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Ro\0me"}}}
    row = {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [WEATHER]}
    with pytest.raises(Unusable, match="contains a NUL character"):
        accepted(row, "chat")
