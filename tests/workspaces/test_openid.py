"""Signing in with a company's account: a real OpenID Connect provider on this machine vouches for people, or does not."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from cryptography.hazmat.primitives.asymmetric import rsa
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import ImproperlyConfigured
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.settings import openid_connect, secure_address
from studio.workspaces.models import User
from studio.workspaces.services import create_workspace

PASSWORD = "a long enough sentence"
START, CALLBACK = "/login/with/company/", "/login/with/company/callback/"


class Provider(ThreadingHTTPServer):
    """Discovery, tokens, keys and userinfo. `who` is the person who is signed in there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.who: dict[str, Any] = {"sub": "a-1", "email": "ana@example.com", "email_verified": True}
        self.asked: list[dict[str, str]] = []
        self.broken = False
        self.audience, self.issuer = "studio", self.url

    def id_token(self) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": self.audience, "iat": now, "exp": now + 60} | self.who
        return jwt.encode(claims, self.key, algorithm="RS256", headers={"kid": "one"})


class Desk(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        url = self.server.url
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.server.key.public_key()))
        self.answer(
            {
                "/.well-known/openid-configuration": {
                    "issuer": url,
                    "authorization_endpoint": f"{url}/authorize",
                    "token_endpoint": f"{url}/token",
                    "jwks_uri": f"{url}/keys",
                    "userinfo_endpoint": f"{url}/me",
                    "token_endpoint_auth_methods_supported": ["client_secret_post"],
                },
                "/keys": {"keys": [public | {"kid": "one", "use": "sig", "alg": "RS256"}]},
                "/me": self.server.who,
            }[self.path]
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append({name: values[0] for name, values in parse_qs(body).items()})
        self.answer({"access_token": "one", "token_type": "Bearer", "id_token": self.server.id_token()})

    def answer(self, told: dict[str, Any]) -> None:
        self.send_response(500 if self.server.broken else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *args: Any) -> None:
        """Nothing: the test's own output is enough."""


@pytest.fixture
def provider(settings: Any) -> Iterator[Provider]:
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    settings.OIDC_URL, settings.OIDC_NAME = server.url, "Acme accounts"
    settings.SOCIALACCOUNT_PROVIDERS = openid_connect(server.url, name="Acme accounts", client_id="studio", secret="shared")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ana(db: None, settings: Any) -> Any:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    return create_workspace(user=User.objects.create_user("ana@example.com", PASSWORD), name="Acme")


def to_the_provider(browser: Browser, **query: str) -> dict[str, str]:
    """What the provider is told of a sign-in that begins."""
    answer = browser.get(START, query)
    assert answer.status_code == 302, answer.content.decode()
    return {name: values[0] for name, values in parse_qs(urlsplit(answer["Location"]).query).items()}


def and_back(browser: Browser, **changes: str) -> Any:
    asked = to_the_provider(browser)
    return browser.get(CALLBACK, {"code": "one", "state": asked["state"]} | changes)


def test_whoever_the_provider_vouches_for_signs_in_and_is_connected(client, ana, provider):
    assert "Sign in with Acme accounts" in client.get("/login/").content.decode()
    assert and_back(client)["Location"] == "/"
    assert client.get("/").status_code == 200
    assert SocialAccount.objects.get().user == ana.user
    assert AuditRecord.objects.filter(verb="user.sign_in").get().change == {"by": [None, "OpenID Connect"]}
    page = client.get("/account/").content.decode()
    assert "Acme accounts" in page and "Disconnect" in page


def test_the_provider_is_asked_with_a_proof_that_nobody_else_can_give(client, ana, provider):
    asked = to_the_provider(client)
    assert (asked["client_id"], asked["response_type"], asked["code_challenge_method"]) == ("studio", "code", "S256")
    assert asked["redirect_uri"] == f"http://testserver{CALLBACK}"
    assert {"openid", "email"} <= set(asked["scope"].split())
    client.get(CALLBACK, {"code": "one", "state": asked["state"]})
    (sent,) = provider.asked
    assert (sent["code"], sent["client_secret"]) == ("one", "shared")
    assert len(sent["code_verifier"]) > 40


def test_whoever_is_connected_signs_in_when_their_address_changed_there(client, ana, provider):
    and_back(client)
    provider.who |= {"email": "ana.new@example.com"}
    assert and_back(Browser())["Location"] == "/"


def test_an_address_that_the_provider_has_not_verified_lets_nobody_in(client, ana, provider):
    for claim in (False, None, "false", 0):
        provider.who = {"sub": "e-1", "email": "ana@example.com", "email_verified": claim}
        answer = and_back(client)
        assert "Ask the owner of the workspace" in answer.content.decode()
        assert client.get("/").status_code == 302
    del provider.who["email_verified"]
    assert "Ask the owner" in and_back(client).content.decode()
    assert not SocialAccount.objects.exists()


@pytest.mark.parametrize("who", [{"sub": "e-1", "email": "eve@example.com", "email_verified": True}, {"sub": "e-1"}])
def test_nobody_gets_an_account_by_signing_in(client, ana, provider, who):
    provider.who = who
    answer = and_back(client)
    assert "You have no account here" in answer.content.decode()
    assert client.get("/").status_code == 302
    assert User.objects.count() == EmailAddress.objects.count() == 1


def test_a_closed_account_stays_closed(client, ana, provider):
    and_back(client)
    User.objects.update(is_active=False)
    other = Browser()
    assert and_back(other)["Location"] == "/login/"
    assert other.get("/").status_code == 302
    assert "This account is closed" in other.get("/login/").content.decode()


def test_a_way_back_that_this_browser_did_not_begin_is_refused(client, ana, provider):
    for state in ("wrong", ""):
        answer = and_back(client, state=state)
        assert "Signing in did not work" in answer.content.decode()
    elsewhere = to_the_provider(Browser())
    assert "Signing in did not work" in client.get(CALLBACK, {"code": "one", "state": elsewhere["state"]}).content.decode()
    assert client.get("/").status_code == 302
    assert not provider.asked


def test_a_way_back_works_once(client, ana, provider):
    asked = to_the_provider(client)
    client.get(CALLBACK, {"code": "one", "state": asked["state"]})
    client.post("/logout/")
    client.get(CALLBACK, {"code": "one", "state": asked["state"]})
    assert client.get("/").status_code == 302


@pytest.mark.parametrize("wrong", [{"audience": "another"}, {"issuer": "https://evil.example"}])
def test_a_token_for_another_studio_or_of_another_provider_is_refused(client, ana, provider, wrong):
    vars(provider).update(wrong)
    assert "Signing in did not work" in and_back(client).content.decode()
    assert client.get("/").status_code == 302


def test_a_provider_that_is_away_is_told_in_words(client, ana, provider):
    asked = to_the_provider(client)
    provider.broken = True
    assert client.get(START).status_code == 502
    answer = client.get(CALLBACK, {"code": "one", "state": asked["state"]})
    assert "Signing in did not work" in answer.content.decode()


def test_somebody_who_turned_back_there_is_led_home(client, ana, provider):
    asked = to_the_provider(client)
    answer = client.get(CALLBACK, {"error": "access_denied", "state": asked["state"]}, follow=True)
    assert "You did not sign in" in answer.content.decode()


def test_an_account_is_connected_by_signing_in_alone_and_by_no_link(client, ana, provider):
    client.force_login(ana.user)
    provider.who = {"sub": "e-1", "email": "eve@example.com", "email_verified": True}
    asked = to_the_provider(client, process="connect")
    client.get(CALLBACK, {"code": "one", "state": asked["state"]})
    assert not SocialAccount.objects.exists()


def test_nobody_is_led_elsewhere_afterwards(client, ana, provider):
    for next_ in ("https://evil.example/", "//evil.example/"):
        asked = to_the_provider(client, next=next_)
        assert client.get(CALLBACK, {"code": "one", "state": asked["state"]})["Location"] == "/"
        client.post("/logout/")
    asked = to_the_provider(client, next="/runs/")
    assert client.get(CALLBACK, {"code": "one", "state": asked["state"]})["Location"] == "/runs/"


def test_a_connection_is_removed_by_its_person_who_confirms_it(client, ana, provider):
    and_back(client)
    connection = SocialAccount.objects.get()
    path = f"/account/connections/{connection.pk}/remove/"
    eve = Browser()
    eve.force_login(User.objects.create_user("eve@example.com", PASSWORD))
    confirm(eve, path)
    assert SocialAccount.objects.exists()
    assert client.post(path)["Location"].startswith("/account/confirm/?")
    confirm(client, path)
    assert not SocialAccount.objects.exists()
    assert AuditRecord.objects.filter(verb="connected_sign_in.remove", workspace=ana.workspace).count() == 1


def test_whoever_has_no_password_sets_one_after_signing_in_anew(client, ana, provider):
    ana.user.set_unusable_password()
    ana.user.save()
    and_back(client)
    assert "Set a password" in client.get("/account/").content.decode()
    assert client.get("/account/authenticator/").status_code == 200
    later = Browser()
    later.force_login(ana.user)  # a session that was not opened just now
    for path in ("/account/password/set/", "/account/authenticator/", "/account/confirm/", "/account/confirm/code/"):
        assert "Sign out and in again first" in later.get(path).content.decode()
    new = {"password1": PASSWORD, "password2": PASSWORD}
    later.post("/account/password/set/", new)
    assert not User.objects.get().has_usable_password()
    assert client.post("/account/password/set/", new)["Location"] == "/account/"
    assert User.objects.get().check_password(PASSWORD)
    assert AuditRecord.objects.filter(verb="password.change").count() == 1


def test_an_address_that_nobody_had_confirmed_here_belongs_to_whom_the_provider_vouches_for(client, ana, provider):
    """Somebody who came by a link typed another's address: that one gets the account, and nothing of the first one's opens it."""
    EmailAddress.objects.update(verified=False)
    Authenticator.objects.create(user=ana.user, type="totp", data={"secret": ""})
    first = Browser()
    first.force_login(ana.user)
    assert first.get("/").status_code == 200
    assert and_back(client)["Location"] == "/"
    assert client.get("/").status_code == 200
    assert not User.objects.get().has_usable_password()
    assert not Authenticator.objects.exists()
    assert EmailAddress.objects.get().verified
    assert first.get("/").status_code == 302
    assert not SessionStore().exists(first.cookies["session"].value)
    assert AuditRecord.objects.filter(verb__in=["password.remove", "authenticator.remove"]).count() == 2


def test_what_somebody_sets_up_once_their_address_is_known_stays(client, ana, provider):
    EmailAddress.objects.update(verified=False)
    and_back(client)
    ana.user.set_password(PASSWORD)
    ana.user.save()
    Authenticator.objects.create(user=ana.user, type="totp", data={"secret": ""})
    SocialAccount.objects.all().delete()
    assert and_back(Browser())["Location"] == "/login/second-factor/"
    assert User.objects.get().has_usable_password()
    assert Authenticator.objects.count() == 1


def confirm(browser: Browser, path: str) -> None:
    """Posts to `path`, and enters the password that is asked for in between."""
    way = browser.post(path)["Location"]
    browser.post(way, {"password": PASSWORD, "next": path})


def test_where_no_provider_is_named_there_is_none(client, ana):
    assert "Sign in with" not in client.get("/login/").content.decode()
    assert client.get(START).status_code == client.get(CALLBACK).status_code == 404


def test_a_provider_is_asked_over_https_except_on_this_machine():
    assert secure_address("https://id.example.com/realms/acme/", "OIDC_URL") == "https://id.example.com/realms/acme"
    assert secure_address("http://localhost:8080", "OIDC_URL") == "http://localhost:8080"
    assert secure_address("", "OIDC_URL") == ""
    for url in ("http://id.example.com", "id.example.com", "ftp://id.example.com"):
        with pytest.raises(ImproperlyConfigured, match="STUDIO_OIDC_URL must start with https://"):
            secure_address(url, "OIDC_URL")
