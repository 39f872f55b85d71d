"""The first owner comes in through a link that works once, or is made on the command line; before, nothing else is open."""

import json
import re
import threading
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.urls import reverse
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.workspaces.models import ApiKey, Client, Member, Project, SetupToken, User, Workspace
from studio.workspaces.policy import PUBLIC, ROUTES
from studio.workspaces.services import SETUP_HOURS, setup_url
from studio.workspaces.throttle import TRIES
from tests.fixtures import Api
from tests.workspaces.test_policy import OTHER_PARTS, patterns

FORM = {"email": "Ana@Example.com", "password": "a long enough sentence", "workspace": "Acme & Sons"}


@pytest.fixture
def link(db):
    """The path of a fresh link, as the terminal prints it."""
    return setup_url("http://127.0.0.1:8000/").removeprefix("http://127.0.0.1:8000")


def test_the_link_makes_the_first_owner_and_lets_them_in(client, link):
    assert client.get(link).status_code == 200
    answer = client.post(link, FORM)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    member = Member.objects.get()
    assert (member.user.email, member.role, member.workspace.name) == ("ana@example.com", "owner", "Acme & Sons")
    assert Client.objects.get().name == "In-house"
    assert Project.objects.get().name == "First project"
    assert "First project" in client.get("/").content.decode()
    assert set(AuditRecord.objects.values_list("verb", flat=True)) == {"workspace.create", "client.create", "project.create"}


def test_the_link_works_once(client, link):
    client.post(link, FORM)
    for again in (client.get(link), client.post(link, FORM | {"email": "eve@example.com"})):
        assert again.status_code == 404
        assert "has been set up. Sign in" in again.content.decode()
    assert User.objects.count() == 1
    assert setup_url("http://127.0.0.1:8000") is None


def test_a_link_that_was_replaced_or_is_cut_off_does_not_work(client, link):
    newer = setup_url("http://127.0.0.1:8000").removeprefix("http://127.0.0.1:8000")
    for wrong in (link, newer[:-2] + "/", "/setup/x/", f"/setup/{'A' * 43}/"):
        answer = client.post(wrong, FORM)
        assert answer.status_code == 404
        assert "python3 manage.py setup_link" in answer.content.decode()
    assert not User.objects.exists()
    assert client.post(newer, FORM).status_code == 302


def test_a_link_expires(client, link):
    SetupToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert client.get(link).status_code == 404
    assert client.post(link, FORM).status_code == 404
    assert not User.objects.exists()


def test_the_link_is_kept_as_a_hash_for_a_day(link):
    token = SetupToken.objects.get()
    assert link.split("/")[2] not in repr(vars(token))
    assert timezone.now() < token.expires_at <= timezone.now() + timedelta(hours=SETUP_HOURS)


def test_guessing_links_is_slowed_down(client, link):
    for number in range(TRIES):
        assert client.get(f"/setup/wrong{number}/").status_code == 404
    assert client.get(link).status_code == 404  # from this address, even the right one
    assert client.get(link, REMOTE_ADDR="192.0.2.7").status_code == 200


def test_where_a_request_says_it_comes_from_makes_no_difference(client, db):
    for claim in ({"X-Forwarded-For": "127.0.0.1"}, {"X-Real-IP": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}):
        assert client.get("/", headers=claim)["Location"] == "/login/?next=/"


def path_of(name, entry):
    """An address of nobody's things."""
    some = {"UUIDConverter": "6b1f6a8e-1111-4222-8333-444455556666", "IntConverter": 404}
    parts = {part: some.get(type(converter).__name__, "none") for part, converter in entry.pattern.converters.items()}
    return reverse(name, kwargs=parts | OTHER_PARTS.get(name, {}))


def test_before_the_set_up_everything_leads_to_signing_in(client, db):
    for name, entry in patterns():
        methods = ROUTES[name]
        if name.startswith("api") or PUBLIC in methods.values():
            continue
        path = path_of(name, entry)
        for method in methods:
            answer = client.generic(method, path)
            assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/login/"), f"{method} {path}"
    assert "Open the one-time link" in client.get("/login/").content.decode()
    assert Api("as_anything").get("me").status_code == 401


def test_a_link_makes_one_owner_even_for_two_who_are_fast(client, link, transactional_db):
    link = setup_url("http://127.0.0.1:8000").removeprefix("http://127.0.0.1:8000")
    together, statuses = threading.Barrier(2), []

    def post(email):
        from django.test import Client as Browser

        together.wait()
        statuses.append(Browser().post(link, FORM | {"email": email}).status_code)
        connections.close_all()

    threads = [threading.Thread(target=post, args=(f"{name}@example.com",)) for name in ("ana", "eve")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert User.objects.count() == Workspace.objects.count() == 1
    assert statuses.count(302) == 1


REFUSED = [
    ({"email": "ana"}, "Enter a valid email address."),
    ({"email": ""}, "This field is required."),
    ({"password": "short"}, "Ensure this value has at least 12 characters"),
    ({"password": "password1234"}, "This password is too common."),
    ({"email": "ana.longname@example.com", "password": "ana.longname@"}, "The password is too similar to the e-mail address."),
    ({"workspace": "  "}, "This field is required."),
    ({"workspace": "x" * 81}, "Ensure this value has at most 80 characters"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_what_is_wrong_stands_beside_its_field(client, link, change, sentence):
    answer = client.post(link, FORM | change)
    text = answer.content.decode()
    assert answer.status_code == 422
    assert sentence in text
    field = next(reversed(change))
    part = text[text.index(f'for="id_{field}"') :].split('<div class="field')[0]
    assert sentence in part
    for name in re.search(r'aria-describedby="([^"]+)"', part).group(1).split():
        assert f'id="{name}"' in part
    assert not User.objects.exists()
    assert client.post(link, FORM).status_code == 302  # the link is not used up by a try


def test_a_password_is_taken_as_it_is_typed(client, link):
    client.post(link, FORM | {"password": "  spaces on both sides  "})
    assert User.objects.get().check_password("  spaces on both sides  ")
    assert User.objects.get().password.startswith("argon2id$") or User.objects.get().password.startswith("argon2$argon2id$")


@pytest.fixture
def password(tmp_path):
    path = tmp_path / "password"
    path.write_text("a long enough sentence\n")
    return path


def set_up_by_command(password, **changes):
    options = {"email": "ana@example.com", "password_file": password, "workspace": "Acme", "api_key": "nightly"} | changes
    call_command("setup", **options)


@pytest.mark.django_db(transaction=True)
def test_the_command_prints_the_workspace_and_a_key_once(password, capsys):
    set_up_by_command(password)
    (line,) = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert made == {"workspace": str(Workspace.objects.get().pk), "api_key": made["api_key"]}
    me = Api(made["api_key"]).get("me").json()
    assert (me["role"], me["key"], me["workspace"]["name"]) == ("owner", "nightly", "Acme")
    assert User.objects.get().check_password("a long enough sentence")
    with pytest.raises(CommandError, match="set up already"):
        set_up_by_command(password, email="eve@example.com")
    with pytest.raises(CommandError, match="set up already"):
        call_command("setup_link")
    assert capsys.readouterr().out == ""
    assert ApiKey.objects.count() == User.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_command_ends_the_link(client, password):
    link = setup_url("").removeprefix("")
    set_up_by_command(password)
    assert client.get(link).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_the_command_refuses_a_weak_password_with_a_sentence(password):
    password.write_text("short\n")
    with pytest.raises(CommandError, match=r"too short.* It must contain at least 12 characters"):
        set_up_by_command(password)
    with pytest.raises(CommandError, match="This is not an e-mail address"):
        password.write_text("a long enough sentence\n")
        set_up_by_command(password, email="ana")
    assert not User.objects.exists()


def test_a_new_link_is_printed_and_works(client, db, capsys):
    call_command("setup_link", base_url="https://studio.example/")
    url = capsys.readouterr().out.strip()
    assert url.startswith("https://studio.example/setup/")
    assert client.get(url.removeprefix("https://studio.example")).status_code == 200
