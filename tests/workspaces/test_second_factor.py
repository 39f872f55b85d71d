"""A second factor: codes of an app and of recovery, what slows a guesser down, and workspaces that ask for one.

Passkeys have their tests in a browser, tests/web/test_account_in_browser.py.
"""

import re
import time

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.core.cache import cache
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.workspaces.middleware import member_by_cookie
from studio.workspaces.models import User
from studio.workspaces.services import create_workspace
from tests.fixtures import Api, make_key, make_member

PASSWORD = "a long enough sentence"
FORM = {"login": "ana@example.com", "password": PASSWORD}
WRONG_CODE = "This was not accepted."


@pytest.fixture
def ana(db, settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one takes its time
    cache.clear()
    return create_workspace(user=User.objects.create_user("ana@example.com", PASSWORD), name="Acme")


@pytest.fixture
def signed_in(client, ana):
    client.post("/login/", FORM)
    return client


def confirmed(browser, path):
    """The answer at `path` once the password has been entered again."""
    way = browser.get(path)
    if way.status_code == 302:
        assert way["Location"].startswith("/account/confirm/?next=")
        assert browser.post(way["Location"], {"password": PASSWORD, "next": path})["Location"] == path
        way = browser.get(path)
    return way


def code_of(secret, *, steps=0):
    """What the app shows now, or so many half minutes later."""
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def add_app(browser):
    """Adds an authenticator app; answers its secret."""
    page = confirmed(browser, "/account/authenticator/").content.decode()
    secret = re.search(r"<code>([A-Z2-7]{32})</code>", page).group(1)
    answer = browser.post("/account/authenticator/", {"code": code_of(secret)})
    assert answer["Location"] == "/account/recovery-codes/"
    return secret


def codes(browser):
    return re.findall(r'<li class="mono">(\d+)</li>', confirmed(browser, "/account/recovery-codes/").content.decode())


def half_way(browser):
    """A sign-in whose password was right, and that waits for the second factor."""
    assert browser.post("/login/", FORM)["Location"] == "/login/second-factor/"
    assert browser.get("/").status_code == 302
    return browser


def test_an_app_is_added_and_then_asked_for(signed_in, ana):
    secret = add_app(signed_in)
    assert "Added" in signed_in.get("/account/").content.decode()
    other = half_way(Browser())
    assert "One more step" in other.get("/login/second-factor/").content.decode()
    assert other.post("/login/second-factor/", {"code": code_of(secret, steps=1)})["Location"] == "/"
    assert other.get("/").status_code == 200
    verbs = AuditRecord.objects.filter(workspace=ana.workspace, user=ana.user).order_by("pk").values_list("verb", "change")
    assert [verb for verb in verbs if verb[0].startswith(("user", "auth"))] == [
        ("user.sign_in", {"by": [None, "password"]}),
        ("authenticator.add", {}),
        ("user.sign_in", {"by": [None, "password, app"]}),
    ]


def test_the_first_factor_ends_sessions_that_were_opened_without_one(signed_in, ana, queue, django_capture_on_commit_callbacks):
    stolen = Browser()
    stolen.post("/login/", FORM)
    assert stolen.get("/").status_code == 200
    with django_capture_on_commit_callbacks() as told:
        secret = add_app(signed_in)
    assert any("people_changed" in call.__qualname__ for call in told)
    assert [browser.get("/").status_code for browser in (signed_in, stolen)] == [200, 302]
    assert member_by_cookie(stolen.cookies["session"].value) is None  # for sockets and uploads
    phone = half_way(Browser())
    phone.post("/login/second-factor/", {"code": code_of(secret, steps=1)})
    Authenticator.objects.create(user=ana.user, type="webauthn", data={"name": "Laptop", "credential": {}})
    assert phone.get("/").status_code == 200  # a further one ends nothing


def test_the_secret_of_an_app_is_kept_sealed_and_is_told_to_nobody_later(signed_in, ana):
    secret = add_app(signed_in)
    kept = Authenticator.objects.get(type="totp")
    assert secret not in str(kept.data)
    assert secret not in signed_in.get("/account/").content.decode()
    assert not [record for record in AuditRecord.objects.all() if secret in str(vars(record))]


def test_the_picture_of_the_key_needs_nothing_that_the_page_forbids(signed_in):
    page = confirmed(signed_in, "/account/authenticator/").content.decode()
    assert '<img class="qr" src="data:image/svg+xml;base64,' in page
    assert "style=" not in page and "<script>" not in page and "onclick" not in page


def test_a_password_that_is_known_does_not_change_how_one_signs_in(signed_in):
    """Whoever finds a screen unlocked is asked for the password first."""
    for path in ("authenticator/", "passkeys/new/"):
        assert signed_in.get(f"/account/{path}")["Location"].startswith("/account/confirm/")
        assert signed_in.post(f"/account/{path}", {"code": "123456"})["Location"].startswith("/account/confirm/")
    way = signed_in.get("/account/authenticator/")["Location"]
    assert "This password is not right." in signed_in.post(way, {"password": "wrong"}).content.decode()
    assert signed_in.get("/account/authenticator/").status_code == 302


def test_confirming_by_a_password_is_slowed_down_like_signing_in(signed_in):
    way = signed_in.get("/account/authenticator/")["Location"]
    for _ in range(8):
        signed_in.post(way, {"password": "wrong"})
    assert "Too many tries" in signed_in.post(way, {"password": PASSWORD}).content.decode()
    assert signed_in.get("/account/authenticator/").status_code == 302


def test_a_wrong_code_adds_no_app(signed_in):
    page = confirmed(signed_in, "/account/authenticator/").content.decode()
    secret = re.search(r"<code>([A-Z2-7]{32})</code>", page).group(1)
    answer = signed_in.post("/account/authenticator/", {"code": code_of(secret, steps=9)})
    assert WRONG_CODE in answer.content.decode()
    assert secret in answer.content.decode()  # the picture that was scanned stays good
    assert not Authenticator.objects.exists()


def test_a_code_works_once(signed_in, ana):
    secret = add_app(signed_in)
    code = code_of(secret, steps=1)
    half_way(Browser()).post("/login/second-factor/", {"code": code})
    again = half_way(Browser())
    assert WRONG_CODE in again.post("/login/second-factor/", {"code": code}).content.decode()
    assert again.get("/").status_code == 302


def test_a_recovery_code_lets_in_once(signed_in, ana):
    add_app(signed_in)
    first, *others = codes(signed_in)
    assert len({first, *others}) == 10 and len(first) == 10
    lost = half_way(Browser())
    assert lost.post("/login/second-factor/", {"code": first})["Location"] == "/"
    assert AuditRecord.objects.filter(verb="user.sign_in").first().change == {"by": [None, "password, recovery code"]}
    assert WRONG_CODE in half_way(Browser()).post("/login/second-factor/", {"code": first}).content.decode()
    assert codes(signed_in) == others


def test_recovery_codes_are_downloaded_and_made_anew(signed_in, ana):
    add_app(signed_in)
    before = codes(signed_in)
    file = signed_in.get("/account/recovery-codes/file/")
    assert file["Content-Disposition"] == 'attachment; filename="recovery-codes.txt"'
    assert file.content.decode().split() == before
    assert signed_in.post("/account/recovery-codes/new/")["Location"] == "/account/recovery-codes/"
    assert not set(codes(signed_in)) & set(before)
    assert WRONG_CODE in half_way(Browser()).post("/login/second-factor/", {"code": before[0]}).content.decode()


def test_recovery_codes_are_shown_to_whoever_confirms_that_it_is_them(signed_in, ana):
    add_app(signed_in)
    half = half_way(Browser())
    for path in ("", "file/", "new/"):
        assert half.get(f"/account/recovery-codes/{path}")["Location"].startswith("/login/")
    later = Browser()
    later.force_login(ana.user)
    for path in ("", "file/", "new/"):
        assert later.get(f"/account/recovery-codes/{path}")["Location"].startswith("/account/confirm/")


def test_guessing_at_codes_is_slowed_down_for_the_account_from_wherever(signed_in, ana, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        secret = add_app(signed_in)
    for number in range(8):
        guesser = half_way(Browser(REMOTE_ADDR=f"192.0.2.{number}"))
        assert WRONG_CODE in guesser.post("/login/second-factor/", {"code": "000000"}).content.decode()
    elsewhere = half_way(Browser(REMOTE_ADDR="192.0.2.99"))
    for code in (code_of(secret, steps=1), codes(signed_in)[0]):
        assert "Too many tries" in elsewhere.post("/login/second-factor/", {"code": code}).content.decode()
    assert elsewhere.get("/").status_code == 302
    assert AuditRecord.objects.filter(verb="user.sign_in_failed").count() == 8


def test_a_sign_in_that_waits_for_its_second_factor_can_be_given_up(signed_in, ana):
    add_app(signed_in)
    browser = half_way(Browser())
    assert browser.get("/login/")["Location"] == "/login/second-factor/"
    browser.post("/logout/")
    assert browser.get("/login/").status_code == 200
    assert browser.get("/login/second-factor/")["Location"] == "/login/"


def test_an_app_is_removed_with_its_recovery_codes(signed_in, ana):
    add_app(signed_in)
    assert signed_in.post("/account/authenticator/remove/")["Location"] == "/account/"
    assert not Authenticator.objects.exists()
    assert Browser().post("/login/", FORM)["Location"] == "/"
    assert AuditRecord.objects.filter(verb="authenticator.remove").count() == 1
    assert not AuditRecord.objects.filter(verb__contains="recovery").exists()


def test_a_page_about_a_factor_that_is_not_there_leads_to_the_account(signed_in):
    for path in ("authenticator/remove/", "recovery-codes/", "recovery-codes/file/"):
        assert signed_in.get(f"/account/{path}")["Location"] == "/account/"


def test_one_person_does_not_touch_anothers_passkey(signed_in, ana):
    zoe = make_member(ana.workspace, role="admin", email="zoe@example.com")
    theirs = Authenticator.objects.create(user=zoe.user, type="webauthn", data={"name": "Laptop", "credential": {}})
    confirmed(signed_in, "/account/authenticator/")
    for path in (f"/account/passkeys/{theirs.pk}/", f"/account/passkeys/{theirs.pk}/remove/"):
        assert signed_in.get(path).status_code == signed_in.post(path, {"name": "Mine"}).status_code == 404
    assert Authenticator.objects.get().data["name"] == "Laptop"


def test_somebody_in_two_workspaces_leaves_a_record_in_both(client, ana):
    second = create_workspace(user=ana.user, name="Beta")
    client.post("/login/", FORM)
    assert [*AuditRecord.objects.filter(verb="user.sign_in").values_list("workspace", flat=True).order_by("workspace__name")] == [
        ana.workspace_id,
        second.workspace_id,
    ]


# A workspace that asks for a second factor.


@pytest.fixture
def strict(signed_in, ana):
    """ana has an app, and asks everybody in the workspace for one."""
    add_app(signed_in)
    assert signed_in.post("/settings/second-factor/", {"required": "on"})["Location"] == "/settings/"
    ana.workspace.refresh_from_db()
    assert ana.workspace.second_factor_required
    return ana


@pytest.fixture
def max_(strict):
    """A member without a second factor."""
    member = make_member(strict.workspace, role="member", email="max@example.com")
    member.user.set_password(PASSWORD)
    member.user.save()
    browser = Browser()
    browser.post("/login/", {"login": "max@example.com", "password": PASSWORD})
    browser.member = member
    return browser


def test_an_owner_asks_everybody_for_a_second_factor_and_takes_it_back(strict, signed_in):
    assert signed_in.get("/runs/").status_code == 200
    records = AuditRecord.objects.filter(verb="workspace.second_factor")
    assert records.get().change == {"second_factor_required": [False, True]}
    signed_in.post("/settings/second-factor/", {"required": "on"})
    assert records.count() == 1
    signed_in.post("/settings/second-factor/", {})
    strict.workspace.refresh_from_db()
    assert not strict.workspace.second_factor_required
    assert records.count() == 2


def test_an_owner_without_one_does_not_ask_others(signed_in, ana):
    answer = signed_in.post("/settings/second-factor/", {"required": "on"})
    assert answer.status_code == 400
    assert "Add one to your account first" in answer.content.decode()


@pytest.mark.parametrize("role", ["admin", "member", "viewer", "guest"])
def test_nobody_but_an_owner_asks_for_one(strict, role):
    other = make_member(strict.workspace, role=role, email="zoe@example.com")
    Authenticator.objects.create(user=other.user, type="totp", data={"secret": ""})
    browser = Browser()
    browser.force_login(other.user)
    assert browser.post("/settings/second-factor/", {}).status_code == 404


def test_a_member_without_one_is_led_to_add_it_before_anything_else(max_):
    for path in ("/", "/runs/", "/settings/", "/clients/", "/api/v1/docs", "/api/v1/openapi.json"):
        assert max_.get(path)["Location"] == "/account/", path
    assert max_.post("/clients/new/", {"name": "New"})["Location"] == "/account/"
    assert max_.get("/runs/", headers={"HX-Request": "true"})["HX-Redirect"] == "/account/"
    assert "Add a second factor to go on." in max_.get("/account/").content.decode()
    assert member_by_cookie(max_.cookies["session"].value) is None  # for sockets and uploads
    add_app(max_)
    assert max_.get("/runs/").status_code == 200
    assert member_by_cookie(max_.cookies["session"].value) == max_.member


def test_whoever_removes_their_last_factor_is_led_back(max_):
    add_app(max_)
    max_.post("/account/authenticator/remove/")
    assert max_.get("/runs/")["Location"] == "/account/"


def test_a_key_is_not_affected(max_):
    api = Api(make_key(max_.member, scopes=["read"]))
    assert api.get("me").status_code == api.get("runs").status_code == 200


def test_another_workspace_of_the_same_person_stays_open(max_):
    own = create_workspace(user=max_.member.user, name="Own")
    max_.post("/workspaces/switch/", {"workspace": own.workspace_id})
    assert max_.get("/runs/").status_code == 200
