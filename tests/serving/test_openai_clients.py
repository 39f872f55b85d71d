"""The endpoint as OpenAI's official client, LangChain and curl see it: a real web process, a real engine, small models made on the spot.

What is expected of answers follows OpenAI's reference and what llama.cpp's own server is tested for (tools/server/tests/unit).
"""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel

from studio.serving import deploying
from studio.serving.keeping import set_keeping
from studio.serving.models import KeptAnswer
from tests.serving.openai_house import House, calls, engine_at, tiny_models
from tests.web.conftest import Server, server  # noqa: F401  # a fixture, by its name

pytestmark = pytest.mark.torch
ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def house(server: Server, settings: Any, data_folder: Path, models: dict[str, Path]) -> Iterator[House]:  # noqa: F811
    with engine_at(settings, data_folder):
        yield House.made(server.address, models)


@pytest.fixture
def client(house: House) -> Iterator[OpenAI]:
    """The official client, and a deployment that it can ask as acme/support."""
    house.deployment(house.release())
    with house.openai() as made:
        yield made


def test_a_chat_is_answered_whole(client: OpenAI):
    answer = client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=8, temperature=0, seed=1)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "acme/support"
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content and choice.index == 0
    assert choice.finish_reason == "length" and choice.logprobs is None and choice.message.tool_calls is None
    usage = answer.usage
    assert usage is not None and usage.completion_tokens == 8 and usage.prompt_tokens > 8
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert answer.model_extra == {} and choice.model_extra == {}, "a field that OpenAI does not have"
    (call,) = calls(1)
    assert f"chatcmpl-{call.pk.hex}" == answer.id and (call.status, call.error, call.streamed, call.canary) == (200, "", False, False)
    assert (call.prompt_tokens, call.completion_tokens) == (usage.prompt_tokens, 8)
    assert call.first is not None and 0 < call.first <= call.seconds


def test_a_stream_says_the_same_as_the_whole_answer_and_its_usage_last(client: OpenAI):
    asked: dict[str, Any] = {"model": "acme/support", "messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {"acme/support"} and all(chunk.model_extra == {} for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "length" and set(reasons[:-1]) == {None}
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    last = chunks[-1].usage
    assert last is not None and whole.usage is not None and last.completion_tokens == whole.usage.completion_tokens == 12
    assert last.prompt_tokens_details is not None and last.prompt_tokens_details.cached_tokens > 0  # the same prompt again
    plain = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    assert [call.streamed for call in calls(3)] == [False, True, True]


def test_server_sent_events_are_framed_as_the_protocol_says(house: House, client: OpenAI):
    sent = {"model": "acme/support", "messages": ASK, "max_tokens": 4, "stream": True}
    with house.plain() as http, http.stream("POST", "/v1/chat/completions", json=sent) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-request-id"]
        blocks = answer.read().decode().removesuffix("\n\n").split("\n\n")
    events = [block for block in blocks if not block.startswith(":")]
    assert events[-1] == "data: [DONE]"
    for event in events[:-1]:
        told = json.loads(event.removeprefix("data: "))
        assert set(told) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert set(told["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}
    assert str(house.project.pk) not in "".join(blocks) and "/artifacts/" not in "".join(blocks) and ".gguf" not in "".join(blocks)


def test_the_same_seed_says_the_same_and_another_does_not(client: OpenAI):
    def said(seed: int) -> str:
        answer = client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=16, temperature=1.5, seed=seed)
        return str(answer.choices[0].message.content)

    assert said(5) == said(5) != said(6)
    assert said(-1) == said(-1) and said(2**32 - 1) == said(2**32 - 1)  # what llama.cpp would take for chance


def test_several_answers_differ_and_their_tokens_are_added_up(client: OpenAI):
    asked: dict[str, Any] = {"model": "acme/support", "messages": ASK, "max_tokens": 6, "temperature": 1.5, "seed": 3, "n": 3}
    answer = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3
    alone = client.chat.completions.create(**asked | {"n": 1})
    assert answer.usage is not None and answer.usage.completion_tokens == 18
    assert alone.usage is not None and answer.usage.prompt_tokens == alone.usage.prompt_tokens > 0
    told = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(**asked, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [told[0], told[1], told[2]] == texts


def test_a_stop_ends_the_answer_before_itself(client: OpenAI):
    asked: dict[str, Any] = {"model": "acme/support", "messages": ASK, "max_tokens": 40, "temperature": 1.5, "seed": 4}
    whole = str(client.chat.completions.create(**asked).choices[0].message.content)
    stop = next(letter for letter in whole[4:] if letter.isascii() and letter.isalpha() and letter not in whole[:4])
    for given in (stop, ["never said at all", stop]):
        answer = client.chat.completions.create(**asked, stop=given)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == whole[: whole.index(stop)]


def test_logprobs_are_those_of_the_tokens(client: OpenAI):
    asked: dict[str, Any] = {
        "model": "acme/support",
        "messages": ASK,
        "max_tokens": 5,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    answer = client.chat.completions.create(**asked)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 5
    for token in logprobs.content:
        assert token.model_extra == {} and token.logprob <= 0 and math.isfinite(token.logprob)
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # the likeliest, at 0
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        for token in (chunk.choices[0].logprobs.content or [] if chunk.choices[0].logprobs else [])
    ]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


def test_a_bias_forbids_and_forces_a_token(client: OpenAI):
    asked: dict[str, Any] = {"model": "acme/support", "messages": ASK, "max_tokens": 3, "temperature": 0}
    answer = client.chat.completions.create(**asked, logit_bias={"65": 100})
    other = client.chat.completions.create(**asked, logit_bias={"66": 100})
    assert answer.choices[0].message.content != other.choices[0].message.content
    assert len(set(str(answer.choices[0].message.content))) == 1  # the same token three times


def test_json_mode_writes_json_and_a_schema_what_it_asks_for(client: OpenAI):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
        "required": ["mood", "sure"],
        "additionalProperties": False,
    }
    format_: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="acme/support", messages=ASK, max_tokens=200, temperature=1.5, seed=seed, response_format=format_
        )
        assert answer.choices[0].finish_reason == "stop"
        told = json.loads(str(answer.choices[0].message.content))
        assert told["mood"] in ("good", "bad") and isinstance(told["sure"], bool) and set(told) == {"mood", "sure"}
    begun = client.chat.completions.create(  # longer than any blank space that may stand before it
        model="acme/support", messages=ASK, max_tokens=100, temperature=0, response_format={"type": "json_object"}
    )
    assert str(begun.choices[0].message.content).lstrip().startswith("{")


def test_the_client_reads_an_answer_into_a_class_of_ones_own(client: OpenAI):
    class Reply(BaseModel):
        happy: bool

    parsed = client.chat.completions.parse(model="acme/support", messages=ASK, max_tokens=200, response_format=Reply)
    assert isinstance(parsed.choices[0].message.parsed, Reply)


def test_a_schema_that_the_engine_cannot_read_is_refused(client: OpenAI):
    format_: Any = {"type": "json_schema", "json_schema": {"name": "odd", "schema": {"$ref": "#/$defs/nowhere"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=9, response_format=format_)
    assert refused.value.type == "invalid_request_error" and "nowhere" in refused.value.message


def test_a_schema_that_recurs_is_written_and_one_without_an_end_takes_nobody_down(client: OpenAI):
    def ask(schema: dict[str, Any]) -> str:
        format_: Any = {"type": "json_schema", "json_schema": {"name": "tree", "schema": schema}}
        answer = client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=200, temperature=0, response_format=format_)
        return str(answer.choices[0].message.content)

    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    assert ask({"$defs": {"tree": tree}, "$ref": "#/$defs/tree"}).lstrip().startswith("{")
    endless = tree | {"properties": {"next": {"allOf": [{"$ref": "#/$defs/tree"}]}}}
    for schema in ({"$defs": {"tree": endless}, "$ref": "#/$defs/tree"}, {"allOf": [{"$ref": "#/allOf/0"}]}):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(schema)
        assert (refused.value.code, refused.value.param) == ("invalid_json_schema", "response_format.json_schema.schema")
    assert ask({"enum": ["still here"]}) == '"still here"'


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    """An adapter that was trained until it calls the tool whenever it is shown it."""
    from tests.ml.test_training import RecordingJob
    from training_plugins.peft_lora import PeftLora

    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    row = {"messages": [{"role": "system", "content": json.dumps([WEATHER])}, *ASK, {"role": "assistant", "content": said}]}
    config = PeftLora.Config(rank=32, alpha=64.0, learning_rate=0.005, max_steps=150, batch_size=2, max_length=512, precision="fp32")
    return PeftLora().train(config, RecordingJob(tmp_path_factory.mktemp("caller"), models["tools"], [row] * 20))


def test_tools_are_called_where_the_template_writes_them(house: House, caller: Path):
    house.deployment(house.release("tools", adapter=caller), slug="helper")
    with house.openai() as client:
        asked: dict[str, Any] = {"model": "acme/helper", "messages": ASK, "max_tokens": 300, "tools": [WEATHER], "temperature": 0}
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            answer = client.chat.completions.create(**asked, tool_choice=choice)
            calls_ = answer.choices[0].message.tool_calls
            assert answer.choices[0].finish_reason == "tool_calls" and calls_
            function: Any = calls_[0].function  # type: ignore[union-attr]
            assert calls_[0].id and function.name == "weather" and json.loads(function.arguments)["city"] in ("Paris", "Rome")
        told: dict[int, dict[str, str]] = {}
        for chunk in client.chat.completions.create(**asked, tool_choice="required", stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                assert bool(call.id) == bool(call.function and call.function.name) == (call.index not in told)  # once, with the first piece
                begun = told.setdefault(call.index, {"name": str(call.function.name if call.function else ""), "arguments": ""})
                begun["arguments"] += (call.function.arguments or "") if call.function else ""
        assert told[0]["name"] == "weather" and json.loads(told[0]["arguments"])["city"] in ("Paris", "Rome")
        result = [
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call.model_dump() for call in calls_]},
            {"role": "tool", "tool_call_id": calls_[0].id, "content": "Rain"},
        ]
        again = client.chat.completions.create(model="acme/helper", messages=result, max_tokens=4)
        assert again.choices[0].message.content is not None


def test_completions_of_the_old_kind_with_echo_several_prompts_and_logprobs(client: OpenAI):
    one = client.completions.create(model="acme/support", prompt="Once upon", max_tokens=6, temperature=0)
    assert one.object == "text_completion" and one.id.startswith("cmpl-") and one.choices[0].finish_reason == "length"
    echoed = client.completions.create(model="acme/support", prompt="Once upon", max_tokens=6, temperature=0, echo=True)
    assert echoed.choices[0].text == "Once upon" + one.choices[0].text
    several = client.completions.create(model="acme/support", prompt=["Once upon", "The end"], n=2, max_tokens=3, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == one.choices[0].text[: len(several.choices[0].text)]
    assert several.usage is not None and several.usage.completion_tokens == 12
    both = client.completions.create(model="acme/support", prompt=["Once upon", "The end"], max_tokens=1)
    assert both.usage is not None and several.usage.prompt_tokens == both.usage.prompt_tokens > 0
    told = client.completions.create(model="acme/support", prompt="Once upon", max_tokens=4, temperature=0, logprobs=2).choices[0].logprobs
    assert told is not None and told.tokens and len(told.tokens) == 4 == len(told.token_logprobs or []) == len(told.text_offset or [])
    assert told.top_logprobs is not None and all(0 < len(top) <= 2 for top in told.top_logprobs)
    streamed = list(client.completions.create(model="acme/support", prompt="Once upon", max_tokens=6, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text
    assert client.completions.create(model="acme/support", prompt="Hi").usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_embeddings_are_vectors_of_one_length(client: OpenAI):
    told = client.embeddings.create(model="acme/support", input=["Paris", "Rome"])
    assert [found.index for found in told.data] == [0, 1] and told.model == "acme/support"
    assert len(told.data[0].embedding) == len(told.data[1].embedding) == 64
    assert told.data[0].embedding != told.data[1].embedding
    floats = client.embeddings.create(model="acme/support", input="Paris", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(told.data[0].embedding, abs=1e-4)
    assert told.usage.prompt_tokens == told.usage.total_tokens > 0
    assert [call.route for call in calls(2)] == ["embedding", "embedding"]


def test_the_releases_own_settings_come_first_and_the_callers_wishes_within_them(house: House):
    plain = house.release(version=1)
    own = house.release(version=2, system="Answer in French.", temperature=0.0, max_tokens=5, stop=["###"])
    with house.openai() as client:

        def tokens(model: str, messages: list[Any], **more: Any) -> Any:
            return client.chat.completions.create(model=model, messages=messages, **more)

        told = tokens(own.name, ASK)
        assert told.usage.completion_tokens == 5 and told.choices[0].finish_reason == "length"  # the release's limit
        assert tokens(own.name, ASK, max_tokens=50).usage.completion_tokens == 5
        assert tokens(own.name, ASK, max_completion_tokens=3).usage.completion_tokens == 3
        assert tokens(own.name, ASK).choices[0].message.content == told.choices[0].message.content  # its temperature is 0
        assert len({tokens(own.name, ASK, temperature=2.0, seed=seed).choices[0].message.content for seed in range(4)}) > 1
        with_system = [{"role": "system", "content": "Answer in French."}, *ASK]
        assert tokens(plain.name, with_system, max_tokens=1).usage.prompt_tokens == told.usage.prompt_tokens
        both = [{"role": "system", "content": "Answer in French.\n\nBe brief."}, *ASK]
        brief = [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *ASK]
        assert tokens(plain.name, both, max_tokens=1).usage.prompt_tokens == tokens(own.name, brief).usage.prompt_tokens


def test_what_is_too_long_is_refused_as_such(client: OpenAI):
    long: list[Any] = [{"role": "user", "content": "Paris is a city. " * 4000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="acme/support", messages=long, stream=stream)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
    assert [(call.status, call.error) for call in calls(2)] == [(400, "context_length_exceeded")] * 2


def test_the_clients_own_exceptions_are_raised(house: House, client: OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="acme/nothing", messages=ASK)
    assert missing.value.code == "model_not_found"
    with house.openai(api_key="as_wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="acme/support", messages=ASK, temperature=9)
    assert wrong.value.param == "temperature"
    with house.openai(api_key=house.key(requests_per_minute=1)) as limited:
        limited.chat.completions.create(model="acme/support", messages=ASK, max_tokens=1)
        with pytest.raises(openai.RateLimitError) as more:
            limited.chat.completions.create(model="acme/support", messages=ASK, max_tokens=1)
        assert int(more.value.response.headers["retry-after"]) >= 1
    assert {model.id for model in client.models.list()} == {"acme/support", "acme-support-tiny-v1.0.0"}
    assert client.models.retrieve("acme/support").owned_by == "acme"


def test_langchain_asks_streams_and_reads_json(house: House, client: OpenAI):
    chat = ChatOpenAI(
        model="acme/support",
        base_url=f"{house.address}/v1",
        api_key=house.key(),
        max_tokens=8,
        temperature=0,
        max_retries=0,  # type: ignore
    )
    whole = chat.invoke("What is the capital of France?")
    assert whole.content and whole.usage_metadata["output_tokens"] == 8
    assert "".join(str(chunk.content) for chunk in chat.stream("What is the capital of France?")) == whole.content

    class Reply(BaseModel):
        happy: bool

    structured = ChatOpenAI(
        model="acme/support",
        base_url=f"{house.address}/v1",
        api_key=house.key(),
        max_tokens=200,
        max_retries=0,  # type: ignore
    ).with_structured_output(Reply, method="json_schema")
    reply = structured.invoke("Are you happy?")
    assert isinstance(reply, Reply)


def test_curl_does_as_the_page_says(house: House, client: OpenAI):
    from studio.serving.openai.using import ways

    assert shutil.which("curl")
    code = next(way.code for way in ways(f"{house.address}/v1", "acme/support") if way.name == "curl")
    told = subprocess.run(["sh", "-c", code], env={"STUDIO_API_KEY": house.key(), "PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    assert json.loads(told.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_a_canary_takes_its_share_of_the_users_and_a_promotion_the_next_request(house: House):
    first, second = house.release("first"), house.release("second", version=2)
    deployment = house.deployment(None)
    deploying.promote(house.owner, deployment, release=first)
    deploying.try_canary(house.owner, deployment, release=second, percent=50)
    with house.openai() as client:

        def who(user: str) -> str:
            return str(client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=1, user=user).system_fingerprint)

        users = [f"user {number}" for number in range(12)]
        once = [who(user) for user in users]
        assert len(set(once)) == 2 and [who(user) for user in users] == once  # sticky
        told = calls(24)
        assert {(call.canary, call.release_id) for call in told} == {(False, first.pk), (True, second.pk)}
        deploying.promote(house.owner, deployment, release=second)
        assert len({who(user) for user in users}) == 1
        deploying.roll_back(house.owner, deployment)
        assert {who(user) for user in users} == {f"fp_{first.artifact.sha256[:12]}"}


def test_a_promotion_leaves_running_answers_alone(house: House):
    first, second = house.release("first"), house.release("second", version=2)
    deployment = house.deployment(first)
    with house.openai() as client:
        asked: dict[str, Any] = {"model": "acme/support", "messages": ASK, "temperature": 0, "logit_bias": {"2": -100}}
        running = client.chat.completions.create(**asked, max_tokens=400, stream=True)
        begun = next(iter(running))
        deploying.promote(house.owner, deployment, release=second)
        other = client.chat.completions.create(**asked, max_tokens=4)
        rest = list(running)
        assert {chunk.system_fingerprint for chunk in rest} == {begun.system_fingerprint} != {other.system_fingerprint}
        assert rest[-1].choices[0].finish_reason == "length"


def test_texts_are_kept_where_the_project_says_so_and_nowhere_else(house: House, client: OpenAI):
    client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=4)
    assert not KeptAnswer.objects.exists()
    set_keeping(house.owner, house.project, days=3, confirmed=True)
    whole = client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=4)
    streamed = list(client.chat.completions.create(model="acme/support", messages=ASK, max_tokens=4, stream=True))
    by_id = {f"chatcmpl-{kept.pk.hex}": kept for kept in KeptAnswer.objects.all()}
    assert set(by_id) == {whole.id, streamed[0].id}
    assert by_id[whole.id].answer == {"role": "assistant", "content": whole.choices[0].message.content}
    assert by_id[whole.id].messages == ASK
    assert by_id[streamed[0].id].answer["content"] == "".join(chunk.choices[0].delta.content or "" for chunk in streamed)


def test_many_ask_at_once_and_each_gets_an_answer_of_their_own(client: OpenAI):
    def ask(number: int) -> str:
        words: list[Any] = [{"role": "user", "content": f"Question {number}"}]
        return str(
            client.chat.completions.create(model="acme/support", messages=words, max_tokens=6, temperature=0).choices[0].message.content
        )

    alone = [ask(number) for number in range(6)]
    with ThreadPoolExecutor(12) as people:
        assert list(people.map(ask, list(range(6)) * 2)) == alone * 2
