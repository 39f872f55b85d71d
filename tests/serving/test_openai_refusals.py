"""What the endpoint refuses before any model is asked: in OpenAI's shape, naming the field, the same for what is nowhere and another's."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client as Browser
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studio.releases.models import Release
from studio.serving.models import Call
from studio.serving.openai.errors import Refused
from studio.serving.openai.requests import Asking, ChatRequest, CompletionRequest, EmbeddingRequest, read
from studio.serving.openai.schemas import Unfit, look_through
from studio.workspaces.services import create_client, create_project
from tests.fixtures import World, make_deployment, make_key, make_member, make_release

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


class Caller:
    """Whoever has this key, with a plain HTTP client."""

    def __init__(self, secret: str = ""):
        self.browser, self.headers = Browser(raise_request_exception=False), {"Authorization": f"Bearer {secret}"} if secret else {}

    def post(self, path: str, sent: Any, *, content_type: str = "application/json") -> Any:
        body = sent if isinstance(sent, str | bytes) else json.dumps(sent)
        return self.browser.generic("POST", path, body, content_type=content_type, headers=self.headers)

    def chat(self, model: str, **more: Any) -> Any:
        return self.post(CHAT, {"model": model, "messages": HELLO} | more)

    def get(self, path: str) -> Any:
        return self.browser.get(path, headers=self.headers)


def refusal(response: Any) -> tuple[int, str, str | None]:
    """Status, code and param of an answer that has OpenAI's shape."""
    told = response.json()
    assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}, told
    assert told["error"]["message"] and response["Content-Type"] == "application/json"
    expected = (
        "server_error" if response.status_code >= 500 else "rate_limit_error" if response.status_code == 429 else "invalid_request_error"
    )
    assert told["error"]["type"] == expected
    return response.status_code, told["error"]["code"], told["error"]["param"]


@pytest.fixture
def caller(acme: World) -> Caller:
    return Caller(make_key(acme.owner, scopes=["inference"]))


@pytest.fixture
def support(acme: World) -> str:
    """The name of a deployment at which nothing answers yet."""
    return str(make_deployment(acme.project))


@pytest.fixture
def approved(acme: World) -> Release:
    return make_release(acme.owner, acme.artifact, stage=Release.Stage.APPROVED)


def test_without_a_key_or_with_a_wrong_one_nothing_is_told(caller: Caller, support: str):
    for stranger in (Caller(), Caller("as_wrong"), Caller("sk-" + "x" * 500)):
        for response in (stranger.chat(support), stranger.get("/v1/models"), stranger.get(f"/v1/models/{support}")):
            assert refusal(response) == (401, "invalid_api_key", None)


def test_a_key_that_has_ended_is_a_wrong_one(acme: World, support: str):
    ended = Caller(make_key(acme.owner, expires_at=timezone.now() - timedelta(seconds=1)))
    assert refusal(ended.chat(support)) == (401, "invalid_api_key", None)


def test_a_key_without_the_scope_is_told_so(acme: World, support: str):
    for response in (Caller(key := make_key(acme.owner, scopes=["write"])).chat(support), Caller(key).get("/v1/models")):
        assert refusal(response) == (403, "insufficient_permissions", None)


def test_a_session_of_a_browser_opens_nothing_here(acme: World, support: str):
    browser = Browser()
    browser.force_login(acme.owner.user)
    sent = json.dumps({"model": support, "messages": HELLO})
    assert refusal(browser.post(CHAT, sent, content_type="application/json")) == (401, "invalid_api_key", None)


def test_another_address_and_another_method_are_refused_in_the_same_shape(caller: Caller):
    for path in ("/v1", "/v1/", "/v1/responses", "/v1/chat/completions/", "/v1/audio/speech"):
        assert refusal(caller.post(path, {}))[:2] == (404, "unknown_url"), path
    for method, path in (("GET", CHAT), ("PUT", CHAT), ("DELETE", "/v1/models/x"), ("POST", "/v1/models"), ("HEAD", CHAT)):
        response = caller.browser.generic(method, path, headers=caller.headers)
        assert response.status_code == 405 and response["Allow"]
        assert method == "HEAD" or refusal(response) == (405, "method_not_allowed", None)


@pytest.mark.parametrize("body", [" ", "{", "nonsense", b"\xff\xfe", '{"model": "\\ud800"}', "[" * 5000, '{"model": NaN}', "\x00"])
def test_what_is_no_json_is_refused(caller: Caller, body: Any):
    assert refusal(caller.post(CHAT, body)) == (400, "invalid_json", None)


@pytest.mark.parametrize("body", ["7", "[]", "null", '"model"'])
def test_what_is_no_object_is_refused(caller: Caller, body: str):
    assert refusal(caller.post(CHAT, body)) == (400, "invalid_type", None)


def test_what_is_sent_as_something_else_is_refused(caller: Caller, support: str):
    sent = json.dumps({"model": support, "messages": HELLO})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert refusal(caller.post(CHAT, sent, content_type=kind)) == (415, "unsupported_media_type", None)


def test_what_is_too_large_is_refused(caller: Caller, support: str):
    long = [{"role": "user", "content": "x" * (1 << 20)}]
    assert refusal(caller.post(CHAT, {"model": support, "messages": long})) == (413, "request_too_large", None)


def test_a_model_must_be_named_by_text(caller: Caller):
    assert refusal(caller.post(CHAT, {"messages": HELLO})) == (400, "missing_required_parameter", "model")
    for model in (None, 7, ["a"], {}):
        assert refusal(caller.post(CHAT, {"model": model, "messages": HELLO})) == (400, "invalid_type", "model")


def test_what_is_nowhere_another_clients_another_workspaces_and_archived_is_the_same(
    acme: World, rival: World, caller: Caller, approved: Release
):
    globex = create_client(acme.owner, name="Globex")
    other = str(make_deployment(create_project(acme.owner, client=globex, name="Other"), slug="other"))
    foreign = make_deployment(rival.project, slug="foreign")
    foreign_release = make_release(rival.owner, rival.artifact, version=(7, 0, 0), stage=Release.Stage.APPROVED)
    draft = make_release(acme.owner, acme.artifact, version=(2, 0, 0))
    away = make_deployment(acme.project, approved, slug="away")
    away.archived_at = timezone.now()
    away.save()
    narrow = Caller(make_key(acme.owner, clients=[acme.client]))
    answers = set()
    for asker, model in [
        (caller, "nowhere/support"),
        (caller, "nowhere"),
        (caller, ""),
        (caller, "/"),
        (caller, "a\x00b"),
        (caller, "é" * 5000),
        (caller, str(foreign)),
        (caller, foreign_release.name),
        (caller, draft.name),
        (caller, str(draft.pk)),
        (caller, str(away)),
        (narrow, other),
    ]:
        for path, more in ((CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": "Hi"}), ("/v1/embeddings", {"input": "Hi"})):
            response = asker.post(path, {"model": model} | more)
            assert refusal(response) == (404, "model_not_found", "model")
            answers.add(response.json()["error"]["message"].replace(model[:200], "MODEL") if model else "")
        if model and "/" not in (model[0], model[-1]) and "\x00" not in model:
            assert refusal(asker.get(f"/v1/models/{model}")) == (404, "model_not_found", "model")
    assert len(answers) == 2 and not Call.objects.exists()


def test_a_name_that_two_releases_bear_is_refused_rather_than_guessed(acme: World, caller: Caller, approved: Release):
    other = make_release(acme.owner, acme.artifact, version=(3, 0, 0), stage=Release.Stage.APPROVED)
    Release.objects.filter(pk=other.pk).update(name=approved.name)
    assert refusal(caller.chat(approved.name)) == (404, "model_not_found", "model")


def test_where_nothing_answers_yet_it_is_said_and_recorded(acme: World, caller: Caller, support: str):
    response = caller.chat(support, stream=True)
    assert refusal(response) == (404, "model_not_found", "model")
    assert "Promote a release first" in response.json()["error"]["message"]
    call = Call.objects.get()
    assert (call.status, call.error, call.route, call.streamed) == (404, "model_not_found", "chat", True)
    assert (str(call.deployment), call.release, call.client, call.key.member) == (support, None, acme.client, acme.owner)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


def formatted(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


WRONG_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "messages", "invalid_type"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": HELLO * 1001}, "messages", "invalid_value"),
    ({"messages": ["Hello"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"messages": [*HELLO, {"role": "robot", "content": "x"}]}, "messages[1].role", "invalid_value"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x", "extra": 1}]}, "messages[0].extra", "unknown_parameter"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_required_parameter"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "messages[0].content[0].type",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content[1].type",
        "invalid_value",
    ),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": -0.1}, "temperature", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ({"max_tokens": "10"}, "max_tokens", "invalid_type"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"seed": 2**70}, "seed", "invalid_type"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop[0]", "invalid_value"),
    ({"stop": 7}, "stop", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"logit_bias": {"hello": 1}}, "logit_bias.hello", "invalid_value"),
    ({"logit_bias": {"1": 200}}, "logit_bias.1", "invalid_value"),
    ({"logprobs": 3}, "logprobs", "invalid_type"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    (formatted(7), "response_format.json_schema.schema", "invalid_type"),
    (formatted(nested(40)), "response_format.json_schema.schema", "invalid_json_schema"),
    (formatted({"enum": [str(n) for n in range(3000)]}), "response_format.json_schema.schema", "invalid_json_schema"),
    (formatted({"$ref": "http://example.com/x.json"}), "response_format.json_schema.schema", "invalid_json_schema"),
    (formatted({"type": "string", "maxLength": 10**9}), "response_format.json_schema.schema", "invalid_json_schema"),
    (
        formatted({"type": "array", "maxItems": 900, "items": {"type": "array", "maxItems": 900}}),
        "response_format.json_schema.schema",
        "invalid_json_schema",
    ),
    (
        formatted({"$defs": {"a": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]}),
        "response_format.json_schema.schema",
        "invalid_json_schema",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"allOf": [{"$ref": "#/allOf/0"}]}}}]},
        "tools[0].function.parameters",
        "invalid_json_schema",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "with space"}}]}, "tools[0].function.name", "invalid_value"),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "invalid_value"),
    ({"audio": {"voice": "alloy"}}, "audio", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "invalid_value"),
    ({"functions": [{"name": "old"}]}, "functions", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"top_k": 40}, "top_k", "unknown_parameter"),
    ({"lora": [{"id": 0, "scale": 1}]}, "lora", "unknown_parameter"),
    ({"user": "x" * 600}, "user", "invalid_value"),
]


@pytest.mark.parametrize(("more", "param", "code"), WRONG_CHATS, ids=[f"{param} {code}" for _, param, code in WRONG_CHATS])
def test_a_value_that_cannot_be_used_is_refused_by_the_name_of_its_field(caller: Caller, support: str, more: Any, param: str, code: str):
    response = caller.chat(support, **more)
    assert refusal(response) == (400, code, param)
    assert param in response.json()["error"]["message"] or "'" in response.json()["error"]["message"]
    assert Call.objects.get().error == code  # the model is theirs to ask, so the attempt is counted


AGAIN = {"$ref": "#/$defs/again"}
"""In a schema that is called so: its own kind."""


def about(schema: Any) -> dict[str, Any]:
    return {"$defs": {"again": schema}, "type": "object", "properties": {"first": AGAIN}}


@pytest.mark.parametrize(
    "schema",
    [
        about(AGAIN),
        about({"anyOf": [{"type": "null"}, AGAIN]}),
        about({"oneOf": [{"allOf": [AGAIN]}]}),
        about({"$ref": "#/properties/first"}),
        about({"$ref": "#/$defs/ag%61in"}),
        about({"properties": {"next": {"allOf": [AGAIN]}}}),
        about({"items": {"allOf": [{"anyOf": [AGAIN, {"type": "null"}]}]}}),
        {"allOf": [{"$ref": "#"}]},
        {"allOf": [{"$ref": "#/allOf/00"}]},
        {"$defs": {"a~1b": {"$ref": "#/$defs/a~1b"}}, "allOf": [{"$ref": "#/$defs/a~1b"}]},
    ],
)
def test_a_schema_without_an_end_is_refused(schema: Any):
    with pytest.raises(Unfit, match="leads back to itself"):
        look_through(schema)


@pytest.mark.parametrize("ref", ["#/$defs/other", "#/", "#again", "#/properties/first/0", "#/allOf/0x", "#/allOf/-0", "#/allOf/1"])
def test_a_ref_that_leads_nowhere_is_refused(ref: str):
    with pytest.raises(Unfit, match="leads nowhere"):
        look_through(about({"$ref": ref}) | {"allOf": [{"type": "object"}]})


def test_a_schema_that_doubles_with_every_ref_is_refused():
    doubling = {f"a{n}": {"properties": {side: {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}]} for side in "lr"}} for n in range(60)}
    with pytest.raises(Unfit, match="too large"):
        look_through({"$defs": doubling | {"a60": {"type": "string"}}, "allOf": [{"$ref": "#/$defs/a0"}]})


@pytest.mark.parametrize(
    "schema",
    [
        about({"type": "object", "properties": {"next": AGAIN, "others": {"type": "array", "items": AGAIN}}}),
        about({"type": "object", "properties": {"next": {"anyOf": [AGAIN, {"type": "null"}]}}}),
        about({"type": "object", "properties": {"allOf": AGAIN}}) | {"allOf": [AGAIN]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$defs": {"a/b": {"type": "string"}}, "allOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/a~1b"}]},
    ],
)
def test_a_schema_that_recurs_through_a_property_or_items_is_read(schema: Any):
    look_through(schema)


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": [1, 2]}, "prompt[0]"),
        ("/v1/completions", {"prompt": [[1, 2]]}, "prompt[0]"),
        ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/v1/completions", {"prompt": "x", "best_of": 2}, "best_of"),
        ("/v1/completions", {"prompt": "x", "logprobs": 6}, "logprobs"),
        ("/v1/completions", {"prompt": ["x"] * 30, "n": 2}, "n"),
        ("/v1/completions", {"prompt": "x", "messages": HELLO}, "messages"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": [1, 2]}, "input[0]"),
        ("/v1/embeddings", {"input": ["x"] * 257}, "input"),
        ("/v1/embeddings", {"input": "x", "dimensions": 5}, "dimensions"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_completions_and_embeddings_are_as_strict(caller: Caller, support: str, path: str, sent: Any, param: str):
    status, _, named = refusal(caller.post(path, {"model": support} | sent))
    assert (status, named) == (400, param)


def test_tools_are_refused_where_the_template_does_not_write_them(acme: World, caller: Caller, approved: Release):
    make_deployment(acme.project, approved, slug="plain")
    model = f"{acme.client.slug}/plain"
    assert refusal(caller.chat(model, tools=[TOOL])) == (400, "unsupported_parameter", "tools")
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    said = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert refusal(caller.chat(model, messages=said)) == (400, "unsupported_parameter", "messages[1].tool_calls")
    result = [*HELLO, {"role": "tool", "content": "Rain", "tool_call_id": "1"}]
    assert refusal(caller.chat(model, messages=result)) == (400, "unsupported_parameter", "messages[1].role")


def test_where_no_engine_runs_the_caller_is_told_when_to_come_back(acme: World, caller: Caller, approved: Release, settings: Any):
    settings.ENGINE_SOCKET = str(settings.DATA_DIR / "nobody.sock")
    for more in ({}, {"stream": True}):
        response = caller.chat(approved.name, **more)
        assert refusal(response) == (503, "engine_unavailable", None)
        assert response["Retry-After"] == "5"
    assert {(call.status, call.release, call.deployment) for call in Call.objects.all()} == {(503, approved, None)}


def test_a_key_within_its_limits_is_told_how_much_is_left_and_one_beyond_when_to_come_back(acme: World, approved: Release, settings: Any):
    settings.ENGINE_SOCKET = str(settings.DATA_DIR / "nobody.sock")
    asker = Caller(make_key(acme.owner, requests_per_minute=2))
    assert [asker.chat(approved.name)["x-ratelimit-remaining-requests"] for _ in range(2)] == ["1", "0"]
    response = asker.chat(approved.name)
    assert refusal(response) == (429, "rate_limit_exceeded", None)
    assert 1 <= int(response["Retry-After"]) <= 60 and response["x-ratelimit-limit-requests"] == "2"
    assert sorted(Call.objects.values_list("status", flat=True)) == [429, 503, 503]


def test_models_are_those_that_answer_and_can_be_reached(acme: World, rival: World, caller: Caller, approved: Release, support: str):
    make_deployment(acme.project, approved, slug="live")
    make_deployment(rival.project, make_release(rival.owner, rival.artifact, stage=Release.Stage.APPROVED), slug="theirs")
    told = caller.get("/v1/models").json()
    live = f"{acme.client.slug}/live"
    assert told["object"] == "list" and [model["id"] for model in told["data"]] == [live, approved.name]
    assert set(told["data"][0]) == {"id", "object", "created", "owned_by"}
    assert caller.get(f"/v1/models/{live}").json() == told["data"][0]
    assert refusal(caller.get(f"/v1/models/{support}")) == (404, "model_not_found", "model")


def test_a_guest_is_shown_what_was_shared_with_them_and_nothing_else(acme: World, approved: Release):
    shared = make_release(acme.owner, acme.artifact, version=(5, 0, 0), stage=Release.Stage.APPROVED, shared=True)
    make_deployment(acme.project, approved, slug="live")
    guest = Caller(make_key(make_member(acme.workspace, role="guest", email="gus@acme.example", clients=[acme.client])))
    assert [model["id"] for model in guest.get("/v1/models").json()["data"]] == [shared.name]
    assert refusal(guest.chat(approved.name))[0] == 404


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def bodies(kind: type[Asking]) -> Any:
    """Bodies with the names that the endpoint knows and any value in them, so that each is really looked at."""
    message = st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), ANYTHING | st.just("user") | st.just("assistant"))
    values = ANYTHING | st.lists(message, max_size=3) | st.just(HELLO) | st.just([TOOL]) | st.just(SCHEMA)
    return st.dictionaries(st.sampled_from([*kind.model_fields, "<odd>", "x\x00"]), values)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, EmbeddingRequest])
def test_any_json_is_read_or_refused_naming_a_field(kind: type[Asking]):
    @given(bodies(kind))
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    def try_one(sent: dict[str, Any]) -> None:
        try:
            assert isinstance(read(kind, sent), kind)
        except Refused as refused:
            assert refused.status == 400 and refused.param and refused.message
            json.dumps(refused.body)

    try_one()


def test_any_json_of_a_caller_is_answered(acme: World, caller: Caller, support: str):
    @given(st.sampled_from([CHAT, "/v1/completions", "/v1/embeddings"]), bodies(ChatRequest) | ANYTHING)
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    def try_one(path: str, sent: Any) -> None:
        body = sent | {"model": support} if isinstance(sent, dict) else sent
        assert refusal(caller.post(path, json.dumps(body)))[0] in (400, 404)

    try_one()
