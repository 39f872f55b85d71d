"""Requests that no page of ours sends: whatever they hold, the answer is a page or a refusal, never a bug."""

import json

import pytest
from django.db import connection
from django.http import parse_cookie
from django.test import Client as Browser
from django.urls import reverse

from studio.workspaces.middleware import member_by_cookie
from studio.workspaces.policy import ROUTES
from tests.workspaces.test_policy import OTHER_PARTS, PAGE_OBJECTS

QUERIES = [
    "after=99999999999999999999999&split=%00&kind=x&status=' OR 1=1&client=%ff&part=live&page=-1",
    "after=-1&artifact=%00&base_model=x&plugin=../../etc&project=x",
    "q=x%00y&kind=%00&verb=%00&object=%00&stage=%00&status=%00&by=%00&row=%00&base=%00&format=%00&purpose=%00&answers=%00",
    "client=%00&project=%00&dataset=%00&release=%00&from=%00&part=%00&person=%00&artifact=%00&since=%00&month=%00&change=%00",
    "after=²&after=x&split=train&split[]=1&" + "&".join(f"set_x{number}=1" for number in range(100)),
]
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=X"
BODIES = [
    (FORM, b"name=%00&scopes=%00&quantization=%00&source=%00&plugin=%00&set_seed=%00&login=%00&password=%00"),
    (FORM, b"name=" + b"x" * 10_000 + b"&source=hub:" + b"a/" * 5000 + b"&quantization=../x&validation_percent=1e999&discard=2"),
    (FORM, b"name=\xff\xfe&validation_percent=NaN&set_learning_rate=nan&set_max_steps=1e400&set_batch_size=" + b"9" * 5000),
    (FORM, b"&".join(b"a%d=1" % number for number in range(600))),
    (MULTIPART, b"--X\r\nnot a part"),
    (MULTIPART, b'--X\r\nContent-Disposition: form-data; name="file"; filename="../../\x00x"\r\n\r\nx\r\n--X--\r\n'),
    (MULTIPART, b'--X\r\nContent-Disposition: form-data; name="name"\r\n\r\n\x00\r\n--X--\r\n'),
    ("application/json", b"[" * 100_000),
    ("application/json", b'{"target": {}, "messages": 7, "max_tokens": "x", "temperature": 1e999}'),
    ("application/json", json.dumps({"target": "adapter:\x00", "messages": [{"role": "user", "content": "\ud800"}]}).encode()),
    ("application/json", b'{"target": "base:1", "messages": [], "max_tokens": 1e999}'),
    ("text/plain", b"\x00" * 1000),
]


@pytest.fixture
def visitor(acme, slot):
    """The owner, who may do everything; a bug is an answer 500 to them."""
    opened = Browser(raise_request_exception=False)
    opened.force_login(acme.owner.user)
    with connection.execute_wrapper(without_zeros):
        yield opened


def without_zeros(execute, sql, params, many, context):
    """PostgreSQL takes no zero byte in a text, SQLite does."""
    for row in params if many else [params]:
        if any("\x00" in each for each in row or () if isinstance(each, str)):
            raise ValueError(f"A zero byte in {sql}")
    return execute(sql, params, many, context)


def addresses(acme, method):
    for name, methods in ROUTES.items():
        if method not in methods or name.startswith("api") or name in ("logout", "setup"):
            continue
        what, parts = PAGE_OBJECTS.get(name), OTHER_PARTS.get(name, {})
        if what:
            thing = acme.owner.keys.first() if what == "key" else acme.version.dataset if what == "dataset" else getattr(acme, what)
            parts = parts | {"pk": thing.pk}
        yield reverse(name, kwargs=parts)


@pytest.mark.parametrize("query", QUERIES)
def test_an_odd_query_is_answered(acme, visitor, query):
    for path in addresses(acme, "GET"):
        for headers in ({}, {"HX-Request": "true"}):
            status = visitor.get(f"{path}?{query}", headers=headers).status_code
            assert status < 500, f"{path}: {status}"


@pytest.mark.parametrize(("kind", "body"), BODIES)
def test_an_odd_body_is_answered(acme, visitor, kind, body):
    for path in addresses(acme, "POST"):
        more = f"?project={acme.project.pk}&client={acme.client.pk}"
        status = visitor.generic("POST", path + more, body, content_type=kind).status_code
        assert status < 500, f"{path}: {status}"


@pytest.mark.parametrize("key", ['"\\000\\000"', '"' + "\\000" * 32 + '"', "A" * 32, "x" * 33, "x" * 5000, "x" * 31 + "é", '"a; b=c"'])
def test_a_cookie_that_holds_no_session_is_nobodys(acme, key):
    stranger = Browser(raise_request_exception=False)
    with connection.execute_wrapper(without_zeros):
        for path in ("/", "/login/", f"/runs/{acme.run.pk}/"):
            assert stranger.get(path, headers={"Cookie": f"session={key}"}).status_code in (200, 302)
        assert member_by_cookie(parse_cookie(f"session={key}")["session"]) is None  # for sockets and uploads


def test_a_form_that_is_too_large_is_refused(acme, visitor):
    assert visitor.post("/clients/new/", {"name": "x" * (2 << 20)}).status_code == 400


@pytest.mark.parametrize("folder", ["~nobody-here/model", "/" + "a" * 280, "/x" * 4000, "relative", "/etc/hostname"])
def test_a_folder_that_cannot_be_is_no_folder(acme, visitor, folder):
    answer = visitor.post("/base-models/new/", {"source": f"path:{folder}"})
    assert answer.status_code == 422
    assert "There is no folder" in answer.content.decode()
