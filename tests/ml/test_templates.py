"""Under the chat template of each model family, exactly the answers and the ends of their turns are learnt; the rest is refused aloud."""

import copy
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from studio.errors import UserError
from studio.ml.tokens import both_answers, encode_row
from studio.ml.toolmessages import takes_tools

TEMPLATES = Path(__file__).parent / "templates"
NO_TOOLS = "This model's template has no tool calls. Choose another base model, or leave out the rows with tools."


@dataclass(frozen=True)
class Family:
    """What a family's tokenizer has, and how its template ends a turn."""

    name: str
    end: str
    special: tuple[str, ...]
    eos: str
    bos: str = ""
    pieces: bool = False
    """True where words are told by a mark for the space before them, as SentencePiece does."""
    system: bool = True
    tools: bool = False


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
PHI3 = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
FAMILIES = {
    family.name: family
    for family in (
        Family("smollm2", "<|im_end|>", CHATML, "<|im_end|>", "<|im_start|>"),
        Family("smollm3", "<|im_end|>", CHATML, "<|im_end|>", tools=True),
        Family("llama3", "<|eot_id|>", LLAMA, "<|eot_id|>", "<|begin_of_text|>"),
        Family("llama3.1", "<|eot_id|>", LLAMA, "<|eot_id|>", "<|begin_of_text|>", tools=True),
        Family("qwen2.5", "<|im_end|>", CHATML, "<|im_end|>", tools=True),
        Family("qwen3", "<|im_end|>", CHATML, "<|im_end|>", tools=True),
        Family("gemma2", "<end_of_turn>", GEMMA, "<eos>", "<bos>", pieces=True, system=False),
        Family("gemma3", "<end_of_turn>", GEMMA, "<eos>", "<bos>", pieces=True),
        Family("mistral-v3", "</s>", (*MISTRAL, "[/TOOL_RESULTS]"), "</s>", "<s>", pieces=True, system=False, tools=True),
        Family("mistral-tekken", "</s>", (*MISTRAL, "[/TOOL_RESULTS]"), "</s>", "<s>", system=False, tools=True),
        Family("phi3", "<|end|>", PHI3, "<|endoftext|>", "<s>", pieces=True),
        Family("phi4", "<|im_end|>", (*CHATML, "<|im_sep|>"), "<|im_end|>", "<|endoftext|>"),
    )
}
EVERY = pytest.mark.parametrize("name", FAMILIES)
WITH_TOOLS = pytest.mark.parametrize("name", [family.name for family in FAMILIES.values() if family.tools])

ASKED = {"role": "user", "content": "What is the capital of France?"}
ANSWERED = {"role": "assistant", "content": "The capital is Paris, a city of two million."}
AGAIN = {"role": "user", "content": "And of Italy?"}
ANSWERED_AGAIN = {"role": "assistant", "content": "Rome."}
BRIEFED = {"role": "system", "content": "Answer in one sentence."}
TURNS = [ASKED, ANSWERED, AGAIN, ANSWERED_AGAIN]
CORPUS = [
    "What is the capital of France? The capital is Paris, a city of two million. And of Italy? Rome. Answer in one sentence.",
    "user assistant system model You are a helpful assistant. Knowledge Cutoff Date. Today Date. Reasoning Mode.",
    '{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {}}}',
    "<think>\n\n</think>\n\n<tool_call>\n</tool_call> <tool_response>",
]


@cache
def tokenizer_of(name: str) -> Any:
    """A small tokenizer with the family's control tokens, its way of telling words and its template."""
    family = FAMILIES[name]
    if family.pieces:
        backend = Tokenizer(models.BPE(unk_token=family.special[0], byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(prepend_scheme="never", split=False), pre_tokenizers.Split(Regex("\n+|▁?[^▁\n]+|▁"), "isolated")]
        )
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        extra, alphabet = [f"<0x{byte:02X}>" for byte in range(256)], [chr(letter) for letter in range(32, 127)] + ["▁", "\n"]
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        extra, alphabet = [], sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[*family.special, *extra], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 4, trainer)
    named = {"eos_token": family.eos, "pad_token": family.eos} | ({"bos_token": family.bos} if family.bos else {})
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def learnt(name: str, row: dict[str, Any], **how: Any) -> list[str]:
    """Each run of tokens that is learnt, as text; the whole is what the template writes, token by token."""
    tokenizer = tokenizer_of(name)
    encoded = encode_row(tokenizer, row, max_length=None, **how)
    runs = itertools.groupby(zip(encoded.ids, encoded.supervised, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([number for number, _ in run]) for is_learnt, run in runs if is_learnt]


def whole(name: str, row: dict[str, Any], **options: Any) -> str:
    return str(tokenizer_of(name).apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False, **options))


def expected(name: str, *answers: str) -> list[str]:
    end = FAMILIES[name].end
    return [f"{answer}{end}" for answer in answers]


def said(found: list[str]) -> list[str]:
    """Without the space that belongs to an answer's first token, and without the empty thought before it."""
    return [text.removeprefix("<think>\n\n</think>\n\n").lstrip(" ") for text in found]


@EVERY
def test_exactly_the_answer_and_the_end_of_its_turn_are_learnt(name: str) -> None:
    assert said(learnt(name, {"messages": [ASKED, ANSWERED]})) == expected(name, ANSWERED["content"])


@EVERY
def test_every_answer_of_a_longer_chat_is_learnt(name: str) -> None:
    assert said(learnt(name, {"messages": TURNS})) == expected(name, ANSWERED["content"], ANSWERED_AGAIN["content"])


@EVERY
def test_only_the_last_answer_is_learnt_where_that_is_asked_for(name: str) -> None:
    assert said(learnt(name, {"messages": TURNS}, last_answer=True)) == expected(name, ANSWERED_AGAIN["content"])


@EVERY
def test_the_ids_are_those_of_the_template_as_a_whole(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for messages in ([ASKED, ANSWERED], TURNS):
        ids = encode_row(tokenizer, {"messages": messages}, max_length=None).ids
        assert ids == tokenizer.backend_tokenizer.encode(whole(name, {"messages": messages}), add_special_tokens=False).ids


@EVERY
def test_the_prompt_that_asks_for_an_answer_is_not_learnt(name: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = encode_row(tokenizer, {"messages": [ASKED, ANSWERED]}, max_length=None)
    asking = tokenizer.backend_tokenizer.encode(
        whole(name, {"messages": [ASKED]}, add_generation_prompt=True), add_special_tokens=False
    ).ids
    assert encoded.ids[: len(asking)] == asking
    assert not any(encoded.supervised[: len(asking)])
    assert encoded.supervised[len(asking)]


@pytest.mark.parametrize("name", [family.name for family in FAMILIES.values() if family.system])
def test_a_system_message_is_read_and_not_learnt(name: str) -> None:
    row = {"messages": [BRIEFED, *TURNS]}
    assert BRIEFED["content"] in tokenizer_of(name).decode(encode_row(tokenizer_of(name), row, max_length=None).ids)
    assert said(learnt(name, row)) == expected(name, ANSWERED["content"], ANSWERED_AGAIN["content"])


def test_a_family_without_system_messages_refuses_them_with_its_reason() -> None:
    with pytest.raises(UserError) as refused:
        learnt("gemma2", {"messages": [BRIEFED, ASKED, ANSWERED]})
    assert refused.value.message == (
        "The model's chat template refuses a row with the roles system, user, assistant: System role not supported. "
        "Change the row or choose another model."
    )


@pytest.mark.parametrize("name", ["mistral-v3", "mistral-tekken"])
def test_a_system_message_that_a_template_drops_beside_an_answer_is_no_silent_loss(name: str) -> None:
    with pytest.raises(UserError) as refused:
        learnt(name, {"messages": [BRIEFED, ASKED, ANSWERED]})
    assert refused.value.message == (
        "The model's chat template leaves out message 1 (system) of such a row, so the model would learn without it. "
        "Put its text into the question before the answer, or choose another model."
    )


@EVERY
def test_control_tokens_in_what_people_wrote_end_no_turn(name: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    written = f"{family.end} is how a turn ends"
    row = {"messages": [{"role": "user", "content": written}, {"role": "assistant", "content": written}]}
    plain = {"messages": [{"role": "user", "content": "is how a turn ends"}, {"role": "assistant", "content": "is how a turn ends"}]}
    end = tokenizer.convert_tokens_to_ids(family.end)
    assert encode_row(tokenizer, row, max_length=None).ids.count(end) == encode_row(tokenizer, plain, max_length=None).ids.count(end)


# Thinking


def test_the_thinking_of_a_last_answer_is_learnt_with_it() -> None:
    thought = {"role": "assistant", "content": "<think>\nA city in Italy.\n</think>\n\nRome."}
    assert learnt("qwen3", {"messages": [ASKED, thought]}) == [f"{thought['content']}<|im_end|>"]
    assert learnt("qwen3", {"messages": [ASKED, ANSWERED, AGAIN, thought]}) == [
        f"{ANSWERED['content']}<|im_end|>",
        f"{thought['content']}<|im_end|>",
    ]


def test_a_template_that_takes_the_thinking_out_of_earlier_answers_says_so() -> None:
    thought = {"role": "assistant", "content": "<think>\nA city in France.\n</think>\n\nParis."}
    row = {"messages": [ASKED, thought, AGAIN, ANSWERED_AGAIN]}
    with pytest.raises(UserError) as refused:
        learnt("qwen3", row)
    assert refused.value.message == (
        "The model's chat template rewrites earlier messages: it leaves the thinking out of message 2, so that answer would be learnt "
        "without it. Learn from the last answer alone, or use rows with a single answer."
    )
    assert learnt("qwen3", row, last_answer=True) == ["<think>\n\n</think>\n\nRome.<|im_end|>"]
    row["messages"][1] = {**thought, "weight": 0}
    assert said(learnt("qwen3", row)) == ["Rome.<|im_end|>"]


def test_an_answer_without_thinking_is_learnt_behind_the_prompt_that_says_so() -> None:
    quiet = {"role": "system", "content": "Be brief. /no_think"}
    assert learnt("smollm3", {"messages": [quiet, ASKED, ANSWERED]}) == [f"{ANSWERED['content']}<|im_end|>"]


# Tools

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
}
RESULT = {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "call00001", "name": "get_weather"}
TOLD = {"role": "assistant", "content": "It has 21 degrees."}
ROW = {"messages": [ASKED, CALLED, RESULT, TOLD], "tools": TOOLS}
CALLS = {
    "smollm3": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
    "llama3.1": '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>',
    "qwen2.5": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
    "qwen3": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
    "mistral-v3": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "call00001"}]</s>',
    "mistral-tekken": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "call00001"}]</s>',
}


@WITH_TOOLS
def test_a_tool_call_is_learnt_and_what_the_tool_gave_back_is_only_read(name: str) -> None:
    assert said(learnt(name, ROW)) == [CALLS[name], *expected(name, TOLD["content"])]
    read = tokenizer_of(name).decode(encode_row(tokenizer_of(name), ROW, max_length=None).ids)
    assert "The weather of a city" in read and "degrees" in read


@WITH_TOOLS
def test_a_row_may_end_with_a_tool_call(name: str) -> None:
    assert said(learnt(name, {"messages": [ASKED, CALLED], "tools": TOOLS})) == [CALLS[name]]


@WITH_TOOLS
def test_calls_in_the_middle_of_a_longer_chat_are_learnt_too(name: str) -> None:
    row = {"messages": [ASKED, CALLED, RESULT, TOLD, AGAIN, ANSWERED_AGAIN], "tools": TOOLS}
    assert said(learnt(name, row)) == [CALLS[name], *expected(name, TOLD["content"], ANSWERED_AGAIN["content"])]


@WITH_TOOLS
def test_an_answer_where_tools_could_have_been_called_is_learnt_alone(name: str) -> None:
    assert said(learnt(name, {"messages": TURNS, "tools": TOOLS})) == expected(name, ANSWERED["content"], ANSWERED_AGAIN["content"])


@pytest.mark.parametrize("name", ["llama3.1", "qwen2.5", "qwen3", "mistral-v3", "mistral-tekken"])
def test_the_ids_of_a_row_with_tools_are_those_of_the_template_as_a_whole(name: str) -> None:
    ids = encode_row(tokenizer_of(name), ROW, max_length=None).ids
    assert ids == tokenizer_of(name).backend_tokenizer.encode(whole(name, ROW), add_special_tokens=False).ids


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "mistral-v3", "mistral-tekken", "smollm3"])
def test_several_calls_at_once_are_learnt_together(name: str) -> None:
    row = copy.deepcopy(ROW)
    second = copy.deepcopy(CALLED["tool_calls"][0]) | {"id": "call00002"}  # type: ignore[index]
    row["messages"][1]["tool_calls"].append(second)  # type: ignore[index]
    row["messages"].insert(3, {**RESULT, "tool_call_id": "call00002"})
    called, told = learnt(name, row)
    assert called.count("get_weather") == 2 and called.endswith(FAMILIES[name].end) and "degrees" not in called
    assert said([told]) == expected(name, TOLD["content"])


def test_a_family_that_takes_one_call_at_once_says_so() -> None:
    row = copy.deepcopy(ROW)
    row["messages"][1]["tool_calls"] *= 2  # type: ignore[index]
    with pytest.raises(UserError, match="This model only supports single tool-calls at once!"):
        learnt("llama3.1", row)


def test_ids_that_a_family_does_not_take_are_written_as_it_takes_them() -> None:
    row = copy.deepcopy(ROW)
    row["messages"][1]["tool_calls"][0]["id"] = row["messages"][2]["tool_call_id"] = "call_8f3a-longer"  # type: ignore[index]
    called, _ = learnt("mistral-tekken", row)
    given = called.split('"id": "')[1].split('"')[0]
    assert len(given) == 9 and given.isalnum()
    assert f'"call_id": "{given}"' in tokenizer_of("mistral-tekken").decode(
        encode_row(tokenizer_of("mistral-tekken"), row, max_length=None).ids
    )


@pytest.mark.parametrize("name", [family.name for family in FAMILIES.values() if not family.tools])
@pytest.mark.parametrize("row", [ROW, {"messages": [ASKED, ANSWERED], "tools": TOOLS}, {"messages": ROW["messages"]}])
def test_a_template_without_tools_refuses_rows_that_have_some(name: str, row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        learnt(name, row)
    assert refused.value.message == NO_TOOLS


def test_what_is_said_beside_a_call_is_learnt_or_missed_aloud() -> None:
    row = copy.deepcopy(ROW)
    row["messages"][1]["content"] = "Let me look."  # type: ignore[index]
    assert said(learnt("qwen2.5", row))[0] == "Let me look.\n" + CALLS["qwen2.5"]
    with pytest.raises(UserError, match=r"leaves out what the assistant says beside a tool call \(message 2\)"):
        learnt("llama3.1", row)


@pytest.mark.parametrize("name", ["qwen2.5", "llama3.1", "mistral-tekken"])
def test_control_tokens_in_arguments_and_tools_are_read_as_text(name: str) -> None:
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    row = copy.deepcopy(ROW)
    row["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": f"Paris{family.end}", family.end: 1}  # type: ignore[index]
    row["tools"][0]["function"]["description"] = f"The weather {family.end} of a city"  # type: ignore[index]
    end = tokenizer.convert_tokens_to_ids(family.end)
    encoded = encode_row(tokenizer, row, max_length=None)
    assert encoded.ids.count(end) == encode_row(tokenizer, ROW, max_length=None).ids.count(end)
    assert learnt(name, row)[0].count(family.end) == 3


@WITH_TOOLS
def test_a_pair_may_be_of_a_call_and_an_answer(name: str) -> None:
    row = {"prompt": [ASKED], "chosen": [CALLED], "rejected": [TOLD], "tools": TOOLS}
    better, worse = both_answers(row)
    assert said(learnt(name, better)) == [CALLS[name]]
    assert said(learnt(name, worse)) == expected(name, TOLD["content"])


def test_thinking_before_a_call_is_learnt_with_it() -> None:
    row = copy.deepcopy(ROW)
    row["messages"][1]["content"] = "<think>\nI need the weather.\n</think>\n\n"  # type: ignore[index]
    assert learnt("qwen3", row)[0] == "<think>\nI need the weather.\n</think>\n\n" + CALLS["qwen3"]


# Templates that cannot mark the answer


def test_a_template_that_shuffles_what_was_said_is_an_error_with_the_reason() -> None:
    tokenizer = copy.copy(tokenizer_of("qwen2.5"))
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + (message['content'] | reverse) + '\n' }}"
        "{% if loop.last %}{{ messages | length }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"rewrites earlier messages, so its answers cannot be told from the rest\. Choose another model"):
        encode_row(tokenizer, {"messages": TURNS}, max_length=None)


@EVERY
def test_what_a_base_model_is_told_to_take_is_what_its_template_takes(name: str) -> None:
    assert takes_tools((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")) == FAMILIES[name].tools
