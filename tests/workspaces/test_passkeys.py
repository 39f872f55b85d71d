"""Passkeys as no browser sends them: odd ones, and those that another page asked for. How people use them is tested in a browser."""

import json
import os
import re
from hashlib import sha256

import pytest
from allauth.account.utils import user_pk_to_url_str
from allauth.mfa.models import Authenticator
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from django.core.cache import cache
from django.test import Client as Browser
from fido2.cose import ES256
from fido2.utils import websafe_encode
from fido2.webauthn import AttestationObject, AttestedCredentialData, AuthenticatorData, CollectedClientData

from studio.workspaces.models import User
from studio.workspaces.services import create_workspace

PASSWORD = "a long enough sentence"
PAGE = "http://localhost:8000"
OTHER_PAGES = ["http://localhost:9000", "http://evil.localhost:8000", "http://localhost", "https://localhost:8000"]
"""All of which fido2 takes for a passkey of localhost."""
LOGIN, ADD, SECOND, CONFIRM = "/login/passkey/", "/account/passkeys/new/", "/login/second-factor/", "/account/confirm/passkey/"
JSON = {"Accept": "application/json"}


class Device:
    """An authenticator that signs whatever it is told, on whichever page."""

    def __init__(self) -> None:
        self.id, self.key = os.urandom(16), ec.generate_private_key(ec.SECP256R1())

    def authenticator_data(self, *, new: bool) -> AuthenticatorData:
        flag = AuthenticatorData.FLAG
        kept = AttestedCredentialData.create(bytes(16), self.id, ES256.from_cryptography_key(self.key.public_key())) if new else b""
        return AuthenticatorData.create(sha256(b"localhost").digest(), flag.UP | flag.UV | (flag.AT if new else flag(0)), 0, kept)

    def answer(self, response):
        name = websafe_encode(self.id)
        told = {name: websafe_encode(text) for name, text in response.items()}
        return {"id": name, "rawId": name, "type": "public-key", "response": told, "clientExtensionResults": {"credProps": {"rk": True}}}

    def made(self, challenge, *, page=PAGE):
        said = CollectedClientData.create("webauthn.create", challenge, page)
        kept = AttestationObject.create("none", self.authenticator_data(new=True), {})
        return self.answer({"clientDataJSON": said, "attestationObject": kept})

    def used(self, challenge, user, *, page=PAGE):
        said, data = CollectedClientData.create("webauthn.get", challenge, page), self.authenticator_data(new=False)
        signature = self.key.sign(data + said.hash, ec.ECDSA(SHA256()))
        handle = user_pk_to_url_str(user).encode()
        return self.answer({"clientDataJSON": said, "authenticatorData": data, "signature": signature, "userHandle": handle})


def browser():
    return Browser(HTTP_HOST="localhost:8000", raise_request_exception=False)


def challenge_of(answer):
    return re.search(r'"challenge": ?"([\w-]+)"', answer.content.decode()).group(1)


def send(visitor, path, credential):
    return visitor.post(path, {"credential": credential if isinstance(credential, str) else json.dumps(credential), "passwordless": "on"})


def entered(visitor):
    assert visitor.post("/login/", {"login": "ana@example.com", "password": PASSWORD}).status_code == 302
    return visitor


@pytest.fixture
def ana(db, settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    cache.clear()
    return create_workspace(user=User.objects.create_user("ana@example.com", PASSWORD), name="Acme")


@pytest.fixture
def desk(ana):
    """ana, who has just entered her password."""
    visitor = entered(browser())
    visitor.post("/account/confirm/?next=/account/", {"password": PASSWORD})
    return visitor


@pytest.fixture
def device(desk):
    """With a passkey of ana's."""
    device = Device()
    answer = send(desk, ADD, device.made(challenge_of(desk.get(ADD))))
    assert answer["Location"] == "/account/recovery-codes/", answer.content.decode()
    return device


def test_a_passkey_signs_in_alone_and_after_a_password_and_confirms(ana, device):
    alone = browser()
    challenge = challenge_of(alone.get(LOGIN, headers=JSON))
    assert send(alone, LOGIN, device.used(challenge, ana.user))["Location"] == "/"
    second = entered(browser())
    assert send(second, SECOND, device.used(challenge_of(second.get(SECOND)), ana.user))["Location"] == "/"
    assert send(second, CONFIRM, device.used(challenge_of(second.get(CONFIRM)), ana.user)).status_code == 302
    assert second.get(ADD).status_code == 200


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_what_another_page_asked_for_opens_nothing_here(ana, device, page):
    alone = browser()
    challenge = challenge_of(alone.get(LOGIN, headers=JSON))
    assert send(alone, LOGIN, device.used(challenge, ana.user, page=page))["Location"] == "/login/"
    assert "This was not accepted" in alone.get("/login/").content.decode()
    second = entered(browser())
    refused = send(second, SECOND, device.used(challenge_of(second.get(SECOND)), ana.user, page=page))
    assert "This passkey was not accepted" in refused.content.decode()
    assert [visitor.get("/").status_code for visitor in (alone, second)] == [302, 302]
    third = browser()
    third.force_login(ana.user)
    send(third, CONFIRM, device.used(challenge_of(third.get(CONFIRM)), ana.user, page=page))
    assert third.get(ADD).status_code == 302


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_no_passkey_is_added_that_another_page_asked_for(desk, page):
    refused = send(desk, ADD, Device().made(challenge_of(desk.get(ADD)), page=page))
    assert "This passkey was not accepted" in refused.content.decode()
    assert not Authenticator.objects.exists()


def odd_answers(whole):
    """`whole`, each time with something wrong."""
    for odd in odd_ones(whole):
        cache.clear()  # so many tries are too many
        yield odd


def odd_ones(whole):
    told = whole["response"]
    yield from ("{", "7", "null", '""', "[]", "{}", '{"id": 1}', "[" * 100_000, '{"id": "\\u0000"}')
    yield whole | {"id": "AAAA"}
    yield whole | {"id": 1, "rawId": 1}
    yield whole | {"response": 7}
    yield whole | {"response": {}}
    for name, text in told.items():
        for odd in (
            "",
            "A",
            "AAAA",
            text[:-8],
            text[: len(text) // 2],
            "é",
            7,
            None,
            [],
            websafe_encode(b"\x81" * 5000),
            websafe_encode(b"[" * 5000),
        ):
            yield whole | {"response": told | {name: odd}}
        yield whole | {"response": {other: text for other, text in told.items() if other != name}}
    for said in (b"7", b"[]", b"{}", b'{"origin": 7}', b"\xff", b"[" * 100_000, json.dumps({"origin": PAGE}).encode()):
        yield whole | {"response": told | {"clientDataJSON": websafe_encode(said)}}


def test_an_odd_answer_is_a_wrong_one(ana, device, desk):
    alone = browser()
    for odd in odd_answers(device.used(challenge_of(alone.get(LOGIN, headers=JSON)), ana.user)):
        answer = send(alone, LOGIN, odd)
        assert (answer.status_code, answer["Location"]) == (302, "/login/"), odd
    second = entered(browser())
    for odd in odd_answers(device.used(challenge_of(second.get(SECOND)), ana.user)):
        assert send(second, SECOND, odd).status_code == 200, odd
    for odd in odd_answers(device.used(challenge_of(desk.get(CONFIRM)), ana.user)):
        assert send(desk, CONFIRM, odd).status_code == 302, odd
    assert [visitor.get("/").status_code for visitor in (alone, second)] == [302, 302]


def test_an_odd_passkey_is_not_added(desk):
    for odd in odd_answers(Device().made(challenge_of(desk.get(ADD)))):
        answer = send(desk, ADD, odd)
        assert (answer.status_code, "This passkey was not accepted" in answer.content.decode()) == (200, True), odd
    assert not Authenticator.objects.exists()
