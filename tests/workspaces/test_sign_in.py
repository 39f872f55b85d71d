"""Signing in and out: what lets a person in, what slows a guesser down, and what a page sends along to stay safe."""

import re
import socket
import time
from importlib import import_module

import pytest
from allauth.account.models import EmailAddress
from allauth.account.views import PasswordResetView
from allauth.core.context import request_context
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core.cache import cache
from django.http import HttpResponse
from django.test import Client as Browser
from django.test import RequestFactory
from django.utils.http import http_date

from studio.audit.models import AuditRecord
from studio.workspaces.models import User
from studio.workspaces.services import create_workspace
from studio.workspaces.sessions import SessionsMiddleware
from studio.workspaces.throttle import TRIES, TRIES_ANYWHERE, failed, is_blocked

PASSWORD = "a long enough sentence"
WRONG = "E-mail or password is not right."


@pytest.fixture
def ana(db, settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one takes its time
    return create_workspace(user=User.objects.create_user("ana@example.com", PASSWORD), name="Acme")


def sign_in(browser, email="ana@example.com", password=PASSWORD, **more):
    return browser.post("/login/", {"login": email, "password": password} | more)


def test_a_member_signs_in_and_out(client, ana):
    assert sign_in(client, email="Ana@Example.COM")["Location"] == "/"
    page = client.get("/")
    assert page.status_code == 200
    assert (page["Cache-Control"], page["Vary"]) == ("no-store, private", "Cookie, HX-Request")
    assert client.post("/logout/")["Location"] == "/login/"
    assert client.get("/")["Location"] == "/login/?next=/"


def test_signing_out_ends_the_session_itself(client, ana):
    sign_in(client)
    copied = Browser()
    copied.cookies = client.cookies.copy()
    assert copied.get("/").status_code == 200
    client.post("/logout/")
    assert copied.get("/").status_code == 302


def test_nobody_is_signed_out_by_a_link(client, ana):
    sign_in(client)
    assert client.get("/logout/").status_code == 405
    assert client.get("/").status_code == 200


def test_the_session_is_a_new_one_after_signing_in(client, ana):
    client.cookies[settings.SESSION_COOKIE_NAME] = "a" * 32
    sign_in(client)
    assert client.cookies[settings.SESSION_COOKIE_NAME].value != "a" * 32


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("ana@example.com", "wrong"),
        ("eve@example.com", PASSWORD),
        ("ana@example.com", PASSWORD + " "),
        ("ana@example.com", PASSWORD.upper()),
    ],
)
def test_a_refusal_does_not_say_which_part_is_wrong(client, ana, email, password):
    answer = sign_in(client, email=email, password=password)
    assert answer.status_code == 200
    assert WRONG in answer.content.decode()
    assert settings.SESSION_COOKIE_NAME not in client.cookies


def test_a_closed_account_is_refused_alike(client, ana):
    ana.user.is_active = False
    ana.user.save()
    assert WRONG in sign_in(client).content.decode()


def test_a_session_ends_with_its_account_and_with_its_password(client, ana):
    sign_in(client)
    ana.user.set_password("another long sentence")
    ana.user.save()
    assert client.get("/").status_code == 302
    sign_in(client, password="another long sentence")
    assert client.get("/").status_code == 200
    User.objects.update(is_active=False)
    assert client.get("/").status_code == 302


def test_somebody_without_a_workspace_sees_nothing(client, db):
    User.objects.create_user("new@example.com", PASSWORD)
    sign_in(client, email="new@example.com")
    assert [client.get(path).status_code for path in ("/runs/", "/settings/")] == [404, 404]


def test_one_is_led_back_to_where_one_wanted_to_go(client, ana):
    assert client.get("/runs/")["Location"] == "/login/?next=/runs/"
    assert sign_in(client, next="/runs/")["Location"] == "/runs/"


@pytest.mark.parametrize("next_", ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "/\\evil.example"])
def test_nobody_is_led_elsewhere(client, ana, next_):
    assert sign_in(client, next=next_)["Location"] == "/"


def test_guessing_is_slowed_down_for_this_name_and_address_alone(client, ana):
    for _ in range(TRIES):
        assert sign_in(client, password="wrong").status_code == 200
    blocked = sign_in(client)
    assert blocked.status_code == 429
    assert "Too many tries. Wait a quarter of an hour" in blocked.content.decode()
    assert WRONG not in blocked.content.decode()
    assert "Nobody has an account yet" not in blocked.content.decode()
    assert 'value="ana@example.com"' in blocked.content.decode()
    assert client.get("/").status_code == 302
    other = create_workspace(user=User.objects.create_user("max@example.com", PASSWORD), name="Max")
    assert sign_in(Browser(), email=other.user.email).status_code == 302
    assert sign_in(Browser(REMOTE_ADDR="192.0.2.7")).status_code == 302


def test_who_has_half_of_an_ipv6_address_has_as_many_tries_as_anybody(client, ana):
    for number in range(TRIES):
        assert sign_in(Browser(REMOTE_ADDR=f"2001:db8::{number}"), password="wrong").status_code == 200
    assert sign_in(Browser(REMOTE_ADDR="2001:db8:0:0:ffff::9")).status_code == 429
    assert sign_in(Browser(REMOTE_ADDR="2001:db8:0:1::1")).status_code == 302
    assert sign_in(Browser(REMOTE_ADDR="::ffff:192.0.2.7")).status_code == 302


def test_guessing_from_many_addresses_is_slowed_down_too(client, ana):
    for number in range(TRIES_ANYWHERE):
        assert sign_in(Browser(REMOTE_ADDR=f"192.0.2.{number}"), password="wrong").status_code == 200
    assert sign_in(Browser(REMOTE_ADDR="198.51.100.1")).status_code == 429
    assert sign_in(Browser(REMOTE_ADDR="198.51.100.1"), email="max@example.com").status_code == 200


def test_a_count_that_ends_while_one_is_added_begins_anew(monkeypatch):
    failed("login", "ana")
    monkeypatch.setattr(cache, "add", lambda *args: False)
    cache.clear()
    failed("login", "ana")
    assert not is_blocked("login", "ana") and is_blocked("login", "ana", tries=1)


def test_a_guess_that_is_blocked_is_not_even_looked_at(client, ana, django_assert_num_queries):
    for _ in range(TRIES):
        sign_in(client, password="wrong")
    with django_assert_num_queries(1):  # whether the studio is set up, for the page
        sign_in(client)


def test_signing_in_forgets_earlier_tries(client, ana):
    for _ in range(2):
        for _ in range(TRIES - 1):
            sign_in(client, password="wrong")
        assert sign_in(client).status_code == 302
        client.post("/logout/")


def test_a_form_from_elsewhere_is_refused(ana):
    browser = Browser(enforce_csrf_checks=True)
    browser.get("/login/")
    answer = sign_in(browser)
    assert answer.status_code == 403
    token = browser.cookies[settings.CSRF_COOKIE_NAME].value
    assert sign_in(browser, csrfmiddlewaretoken=token).status_code == 302
    assert browser.post("/logout/").status_code == 403


def test_the_page_of_a_session_is_not_shown_from_a_cache(client, ana):
    sign_in(client)
    answer = client.get("/", headers={"If-Modified-Since": http_date(2**31)})
    assert answer.status_code == 200


def test_trying_a_password_is_written_down_for_whoever_has_an_account(client, ana):
    sign_in(client, password="wrong")
    sign_in(client, email="nobody@example.com")
    record = AuditRecord.objects.get(verb="user.sign_in_failed")
    assert (record.user, record.workspace, record.ip, record.change) == (ana.user, ana.workspace, "127.0.0.1", {"by": [None, "password"]})
    sign_in(client)
    client.post("/logout/")
    assert [*AuditRecord.objects.order_by("pk").values_list("verb", flat=True)][-3:] == [
        "user.sign_in_failed",
        "user.sign_in",
        "user.sign_out",
    ]
    assert not [record for record in AuditRecord.objects.all() if PASSWORD in str(vars(record)) or "wrong" in str(vars(record))]


def test_the_answer_to_a_stranger_takes_as_long_and_writes_nothing_before_it(client, ana, settings):
    """As many hashes and as few writes: what is written for a known address waits until the answer is out."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
    ana.user.set_password(PASSWORD)
    ana.user.save()
    seconds = {}
    for email in ("ana@example.com", "nobody@example.com"):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            sign_in(Browser(), email=email, password="wrong")
            times.append(time.perf_counter() - start)
        seconds[email] = min(times)
    known, unknown = seconds.values()
    assert unknown > known / 2
    factory = RequestFactory()
    request = factory.post("/login/", {"login": "ana@example.com", "password": "wrong"})
    answer = []

    def looks(request):
        answer.append(AuditRecord.objects.filter(verb="user.sign_in_failed").count())
        request.after_answer = [lambda: answer.append("after")]
        return HttpResponse()

    request.user = AnonymousUser()
    response = SessionsMiddleware(looks)(request)
    assert answer == [5]
    response.close()
    assert answer == [5, "after"]


def test_an_account_is_made_by_nobody_who_only_asks(client, ana):
    for path in ("/signup/", "/accounts/signup/", "/account/signup/", "/login/signup/", "/accounts/login/", "/account/email/"):
        assert client.get(path).status_code == client.post(path, {"email": "eve@example.com", "password1": PASSWORD}).status_code == 404


def test_every_user_has_an_address_that_the_sign_in_finds(ana):
    address = EmailAddress.objects.get()
    assert (address.email, address.verified, address.primary, address.user) == ("ana@example.com", True, True, ana.user)


def test_users_from_before_get_their_address_and_keep_their_password(client, ana):
    EmailAddress.objects.all().delete()
    before = import_module("studio.workspaces.migrations.0005_addresses")
    for _ in range(2):
        before.add_addresses(apps, None)
    assert EmailAddress.objects.get().email == "ana@example.com"
    assert sign_in(client).status_code == 302


def test_a_passkey_that_is_none_lets_nobody_in(client, ana):
    client.get("/login/passkey/", headers={"Accept": "application/json"})
    for credential in (
        "",
        "null",
        "{}",
        "[]",
        '"x"',
        '{"id": "AA", "rawId": "AA", "response": {"userHandle": "AA"}, "type": "public-key"}',
    ):
        answer = client.post("/login/passkey/", {"credential": credential})
        assert (answer.status_code, answer["Location"]) == (302, "/login/"), credential
    assert client.get("/").status_code == 302


# A forgotten password, where the studio can send mail.


@pytest.fixture
def mail(settings, mailoutbox):
    settings.SMTP_URL = "smtp://localhost"
    return mailoutbox


def forget(client, email="ana@example.com"):
    return client.post("/login/forgotten/", {"email": email})


def link_in(message):
    return re.search(r"http://testserver(/login/forgotten/\S+)", message.body).group(1)


def test_a_new_password_is_set_through_a_link_that_works_once(client, ana, mail):
    assert "I forgot my password" in client.get("/login/").content.decode()
    assert forget(client)["Location"] == "/login/forgotten/sent/"
    (message,) = mail
    assert (message.to, message.subject) == (["ana@example.com"], "Set a new password for Adapter Studio")
    link = link_in(message)
    form = client.get(link)["Location"]
    assert form.endswith("-set-password/")
    new = "another long sentence"
    done = client.post(form, {"password1": new, "password2": new})
    assert done["Location"] == "/login/forgotten/done/"
    assert sign_in(Browser()).status_code == 200
    assert sign_in(Browser(), password=new).status_code == 302
    assert AuditRecord.objects.filter(verb="password.reset").count() == 1
    assert "has been used or has expired" in Browser().get(link).content.decode()


def test_a_stranger_is_answered_like_everybody_and_gets_no_mail(client, ana, mail):
    known, unknown = forget(client), forget(client, email="nobody@example.com")
    assert (known.status_code, known["Location"], known.content) == (unknown.status_code, unknown["Location"], unknown.content)
    assert [message.to for message in mail] == [["ana@example.com"]]


def test_the_mail_goes_out_after_the_answer(ana, mail):
    request = RequestFactory().post("/login/forgotten/", {"email": "ana@example.com"})
    request.user, request.session = AnonymousUser(), SessionStore()
    with request_context(request):
        answer = SessionsMiddleware(PasswordResetView.as_view())(request)
    assert not mail
    answer.close()
    assert len(mail) == 1


def test_a_mail_that_cannot_be_sent_is_logged_and_tells_nothing(client, ana, settings, caplog, monkeypatch):
    settings.SMTP_URL = "smtp://localhost"
    monkeypatch.setattr("django.core.mail.message.EmailMessage.send", lambda *args, **kwargs: socket.create_connection(("127.0.0.1", 9), 1))
    assert forget(client)["Location"] == "/login/forgotten/sent/"
    assert "Connection refused" in caplog.text


def test_links_are_not_sent_without_end(client, ana, mail):
    assert [forget(client).status_code for _ in range(6)] == [302] * 5 + [429]
    assert len(mail) == 5


def test_a_link_that_is_cut_off_or_of_somebody_else_sets_nothing(client, ana, mail):
    other = User.objects.create_user("zoe@example.com", PASSWORD)
    forget(client)
    link = link_in(mail[0])
    number, _, key = link.split("/")[3].partition("-")
    for wrong in (
        link[:-3] + "/",
        f"/login/forgotten/{other.pk}-{key}/",
        "/login/forgotten/1-x/",
        f"/login/forgotten/{number}-set-password/",
    ):
        assert "has been used or has expired" in client.get(wrong).content.decode()


def test_the_second_factor_is_still_asked_for_after_a_new_password(client, ana, mail):
    Authenticator.objects.create(user=ana.user, type="totp", data={"secret": ""})
    forget(client)
    new = "another long sentence"
    client.post(client.get(link_in(mail[0]))["Location"], {"password1": new, "password2": new})
    assert client.get("/").status_code == 302
    assert sign_in(client, password=new)["Location"] == "/login/second-factor/"


def test_whoever_gets_the_mail_gets_the_account_and_nothing_of_who_only_typed_its_address(client, ana, mail):
    EmailAddress.objects.update(verified=False)
    first = Browser()
    first.force_login(ana.user)
    first.get("/")
    Authenticator.objects.create(user=ana.user, type="totp", data={"secret": ""})
    Authenticator.objects.create(user=ana.user, type="recovery_codes", data={})
    forget(client)
    new = "another long sentence"
    done = client.post(client.get(link_in(mail[0]))["Location"], {"password1": new, "password2": new})
    assert "second factors from before are gone" in client.get(done["Location"]).content.decode()
    assert not Authenticator.objects.exists()
    assert EmailAddress.objects.get().verified
    assert first.get("/").status_code == 302
    assert not SessionStore().exists(first.cookies["session"].value)
    assert sign_in(client, password=new)["Location"] == "/"


def test_where_no_mail_can_be_sent_nothing_is_offered(client, ana, mailoutbox):
    assert "I forgot my password" not in client.get("/login/").content.decode()
    for path in ("", "sent/", "done/", "1-x/"):
        assert client.get(f"/login/forgotten/{path}").status_code == 404
    assert forget(client).status_code == 404
    assert not mailoutbox
