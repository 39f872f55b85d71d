"""Signing in and out: what lets a person in, what slows a guesser down, and what a page sends along to stay safe."""

import pytest
from django.conf import settings
from django.test import Client as Browser
from django.utils.http import http_date

from studio.workspaces.models import User
from studio.workspaces.services import create_workspace
from studio.workspaces.throttle import TRIES

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
