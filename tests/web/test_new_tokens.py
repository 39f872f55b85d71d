"""A person gives a base model tokens of its own, on its page or through the API."""

import pytest
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.basemodels.models import BaseModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def add(acme, client):
    client.force_login(acme.owner.user)
    return lambda **typed: client.post(reverse("basemodels:new_tokens", args=[acme.base.pk]), typed)


def test_tokens_make_another_base_model(add, acme):
    base = acme.base
    answer = add(tokens="<order>\n\n <invoice> \n<order>\n")
    made = BaseModel.objects.get(source=f"base:{base.pk}")
    assert (answer.status_code, answer.headers["Location"]) == (302, reverse("basemodels:detail", args=[made.pk]))
    assert (made.name, made.new_tokens) == (f"{base.name} + 2 tokens", ["<order>", "<invoice>"])
    assert AuditRecord.objects.filter(verb="base_model.create", object_id=str(made.pk)).count() == 1
    add(tokens="<order>\n<invoice>")
    assert BaseModel.objects.filter(source=made.source).count() == 1


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (" \n", "Write at least one token"),
        ("x" * 61, "cannot be a token"),
        ("a\x07b", "cannot be a token"),
        ("\n".join(map(str, range(1001))), "At most 1000"),
    ],
)
def test_what_cannot_be_a_token_is_said_beside_the_field(add, tokens, said):
    answer = add(tokens=tokens)
    assert answer.status_code == 422 and said in answer.content.decode()


def test_the_api_makes_the_same(acme):
    made = acme.api.post("base-models", {"source": f"base:{acme.base.pk}", "new_tokens": ["<order>"]})
    assert (made.status_code, made.json()["new_tokens"]) == (201, ["<order>"])
    refused = acme.api.post("base-models", {"source": "base:nothing", "new_tokens": ["<order>"]})
    assert (refused.status_code, refused.json()["error"]["fields"]) == (422, {"source": "Write base: and the id of a base model."})
