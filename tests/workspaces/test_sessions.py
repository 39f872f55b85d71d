"""Where one is signed in: the list of one's devices, and signing them out one by one or all at once."""

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.workspaces.middleware import member_by_cookie
from studio.workspaces.models import User
from studio.workspaces.services import create_workspace
from studio.workspaces.sessions import device

PASSWORD = "a long enough sentence"
FORM = {"login": "ana@example.com", "password": PASSWORD}
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 Version/19.1 Mobile/15E148 Safari/604.1"


@pytest.fixture
def ana(db, settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one takes its time
    cache.clear()
    return create_workspace(user=User.objects.create_user("ana@example.com", PASSWORD), name="Acme")


@pytest.fixture
def desk(client, ana):
    client.post("/login/", FORM, headers={"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"})
    return client


@pytest.fixture
def phone(desk):
    browser = Browser(REMOTE_ADDR="192.0.2.7", headers={"User-Agent": PHONE})
    browser.post("/login/", FORM)
    return browser


def row_of(browser):
    return UserSession.objects.get(session_key=browser.cookies["session"].value)


def test_the_devices_are_listed_with_this_one_first(desk, phone):
    page = phone.get("/account/").content.decode()
    assert page.index("Safari on iPhone") < page.index("this one") < page.index("Firefox on Linux")
    assert "192.0.2.7" in page and "127.0.0.1" in page


def test_what_has_ended_otherwise_is_listed_no_more(desk, phone, ana):
    def listed(browser):
        page = browser.get("/account/").content.decode()
        return [name for name in ("Safari on iPhone", "Firefox on Linux") if name in page]

    assert listed(desk) == ["Safari on iPhone", "Firefox on Linux"]
    stored = Session.objects.get(session_key=row_of(phone).session_key)
    Session.objects.filter(pk=stored.pk).update(expire_date=timezone.now())
    assert listed(desk) == ["Firefox on Linux"] and UserSession.objects.count() == 1  # it ran out
    again = Browser(headers={"User-Agent": PHONE})
    again.post("/login/", FORM)
    assert listed(desk) == ["Safari on iPhone", "Firefox on Linux"]
    ana.user.set_password("another sentence, as long")
    ana.user.save()
    again = Browser(headers={"User-Agent": PHONE})
    again.post("/login/", FORM | {"password": "another sentence, as long"})
    assert listed(again) == ["Safari on iPhone"] and UserSession.objects.count() == 1  # the password was changed


def test_listing_many_devices_takes_as_few_queries_as_one(desk, django_assert_max_num_queries):
    for _ in range(5):
        Browser().post("/login/", FORM)
    with CaptureQueriesContext(connection) as asked:
        page = desk.get("/account/").content.decode()
    queries = len(asked)
    assert page.count("Sign out</button>") >= 5
    Browser().post("/login/", FORM)
    with django_assert_max_num_queries(queries):
        desk.get("/account/")


def test_one_device_is_signed_out_at_once(desk, phone, ana, django_capture_on_commit_callbacks, queue):
    desk.post(f"/account/sessions/{row_of(phone).pk}/end/")
    assert phone.get("/")["Location"] == "/login/?next=/"
    assert member_by_cookie(phone.cookies["session"].value) is None  # for sockets and uploads
    assert desk.get("/").status_code == 200
    record = AuditRecord.objects.get(verb="session.revoke")
    assert record.change == {"device": ["Safari on iPhone", None], "ip": ["192.0.2.7", None]}
    assert (record.user, record.workspace) == (ana.user, ana.workspace)


def test_the_sockets_of_a_device_that_is_signed_out_are_told(desk, phone, ana, queue, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks() as told:
        desk.post(f"/account/sessions/{row_of(phone).pk}/end/")
    assert any("people_changed" in call.__qualname__ for call in told)


def test_all_other_devices_are_signed_out_at_once(desk, phone):
    third = Browser()
    third.post("/login/", FORM)
    desk.post("/account/sessions/end-others/")
    assert [browser.get("/").status_code for browser in (desk, phone, third)] == [200, 302, 302]
    assert AuditRecord.objects.get(verb="session.revoke_others").change == {"sessions": [2, 0]}
    desk.post("/account/sessions/end-others/")
    assert AuditRecord.objects.filter(verb="session.revoke_others").count() == 1  # there was nothing to end


def test_a_copied_cookie_is_out_with_its_session(desk, phone):
    thief = Browser()
    thief.cookies = phone.cookies.copy()
    assert thief.get("/").status_code == 200
    desk.post("/account/sessions/end-others/")
    assert thief.get("/").status_code == 302


def test_nobody_signs_out_or_sees_somebody_else(desk, ana):
    eve = Browser()
    eve.force_login(User.objects.create_user("eve@example.com", PASSWORD))
    assert "Firefox on Linux" not in eve.get("/account/").content.decode()
    assert eve.post(f"/account/sessions/{row_of(desk).pk}/end/")["Location"] == "/account/"
    eve.post("/account/sessions/end-others/")
    assert desk.get("/").status_code == 200
    assert not AuditRecord.objects.filter(verb__startswith="session").exists()


def test_a_session_that_ended_otherwise_is_not_listed(desk, phone, ana):
    phone.post("/logout/")
    assert "iPhone" not in desk.get("/account/").content.decode()
    phone.post("/login/", FORM)
    assert "iPhone" in desk.get("/account/").content.decode()
    ana.user.set_password("another long sentence")
    ana.user.save()
    phone.post("/login/", FORM | {"password": "another long sentence"})
    assert "Firefox" not in phone.get("/account/").content.decode()


def test_the_last_use_is_kept_but_not_written_for_every_request(desk, django_assert_num_queries):
    before = row_of(desk).last_seen_at
    desk.get("/account/")
    assert row_of(desk).last_seen_at == before
    cache.clear()  # as after five minutes
    desk.get("/healthz/", REMOTE_ADDR="192.0.2.9")
    assert row_of(desk).last_seen_at > before
    assert row_of(desk).ip == "192.0.2.9"


def test_a_session_from_before_the_list_gets_its_row(desk):
    UserSession.objects.all().delete()
    cache.clear()
    assert "this one" in desk.get("/account/").content.decode()


def test_changing_the_password_signs_all_other_devices_out(desk, phone, ana):
    new = "another long sentence"
    answer = desk.post("/account/password/", {"oldpassword": PASSWORD, "password1": new, "password2": new})
    assert answer["Location"] == "/account/"
    assert [browser.get("/").status_code for browser in (desk, phone)] == [200, 302]
    page = desk.get("/account/").content.decode()
    assert "this one" in page and "iPhone" not in page
    assert AuditRecord.objects.filter(verb="password.change").count() == 1
    assert not [record for record in AuditRecord.objects.all() if new in str(vars(record)) or PASSWORD in str(vars(record))]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"oldpassword": "wrong"}, "This password is not right."),
        ({"password1": "short", "password2": "short"}, "This password is too short."),
        ({"password2": "a different sentence"}, "You must type the same password each time."),
    ],
)
def test_what_is_wrong_with_a_new_password_stands_beside_its_field(desk, ana, change, sentence):
    new = "another long sentence"
    answer = desk.post("/account/password/", {"oldpassword": PASSWORD, "password1": new, "password2": new} | change)
    assert sentence in answer.content.decode()
    ana.user.refresh_from_db()
    assert ana.user.check_password(PASSWORD)


def test_guessing_at_the_old_password_is_slowed_down(desk):
    new = "another long sentence"
    for _ in range(8):
        desk.post("/account/password/", {"oldpassword": "wrong", "password1": new, "password2": new})
    blocked = desk.post("/account/password/", {"oldpassword": PASSWORD, "password1": new, "password2": new})
    assert blocked.status_code == 429
    assert "Wait a quarter of an hour" in blocked.content.decode()


def test_somebody_without_a_workspace_has_an_account_page(client, db):
    client.force_login(User.objects.create_user("new@example.com", PASSWORD))
    assert "new@example.com" in client.get("/account/").content.decode()


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (PHONE, "Safari on iPhone"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0",
            "Edge on Windows",
        ),
        ("Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Mobile Safari/537.36", "Chrome on Android"),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/19.1 Safari/605.1.15",
            "Safari on Mac",
        ),
        ("curl/8.5.0", "curl"),
        ("<script>alert(1)</script>", "Unknown device"),
        ("", "Unknown device"),
    ],
)
def test_a_device_is_named_as_people_call_it(agent, words):
    assert device(agent) == words
