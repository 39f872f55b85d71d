"""A key that is narrowed to deployments can ask those, and do nothing else anywhere."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client as Browser
from django.urls import reverse
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.releases.models import Release
from studio.serving import deploying
from studio.serving.models import Deployment
from studio.serving.reach import deployments_for, releases_for
from studio.workspaces import keys
from studio.workspaces.models import ApiKey, Member
from studio.workspaces.policy import PUBLIC, ROUTES, SIGNED_IN
from studio.workspaces.services import create_client, create_project
from tests.fixtures import ALL_SCOPES, Api, World, make_deployment, make_key, make_member, make_release


def as_key(key: ApiKey) -> Member:
    """The member as a request with this key has it."""
    member: Member = ApiKey.objects.select_related("member__workspace", "member__user").get(pk=key.pk).member
    member.key = ApiKey.objects.get(pk=key.pk)
    return member


@pytest.fixture
def shop(acme: World) -> Deployment:
    return make_deployment(acme.project, make_release(acme.owner, acme.artifact, stage=Release.Stage.APPROVED), slug="shop")


@pytest.fixture
def made(acme: World, shop: Deployment) -> tuple[ApiKey, Api]:
    key, secret = keys.create(acme.owner, name="web shop", scopes=[], deployments=[shop], limits=keys.Limits(60, None, 4))
    return key, Api(secret)


def test_it_reaches_its_own_deployments_and_no_release_by_name(acme: World, shop: Deployment, made: tuple[ApiKey, Api]) -> None:
    make_deployment(acme.project, slug="other")
    member = as_key(made[0])
    assert list(deployments_for(member)) == [shop]
    assert list(releases_for(member)) == []
    assert {deployment.slug for deployment in deployments_for(acme.owner)} == {"shop", "other"}
    assert [release.stage for release in releases_for(acme.owner)] == ["approved"]


def test_it_says_whom_it_reaches_and_how_much_it_may(acme: World, shop: Deployment, made: tuple[ApiKey, Api]) -> None:
    facts = made[1].get("me").json()
    assert facts["deployments"] == [{"id": str(shop.pk), "name": str(shop)}]
    assert (facts["scopes"], facts["clients"]) == (["inference"], [str(acme.client.pk)])
    assert (facts["requests_per_minute"], facts["tokens_per_minute"], facts["at_once"]) == (60, None, 4)
    assert acme.api.get("me").json()["deployments"] is None


@pytest.mark.parametrize("scopes", [["inference"], ALL_SCOPES])
def test_every_other_call_is_refused_whatever_its_scopes(acme: World, shop: Deployment, scopes: list[str]) -> None:
    """Scopes besides could only come from a row that somebody wrote by hand; they give nothing either."""
    secret = make_key(acme.owner, scopes=scopes, clients=[acme.client], by_deployment=True)
    shop.keys.add(acme.owner.keys.latest("created_at"))
    api, own = Api(secret), acme.owner
    things = {"pk": shop.pk, "index": 0, "name": "adapter_config.json"}
    tried = 0
    for name, methods in ROUTES.items():
        if not name.startswith("api:"):
            continue
        for method, action in methods.items():
            if action in (PUBLIC, SIGNED_IN, "answer.judge"):
                continue
            assert own.may(action)
            parts = {part: value for part, value in things.items() if part in parts_of(name)}
            if name == "api:member":
                parts = {"pk": own.pk}
            answer = api.call(method, reverse(name, kwargs=parts), None if method in ("GET", "HEAD") else {})
            assert answer.status_code == 404, f"{method} {name}"
            tried += 1
    assert tried > 100


def parts_of(name: str) -> set[str]:
    from django.urls import get_resolver

    return {
        part for form in get_resolver().namespace_dict["api"][1].reverse_dict.getlist(name.removeprefix("api:")) for part in form[0][0][1]
    }


def test_nothing_that_may_be_chatted_with_is_its_own(acme: World, made: tuple[ApiKey, Api]) -> None:
    from studio.artifacts.models import Artifact
    from studio.basemodels.models import BaseModel

    member = as_key(made[0])
    for model in (Artifact, BaseModel, Release):
        assert model.objects.for_action(acme.owner, "chat.use").exists()
        assert not model.objects.for_action(member, "chat.use").exists()


def test_an_archived_or_erased_deployment_leaves_it_without_reach_and_never_wider(
    acme: World, shop: Deployment, made: tuple[ApiKey, Api]
) -> None:
    deploying.archive(acme.owner, shop)
    assert list(deployments_for(as_key(made[0]))) == []
    assert made[1].get("me").json()["deployments"] == []
    deploying.restore(acme.owner, shop)
    assert list(deployments_for(as_key(made[0]))) == [shop]
    shop.delete()
    assert list(deployments_for(as_key(made[0]))) == []
    assert made[1].get("me").json()["deployments"] == []
    assert made[1].get("deployments").status_code == 404


def test_somebody_who_no_longer_sees_the_client_takes_its_deployments_from_their_keys(acme: World, shop: Deployment) -> None:
    member = make_member(acme.workspace, role="member", email="max@example.com")
    key, _ = keys.create(member, name="mine", scopes=[], deployments=[shop])
    assert list(deployments_for(as_key(key))) == [shop]
    member.clients.set([create_client(acme.owner, name="Other", slug="")])
    assert list(deployments_for(as_key(key))) == []


def test_its_making_is_recorded_with_what_it_reaches(acme: World, shop: Deployment, made: tuple[ApiKey, Api]) -> None:
    told = AuditRecord.objects.filter(verb="key.create").latest("pk").change
    assert told["deployments"] == [None, [str(shop)]]
    assert (told["scopes"], told["requests_per_minute"], told["at_once"]) == ([None, ["inference"]], [None, 60], [None, 4])


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"deployments": []}, "deployments"),
        ({"deployments": None}, "scopes"),
        ({"scopes": ["read"]}, "scopes"),
        ({"scopes": ["inference", "read"]}, "scopes"),
        ({"clients": True}, "clients"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"at_once": 1001}, "at_once"),
        ({"requests_per_minute": 2**40}, "requests_per_minute"),
    ],
)
def test_what_fits_no_such_key_is_refused_by_its_field(acme: World, shop: Deployment, sent: dict[str, Any], field: str) -> None:
    if sent.get("clients"):
        sent = {"clients": [str(acme.client.pk)]}
    answer = acme.api.post("keys", {"name": "shop", "deployments": [str(shop.pk)]} | sent)
    assert answer.status_code == 422
    assert field in answer.json()["error"]["fields"]
    assert not ApiKey.objects.filter(name="shop").exists()


def test_a_script_makes_one_and_changes_its_limits(acme: World, shop: Deployment) -> None:
    answer = acme.api.post("keys", {"name": "shop", "deployments": [str(shop.pk)], "tokens_per_minute": 5000})
    assert answer.status_code == 201
    key = answer.json()
    assert (key["deployments"], key["scopes"], key["tokens_per_minute"]) == ([str(shop.pk)], ["inference"], 5000)
    changed = acme.api.patch(f"keys/{key['id']}", {"at_once": 2})
    assert changed.status_code == 200
    assert (changed.json()["tokens_per_minute"], changed.json()["at_once"]) == (5000, 2)
    assert acme.api.patch(f"keys/{key['id']}", {"tokens_per_minute": None}).json()["tokens_per_minute"] is None
    assert Api(key["secret"]).get("me").json()["at_once"] == 2
    told = AuditRecord.objects.filter(verb="key.limit")
    assert [record.change for record in told.order_by("pk")] == [{"at_once": [None, 2]}, {"tokens_per_minute": [5000, None]}]
    acme.api.patch(f"keys/{key['id']}", {"at_once": 2})
    assert told.count() == 2


def test_a_deployment_of_another_workspace_is_as_unknown_as_none(acme: World, rival: World) -> None:
    foreign = make_deployment(rival.project, slug="theirs")
    answer = acme.api.post("keys", {"name": "shop", "deployments": [str(foreign.pk)]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_id")


def test_a_key_makes_only_narrower_ones(acme: World, shop: Deployment) -> None:
    other = make_deployment(create_project(acme.owner, client=create_client(acme.owner, name="Other", slug=""), name="Q", slug=""))
    make_key(acme.owner, scopes=["admin"], clients=[acme.client], name="ops", requests_per_minute=100, at_once=3)
    ops = as_key(ApiKey.objects.get(name="ops"))
    assert other not in keys.offered_deployments(ops)
    key, _ = keys.create(ops, name="narrow", scopes=[], deployments=[shop], limits=keys.Limits(50))
    assert keys.Limits.of(key) == keys.Limits(50, None, 3)
    for limits, field in ((keys.Limits(101), "requests_per_minute"), (keys.Limits(None, None, 4), "at_once")):
        with pytest.raises(UserError) as refused:
            keys.create(ops, name="wide", scopes=[], deployments=[shop], limits=limits)
        assert field in refused.value.fields
        with pytest.raises(UserError):
            keys.change_limits(ops, key, limits)
    keys.change_limits(ops, key, keys.NO_LIMITS)
    assert keys.Limits.of(key) == keys.Limits(100, None, 3)
    key.requests_per_minute = 500  # as somebody set it who may
    key.save()
    keys.change_limits(ops, key, keys.Limits(500, 9000, 3))
    assert keys.Limits.of(key) == keys.Limits(500, 9000, 3)  # what is not changed stays


def test_a_narrow_key_makes_and_sees_no_key(made: tuple[ApiKey, Api], shop: Deployment) -> None:
    assert made[1].post("keys", {"name": "more", "deployments": [str(shop.pk)]}).status_code == 404
    assert made[1].patch(f"keys/{made[0].pk}", {"requests_per_minute": None}).status_code == 404
    assert made[1].get("keys").status_code == 404


# ── The pages ──


@pytest.fixture
def window(acme: World) -> Browser:
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def test_the_form_makes_one_and_the_list_says_what_it_may(window: Browser, acme: World, shop: Deployment) -> None:
    opened = window.get(f"/settings/?deployment={shop.pk}").content.decode()
    assert 'value="deployments" checked' in opened
    assert f'value="{shop.pk}" id="id_deployment_{shop.pk}" checked' in opened
    sent = {"name": "web shop", "sees": "deployments", "deployments": [str(shop.pk)], "scopes": ["read"], "requests_per_minute": "1,000"}
    assert window.post("/settings/keys/", sent).status_code == 200
    key = ApiKey.objects.get(name="web shop")
    assert (key.scopes, key.by_deployment, key.requests_per_minute) == (["inference"], True, 1000)
    page = window.get("/settings/").content.decode()
    assert "1 deployment<" in page
    assert "1,000 requests a minute" in page
    assert str(shop) in page


def test_the_form_keeps_what_was_typed_beside_what_is_wrong(window: Browser, shop: Deployment) -> None:
    sent = {"name": "web shop", "sees": "deployments", "deployments": [str(shop.pk)], "at_once": "many"}
    answer = window.post("/settings/keys/", sent)
    assert answer.status_code == 422
    page = answer.content.decode()
    assert "Must be from 1 to 1,000, or empty for no limit." in page
    assert 'value="many"' in page
    assert f'id="id_deployment_{shop.pk}" checked' in page
    assert window.post("/settings/keys/", sent | {"deployments": []}).status_code == 422


@pytest.mark.parametrize("pk", ["00000000-0000-0000-0000-000000000000", "nothing"])
def test_a_deployment_that_is_not_there_is_not_found(window: Browser, pk: str) -> None:
    assert window.get(f"/settings/?deployment={pk}").status_code == 404
    assert window.post("/settings/keys/", {"name": "x", "sees": "deployments", "deployments": [pk]}).status_code == 404


def test_limits_are_changed_on_their_page_and_the_secret_stays(window: Browser, made: tuple[ApiKey, Api]) -> None:
    key, api = made
    page = window.get(f"/settings/keys/{key.pk}/limits/")
    assert 'value="60"' in page.content.decode()
    assert window.post(f"/settings/keys/{key.pk}/limits/", {"requests_per_minute": "5"}).status_code == 302
    assert api.get("me").json()["requests_per_minute"] == 5
    assert api.get("me").json()["at_once"] is None
    assert window.post(f"/settings/keys/{key.pk}/limits/", {"requests_per_minute": "-5"}).status_code == 422


def test_a_colleague_changes_no_limits_of_mine_and_nobody_those_of_a_revoked_key(acme: World, made: tuple[ApiKey, Api]) -> None:
    bob = Browser()
    bob.force_login(make_member(acme.workspace, role="member", email="bob@example.com").user)
    assert bob.post(f"/settings/keys/{made[0].pk}/limits/", {}).status_code == 404
    ApiKey.objects.filter(pk=made[0].pk).update(revoked_at=timezone.now() - timedelta(days=1))
    assert acme.api.patch(f"keys/{made[0].pk}", {}).status_code == 404
