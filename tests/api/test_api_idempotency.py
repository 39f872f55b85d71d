"""A request that names itself is done once, however often and however many at a time it is sent."""

import threading

import pytest
from django.db import connection

from studio.api.models import IdempotentAnswer
from studio.datasets.models import DatasetVersion
from studio.workspaces.models import Client
from tests.fixtures import Api, make_key


def test_a_repeat_answers_with_the_first_result(acme):
    first = acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1")
    again = acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert (first.headers.get("Idempotent-Replay"), again["Idempotent-Replay"]) == (None, "true")
    assert again["Content-Type"] == first["Content-Type"]
    assert Client.objects.filter(name="Globex").count() == 1
    assert acme.api.post("clients", {"name": "Globex"}).json()["slug"] == "globex-2"  # without a key it is another one


def test_the_same_key_for_another_request_is_a_conflict(acme):
    acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1")
    for path, body in [("clients", {"name": "Initech"}), ("projects", {"name": "Globex"})]:
        answer = acme.api.post(path, body, Idempotency_Key="a1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_what_was_refused_may_be_mended_under_the_same_key(acme):
    assert acme.api.post("clients", {"name": ""}, Idempotency_Key="a1").status_code == 422
    assert acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1").status_code == 201
    assert IdempotentAnswer.objects.count() == 1


def test_each_api_key_has_its_own_answers(acme, rival):
    first = acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1").json()
    other = Api(make_key(acme.owner)).post("clients", {"name": "Globex"}, Idempotency_Key="a1").json()
    foreign = rival.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1").json()
    assert len({first["id"], other["id"], foreign["id"]}) == 3


def test_a_replay_needs_the_right_to_ask(acme):
    acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1")
    key = acme.owner.keys.get()
    key.scopes = ["read"]
    key.save()
    assert acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1").status_code == 404


@pytest.mark.parametrize("key", ["", "x" * 201, "a\x01b"])
def test_a_key_that_cannot_be_kept_is_refused(acme, key):
    assert acme.api.post("clients", {"name": "Globex"}, Idempotency_Key=key).status_code == 400


def test_an_upload_is_stored_once(acme):
    path, rows = f"datasets/{acme.version.dataset_id}/versions", b'{"text": "Hello there."}\n'
    headers = {"Idempotency-Key": "u1"}
    first, again = (acme.api.upload(path, rows, headers=headers, seed=7) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert DatasetVersion.objects.filter(dataset=acme.version.dataset).count() == 2
    assert acme.api.upload(path, rows + rows, headers=headers, seed=7).status_code == 409
    assert acme.api.upload(path, rows, headers=headers, seed=8).status_code == 409


@pytest.mark.django_db(transaction=True)
def test_two_requests_at_once_do_one_thing(acme):
    gate, answers = threading.Barrier(4), []

    def ask():
        gate.wait()
        try:
            answers.append(acme.api.post("clients", {"name": "Globex"}, Idempotency_Key="a1"))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.content for answer in answers}) == 1
    assert Client.objects.filter(name="Globex").count() == 1
