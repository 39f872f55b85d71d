"""People and invitations by the API: the same rules as on the pages."""

import pytest
from django.test import Client as Browser

from studio.api.models import IdempotentAnswer
from studio.audit.models import AuditRecord
from studio.workspaces.models import Invitation, Member
from studio.workspaces.services import create_client
from tests.fixtures import Api, make_invitation, make_key, make_member


@pytest.fixture
def max_(acme):
    return make_member(acme.workspace, role="member", email="max@example.com")


def path_of(link):
    return link.removeprefix("http://testserver")


def test_people_are_listed_changed_and_removed(acme, max_):
    globex = create_client(acme.owner, name="Globex")
    people = acme.api.get("members").json()["items"]
    assert [(row["email"], row["role"], row["clients"]) for row in people] == [
        ("ana@example.com", "owner", None),
        ("max@example.com", "member", None),
    ]
    path = f"members/{max_.pk}"
    changed = acme.api.patch(path, {"role": "guest", "clients": [str(globex.pk)]})
    assert (changed.status_code, changed.json()) == (200, acme.api.get(path).json())
    assert (changed.json()["role"], changed.json()["clients"]) == ("guest", [str(globex.pk)])
    assert acme.api.patch(path, {"role": "viewer"}).json()["clients"] == [str(globex.pk)]  # what is left out stays
    assert acme.api.patch(path, {"clients": None}).json()["clients"] is None
    assert acme.api.delete(path).status_code == 204
    assert acme.api.get(path).status_code == 404
    lines = acme.api.get("audit?limit=500").json()["items"]
    assert [line["verb"] for line in lines][-4:] == ["member.change"] * 3 + ["member.remove"]


def test_people_come_in_pages(acme):
    for number in range(5):
        make_member(acme.workspace, role="viewer", email=f"p{number}@example.com")
    page, seen = acme.api.get("members?limit=2").json(), []
    while True:
        seen += [row["email"] for row in page["items"]]
        if page["next"] is None:
            break
        page = acme.api.get(page["next"]).json()
    assert seen == ["ana@example.com", *(f"p{number}@example.com" for number in range(5))]
    assert acme.api.get("members?after=9223372036854775807").status_code == 422


def test_a_refusal_names_its_field(acme, max_):
    def refused(body):
        answer = acme.api.patch(f"members/{max_.pk}", body)
        assert answer.status_code == 422
        return answer.json()["error"]["fields"]

    assert list(refused({"role": "king"})) == ["role"]
    assert refused({"role": "guest"}) == {"clients": "Choose the client whose person this is."}
    assert refused({"clients": []}) == {"clients": "Choose at least one client, or all."}
    assert list(refused({"clients": [str(max_.workspace.pk)]})) == ["clients"]
    assert list(refused({"name": "x"})) == ["name"]
    answer = acme.api.patch(f"members/{acme.owner.pk}", {"role": "viewer"})
    assert (answer.status_code, "never without an owner" in answer.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("pk", ["0", "99999999999999999999999999", "-1", "seven"])
def test_who_is_nobody_is_not_found(acme, pk):
    assert acme.api.delete(f"members/{pk}").status_code == 404


def test_a_key_of_one_client_meets_only_its_people(acme, max_):
    globex = create_client(acme.owner, name="Globex")
    make_member(acme.workspace, role="viewer", email="vic@example.com", clients=[acme.client])
    make_member(acme.workspace, role="viewer", email="gus@example.com", clients=[globex])
    narrow = Api(make_key(acme.owner, clients=[acme.client]))
    people = narrow.get("members").json()["items"]
    assert [row["email"] for row in people] == ["vic@example.com"]
    assert narrow.delete(f"members/{max_.pk}").status_code == 404
    assert narrow.patch(f"members/{people[0]['id']}", {"clients": None}).status_code == 422
    assert narrow.post("invitations", {"role": "viewer"}).status_code == 422
    assert narrow.post("invitations", {"role": "viewer", "clients": [str(globex.pk)]}).json()["error"]["code"] == "unknown_id"


def test_a_key_that_does_not_administer_only_reads_people(acme, max_):
    api = Api(make_key(acme.owner, scopes=["read", "write", "train", "deploy"]))
    assert api.get("members").status_code == 200
    for answer in (api.delete(f"members/{max_.pk}"), api.get("invitations"), api.post("invitations", {"role": "viewer"})):
        assert answer.status_code == 404


def test_an_invitation_tells_its_link_once_and_is_revoked(acme):
    made = acme.api.post("invitations", {"role": "guest", "clients": [str(acme.client.pk)], "email": "Gus@Example.com", "days": 1})
    assert made.status_code == 201
    row = made.json()
    link = row.pop("link")
    assert (row["email"], row["role"], row["invited_by"]) == ("gus@example.com", "guest", "ana@example.com")
    assert acme.api.get("invitations").json()["items"] == [row]
    assert Browser().get(path_of(link)).status_code == 200
    assert acme.api.delete(f"invitations/{row['id']}").status_code == 204
    assert Browser().get(path_of(link)).status_code == 404
    assert acme.api.delete(f"invitations/{row['id']}").status_code == 404
    assert acme.api.get("invitations").json() == {"items": [], "next": None}
    assert AuditRecord.objects.filter(verb__startswith="invitation.").count() == 2


def test_by_the_link_somebody_joins(acme):
    link = path_of(acme.api.post("invitations", {"role": "viewer"}).json()["link"])
    assert Browser().post(link, {"email": "bo@example.com", "password": "a long enough sentence"}).status_code == 302
    assert Member.objects.get(user__email="bo@example.com").role == "viewer"


def test_a_repeat_makes_no_second_invitation_and_does_not_tell_the_link_again(acme):
    first, again = (acme.api.post("invitations", {"role": "viewer"}, Idempotency_Key="i1").json() for _ in range(2))
    assert again == first | {"link": None}
    assert Invitation.objects.count() == 1
    assert first["link"].split("/")[-2] not in repr(vars(IdempotentAnswer.objects.get()))


def test_invitations_of_another_workspace_are_not_found(acme, rival):
    theirs = make_invitation(rival.owner)
    assert acme.api.delete(f"invitations/{theirs.pk}").status_code == 404
    assert acme.api.get("invitations").json()["items"] == []
