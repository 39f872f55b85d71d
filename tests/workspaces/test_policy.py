"""Every address, for everybody, on what is theirs, another client's, an archived client's, another workspace's and nobody's.

What each may do is read from the policy table. An address that the table or this file does not know fails the build.
"""

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import async_to_sync
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client as Browser
from django.test import override_settings
from django.urls import get_resolver, reverse
from django.urls.resolvers import URLPattern, URLResolver
from django.utils import timezone

from studio.sockets import Nowhere, websocket_urlpatterns
from studio.workspaces.models import Client, Member, User
from studio.workspaces.policy import ON_ARCHIVED, PUBLIC, ROLE_ACTIONS, ROUTES, SCOPE_ACTIONS, SIGNED_IN, SOCKETS
from tests.fixtures import make_key, make_member, make_slot, make_world
from tests.workspaces.conftest import ARCHIVED, GLOBEX, RIVAL, Town, make_town

KEPT = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]'
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
READS = ("GET", "HEAD", "OPTIONS")

# Every address that names an object, and the object of a world that stands in it.
PAGE_OBJECTS = {
    "clients:detail": "client",
    "clients:quotas": "client",
    "clients:logo": "client",
    "usage:rate_remove": "rate",
    "clients:archive": "client",
    "clients:restore": "client",
    "clients:export": "client",
    "clients:erase": "client",
    "clients:certificate": "erasure",
    "clients:certificate_file": "erasure",
    "projects:detail": "project",
    "projects:gate": "project",
    "releases:detail": "release",
    "releases:stage": "release",
    "releases:approve": "release",
    "releases:evaluate": "release",
    "releases:stop_evaluation": "release",
    "releases:share": "release",
    "releases:edit": "release",
    "basemodels:detail": "base",
    "connections:try": "connection",
    "connections:remove": "connection",
    "basemodels:stop": "base",
    "basemodels:new_tokens": "base",
    "datasets:detail": "dataset",
    "datasets:delete": "dataset",
    "datasets:version_new": "dataset",
    "datasets:version": "version",
    "datasets:refusals": "version",
    "datasets:again": "version",
    "datasets:map": "version",
    "datasets:stop": "version",
    "datasets:split": "version",
    "datasets:leave_out": "version",
    "datasets:license": "dataset",
    "datasets:hold_out": "dataset",
    "datasets:export": "version",
    "datasets:export_file": "version",
    "datasets:tokens": "version",
    "datasets:synthesis_new": "version",
    "datasets:synthesis": "synthesis",
    "datasets:synthesis_stop": "synthesis",
    "datasets:synthesis_decide": "synthesis",
    "datasets:synthesis_edit": "synthesis",
    "datasets:synthesis_save": "synthesis",
    "datasets:rows": "version",
    "datasets:row": "version",
    "datasets:row_edit": "version",
    "datasets:draft_rows": "version",
    "datasets:draft_rule": "version",
    "datasets:draft_save": "version",
    "datasets:draft_discard": "version",
    "datasets:mark": "version",
    "datasets:restore": "version",
    "datasets:changes": "version",
    "datasets:upload": "upload",
    "datasets:upload_preview": "upload",
    "datasets:upload_discard": "upload",
    "uploads:piece": "upload",
    "runs:detail": "run",
    "runs:log": "run",
    "runs:recipe": "run",
    "runs:events": "run",
    "runs:steps": "run",
    "runs:stop": "run",
    "runs:pause": "run",
    "runs:resume": "run",
    "runs:move": "run",
    "runs:when": "run",
    "runs:discard": "run",
    "comparisons:recipe": "comparison",
    "comparisons:stop": "comparison",
    "comparisons:again": "comparison",
    "comparisons:rename": "comparison",
    "comparisons:seeds": "comparison",
    "comparisons:delete": "comparison",
    "artifacts:detail": "artifact",
    "artifacts:download": "artifact",
    "artifacts:bundle": "artifact",
    "adapters:look": "adapter_file",
    "adapters:discard": "adapter_file",
    "adapters:detail": "adapter_upload",
    "adapters:stop": "adapter_upload",
    "builds:new": "artifact",
    "builds:ladder": "artifact",
    "builds:base": "base",
    "builds:base_ladder": "base",
    "builds:detail": "build",
    "builds:stop": "build",
    "builds:retry": "build",
    "builds:delete": "build",
    "extractions:new": "artifact",
    "extractions:detail": "extraction",
    "extractions:stop": "extraction",
    "advice:survey_stop": "survey",
    "extractions:delete": "extraction",
    "deliveries:detail": "delivery",
    "deliveries:revoke": "delivery",
    "deliveries:download": "delivery",
    "shared:release": "release",
    "shared:sign_off": "release",
    "retraining:detail": "retraining",
    "retraining:table": "retraining",
    "retraining:stop": "retraining",
    "retraining:again": "retraining",
    "retraining:promote": "retraining",
    "answers:detail": "kept",
    "answers:judge": "kept",
    "answers:delete": "kept",
    "answers:setting": "project",
    "settings:key_limits": "key",
    "settings:key_revoke": "key",
    "people:change": "colleague",
    "people:remove": "colleague",
    "people:invite_revoke": "invitation",
    "prompts:detail": "prompt_set",
    "prompts:edit": "prompt_set",
    "prompts:copy": "prompt_set",
    "prompts:delete": "prompt_set",
    "prompts:download": "prompt_set",
    "comparisons:detail": "comparison",
    "comparisons:curves": "comparison",
    "comparisons:report": "comparison",
    "comparisons:report_pdf": "comparison",
    "comparisons:figures": "comparison",
    "comparisons:rate": "comparison",
    "comparisons:share": "comparison",
    "comparisons:ratings_csv": "comparison",
    "shared_rate": "comparison",
    "trials:detail": "trial",
    "trials:beside": "trial",
    "trials:stop": "trial",
    "trials:delete": "trial",
    "trials:download": "trial",
    "lineage:version": "version",
    "lineage:row": "version",
    "lineage:run": "run",
    "lineage:artifact": "artifact",
    "lineage:release": "release",
    "serving:talk": "talk",
    "serving:talk_delete": "talk",
    "deployments:detail": "deployment",
    "deployments:promote": "deployment",
    "deployments:canary": "deployment",
    "deployments:rollback": "deployment",
    "deployments:clear": "deployment",
    "deployments:archive": "deployment",
    "deployments:restore": "deployment",
}
API_OBJECTS = {
    "api:client": "client",
    "api:client_restore": "client",
    "api:client_logo": "client",
    "api:client_export": "client",
    "api:client_erase": "client",
    "api:erasure": "erasure",
    "api:project": "project",
    "api:project_keeping": "project",
    "api:answer": "kept",
    "api:answer_judge": "kept",
    "api:base_model": "base",
    "api:dataset": "dataset",
    "api:dataset_versions": "dataset",
    "api:dataset_version": "version",
    "api:dataset_rows": "version",
    "api:dataset_refusals": "version",
    "api:dataset_row_lineage": "version",
    "api:dataset_revisions": "version",
    "api:dataset_restore": "version",
    "api:dataset_changes": "version",
    "api:dataset_marks": "version",
    "api:dataset_writers": "version",
    "api:dataset_syntheses": "version",
    "api:synthesis": "synthesis",
    "api:synthesis_stop": "synthesis",
    "api:synthesis_rows": "synthesis",
    "api:synthesis_save": "synthesis",
    "api:dataset_tokens": "version",
    "api:dataset_token_view": "version",
    "api:dataset_export": "version",
    "api:dataset_splits": "version",
    "api:upload": "upload",
    "api:upload_preview": "upload",
    "api:run": "run",
    "api:run_events": "run",
    "api:run_events_file": "run",
    "api:run_recipe": "run",
    "api:run_stop": "run",
    "api:run_pause": "run",
    "api:run_resume": "run",
    "api:run_discard": "run",
    "api:run_move": "run",
    "api:run_clone": "run",
    "api:adapter_upload": "adapter_upload",
    "api:artifact": "artifact",
    "api:artifact_download": "artifact",
    "api:artifact_file": "artifact",
    "api:artifact_bundle": "artifact",
    "api:artifact_ladder": "artifact",
    "api:artifact_build_types": "artifact",
    "api:base_model_ladder": "base",
    "api:base_model_build_types": "base",
    "api:deployment": "deployment",
    "api:deployment_restore": "deployment",
    "api:deployment_promote": "deployment",
    "api:deployment_canary": "deployment",
    "api:deployment_rollback": "deployment",
    "api:deployment_clear": "deployment",
    "api:build": "build",
    "api:build_stop": "build",
    "api:build_retry": "build",
    "api:artifact_extractions": "artifact",
    "api:extraction": "extraction",
    "api:extraction_stop": "extraction",
    "api:survey": "survey",
    "api:survey_stop": "survey",
    "api:key": "key",
    "api:project_gate": "project",
    "api:release": "release",
    "api:release_stage": "release",
    "api:release_approve": "release",
    "api:release_evaluate": "release",
    "api:release_stop_evaluation": "release",
    "api:release_share": "release",
    "api:retraining": "retraining",
    "api:retraining_stop": "retraining",
    "api:retraining_again": "retraining",
    "api:retraining_promote": "retraining",
    "api:member": "colleague",
    "api:invitation": "invitation",
    "api:delivery": "delivery",
    "api:prompt_set": "prompt_set",
    "api:comparison_ratings": "comparison",
    "api:comparison": "comparison",
    "api:comparison_recipe": "comparison",
    "api:comparison_stop": "comparison",
    "api:comparison_measure": "comparison",
    "api:comparison_seeds": "comparison",
    "api:trial": "trial",
    "api:trial_stop": "trial",
    "api:trial_beside": "trial",
    "api:talk": "talk",
    "api:vote": "vote",
}
# Addresses whose object is named by the query or the form instead: what is sent, by the id.
QUERY_OBJECTS = {
    ("usage:invoice", "GET"): ("client", lambda pk: {"client": pk}),
    ("traffic:list", "GET"): ("client", lambda pk: {"client": pk}),
    ("traffic:table", "GET"): ("client", lambda pk: {"client": pk}),
    ("projects:new", "POST"): ("client", lambda pk: {"client": pk, "name": "New"}),
    ("people:invite", "POST"): ("client", lambda pk: {"role": "viewer", "sees": "some", "clients": pk, "days": "7"}),
    ("datasets:new", "GET"): ("project", lambda pk: {"project": pk}),
    ("datasets:new", "POST"): ("project", lambda pk: {"project": pk}),
    ("datasets:mix", "GET"): ("project", lambda pk: {"project": pk}),
    ("datasets:mix", "POST"): ("project", lambda pk: {"project": pk}),
    ("datasets:mix_preview", "POST"): ("project", lambda pk: {"project": pk}),
    ("datasets:fetch", "POST"): ("project", lambda pk: {"project": pk, "from": "object"}),
    ("adapters:new", "GET"): ("project", lambda pk: {"project": pk}),
    ("uploads:create", "POST"): ("project", lambda pk: {"project": pk}),
    ("runs:new", "GET"): ("project", lambda pk: {"project": pk}),
    ("runs:new", "POST"): ("project", lambda pk: {"project": pk, "plugin": "rehearsal"}),
    ("advice:page", "GET"): ("project", lambda pk: {"project": pk}),
    ("advice:panel", "GET"): ("project", lambda pk: {"project": pk}),
    ("advice:survey", "POST"): ("project", lambda pk: {"project": pk}),
    ("comparisons:list", "GET"): ("client", lambda pk: {"client": pk}),
    ("comparisons:new", "GET"): ("project", lambda pk: {"project": pk}),
    ("comparisons:new", "POST"): ("project", lambda pk: {"project": pk}),
    ("comparisons:outlook", "POST"): ("project", lambda pk: {"project": pk}),
    ("runs:estimate", "POST"): ("project", lambda pk: {"project": pk, "plugin": "rehearsal"}),
    ("retraining:new", "GET"): ("client", lambda pk: {"client": pk}),
    ("retraining:new", "POST"): ("client", lambda pk: {"client": pk}),
    ("retraining:outlook", "POST"): ("client", lambda pk: {"client": pk}),
    ("answers:list", "GET"): ("deployment", lambda pk: {"deployment": pk}),
    ("answers:add", "POST"): ("dataset", lambda pk: {"dataset": pk}),
    ("settings:index", "GET"): ("deployment", lambda pk: {"deployment": pk}),
    ("deployments:new", "GET"): ("project", lambda pk: {"project": pk}),
    ("deployments:new", "POST"): ("project", lambda pk: {"project": pk, "slug": "new"}),
    ("deliveries:new", "GET"): ("release", lambda pk: {"release": pk}),
    ("deliveries:new", "POST"): ("release", lambda pk: {"release": pk, "days": "7"}),
    ("prompts:list", "GET"): ("client", lambda pk: {"client": pk}),
    ("prompts:new", "GET"): ("client", lambda pk: {"client": pk}),
    ("prompts:new", "POST"): ("client", lambda pk: {"client": pk, "name": "New", "prompts": "Why?"}),
    ("trials:list", "GET"): ("client", lambda pk: {"client": pk}),
    ("trials:new", "GET"): ("prompt_set", lambda pk: {"set": pk}),
    ("trials:new", "POST"): ("prompt_set", lambda pk: {"set": pk}),
    ("releases:new", "GET"): ("artifact", lambda pk: {"artifact": pk}),
    ("releases:new", "POST"): ("artifact", lambda pk: {"artifact": pk, "task": "replies"}),
    ("serving:playground", "GET"): ("artifact", lambda pk: {"artifact": pk}),
    ("serving:choices", "GET"): ("client", lambda pk: {"client": pk}),
    ("serving:column", "GET"): ("artifact", lambda pk: {"column": f"adapter:{pk}"}),
    ("serving:talks", "GET"): ("client", lambda pk: {"client": pk}),
    ("serving:talks", "POST"): ("artifact", lambda pk: {"column": f"adapter:{pk}", "turns": "[]"}),
    ("serving:votes", "GET"): ("client", lambda pk: {"client": pk}),
    ("serving:votes", "POST"): ("artifact", lambda pk: {"column": f"adapter:{pk}", "prompt": "Hi", "answer": "Hello."}),
    ("serving:votes_export", "GET"): ("client", lambda pk: {"client": pk}),
    ("serving:keep", "POST"): ("dataset", lambda pk: {"dataset": pk, "target": "base:", "messages": KEPT}),
    ("serving:chat", "POST"): ("artifact", lambda pk: {"target": f"adapter:{pk}", "messages": [{"role": "user", "content": "Hi"}]}),
}
OTHER_PARTS = {"api:artifact_file": {"name": "adapter_config.json"}, "plugins:detail": {"name": "rehearsal"}, "setup": {"token": "wrong"}}
OTHER_PARTS |= {name: {"token": "wrong"} for name in ("delivery", "delivery_file")}
OTHER_PARTS |= {"invitation": {"token": "wrong"}}
OTHER_PARTS |= {"lineage:row": {"number": 1}, "api:dataset_row_lineage": {"index": 0}}
OTHER_PARTS |= {name: {"provider_id": "company"} for name in ("openid_connect_login", "openid_connect_callback")}
OTHER_PARTS |= {"account_reset_password_from_key": {"uidb36": "1", "key": "wrong"}}
OTHER_PARTS |= {"api_openai:model": {"name": "nowhere/wrong"}}  # whose a name is, is asked by tests of the endpoint's own
# One's own account: whose row it is, is asked by tests of their own.
OWN = ("account:session_end", "account:disconnect", "mfa_edit_webauthn", "mfa_remove_webauthn")
OTHER_PARTS |= {name: {"pk": 404} for name in OWN}
OBJECTS = PAGE_OBJECTS | API_OBJECTS
SHARED = {"base", "connection", "erasure", "rate"}
"""Belongs to no client: whoever is in the workspace, and no guest, may have it."""
NEVER_ARCHIVED = SHARED | {"key", "colleague", "invitation"}
"""Is not put away with a client."""
WORLDS = ("acme", "globex", "archived", "rival", "nowhere")
WORDS = {"globex": GLOBEX, "archived": ARCHIVED, "rival": RIVAL}
EVERYWHERE = ("acme", "globex", "archived")
"""The worlds of the workspace."""


@dataclass
class Person:
    """Who asks, and what the policy table should therefore let them do."""

    browser: Browser
    member: Member | None = None
    scopes: list[str] | None = None
    reaches: tuple[str, ...] = EVERYWHERE
    """The worlds whose things they may meet."""
    narrow: list[Client] | None = None
    """The clients that their key is narrowed to."""
    headers: dict[str, str] = field(default_factory=dict)
    tries: tuple[str, ...] = ()
    """Methods that they try besides those of the table."""

    def may(self, action: str) -> bool:
        if self.member is None or action not in ROLE_ACTIONS[self.member.role]:
            return False
        return self.scopes is None or any(action in SCOPE_ACTIONS[scope] for scope in self.scopes)


def signed_in(member: Member, reaches: tuple[str, ...]) -> Person:
    opened = browser()
    opened.force_login(member.user)
    return Person(opened, member, None, reaches)


def with_key(member: Member, scopes: list[str], reaches: tuple[str, ...], *, narrow: list[Client] | None = None, **columns: Any) -> Person:
    secret = make_key(member, scopes=scopes, clients=narrow, **columns)
    works = Person(browser(), member, scopes, reaches, narrow, {"Authorization": f"Bearer {secret}"})
    return Person(works.browser, headers=works.headers) if columns else works


EVERY_SCOPE = list(SCOPE_ACTIONS)
MEMBERS: dict[str, tuple[str, str]] = {
    "admin": ("admin", "everywhere"),
    "member": ("member", "everywhere"),
    "viewer": ("viewer", "everywhere"),
    "admin of one client": ("admin", "acme"),
    "member of one client": ("member", "acme"),
    "member of another client": ("member", "globex"),
    "guest of one client": ("guest", "acme"),
    "guest": ("guest", "nowhere"),
}
"""Role, and the world that they are assigned to."""
KEYS: dict[str, dict[str, Any]] = {
    **{f"for {scope}": {"scopes": [scope]} for scope in EVERY_SCOPE},
    "of one client": {"narrow": "acme"},
    "revoked": {"revoked_at": timezone.now()},
    "expired": {"expires_at": timezone.now()},
}
"""Keys of an admin."""


def person(kind: str, who: str, town: Town) -> Person:
    """Somebody with what they are signed in with: a `session` for pages, a `key` for the API."""
    if who == "nobody":
        return Person(browser(), headers={"Authorization": "Bearer as_nothing"} if kind == "key" else {})
    if who in ("stranger", "owner"):
        member, reaches = (town.rival.owner, ("rival",)) if who == "stranger" else (town.acme.owner, EVERYWHERE)
    else:
        role, world = MEMBERS.get(who, ("admin", "everywhere"))
        clients = [getattr(town, world).client] if world in WORDS or world == "acme" else []
        member = make_member(town.acme.workspace, role=role, email="somebody@example.com", clients=clients)
        reaches = EVERYWHERE if world == "everywhere" else (world,) if clients else ()
    if kind == "session":
        return signed_in(member, reaches)
    options = dict(KEYS.get(who, {}))
    if narrow := options.pop("narrow", None):
        return with_key(member, EVERY_SCOPE, (narrow,), narrow=[getattr(town, narrow).client])
    found = with_key(member, options.pop("scopes", EVERY_SCOPE), reaches, **options)
    if who not in ("of somebody removed", "of somebody inactive"):
        return found
    if who == "of somebody removed":
        member.delete()
    else:
        User.objects.filter(pk=member.user_id).update(is_active=False)
    return Person(found.browser, headers=found.headers)


WITH_A_SESSION = ["nobody", "stranger", "owner", *MEMBERS]
WITH_A_KEY = ["nobody", "stranger", "owner", *MEMBERS, *KEYS, "of somebody removed", "of somebody inactive"]
TRY_EVERYTHING = {"nobody", "stranger", "owner", "guest", "for read"}
"""Who tries every method on every address; the others try those that it has."""


def patterns(resolver: Any = None, namespaces: tuple[str, ...] = ()) -> Any:
    for entry in (resolver or get_resolver()).url_patterns:
        if isinstance(entry, URLResolver):
            yield from patterns(entry, (*namespaces, entry.namespace) if entry.namespace else namespaces)
        elif isinstance(entry, URLPattern):
            yield ":".join((*namespaces, entry.name or "without a name")), entry


def test_every_address_is_in_the_table_and_the_table_names_no_other():
    names = {name for name, _ in patterns()}
    assert names == set(ROUTES)


def test_every_action_of_the_table_is_known_and_is_some_roles():
    actions = {action for methods in ROUTES.values() for action in methods.values()} | set(SOCKETS.values())
    known = set.union(*ROLE_ACTIONS.values())
    assert actions - {PUBLIC, SIGNED_IN} <= known
    assert set.union(*SCOPE_ACTIONS.values()) <= known


def test_every_address_with_an_object_in_it_is_tried_below():
    for name, entry in patterns():
        parts = set(entry.pattern.converters)
        tried = {"pk": 0} if name in OBJECTS else {}
        assert parts == set(tried) | set(OTHER_PARTS.get(name, {})), f"{name} has parts that no test fills"


def test_every_websocket_is_in_the_table_and_the_table_names_no_other():
    routes = {str(entry.pattern) for entry in websocket_urlpatterns if entry.callback.consumer_class is not Nowhere}
    assert routes == set(SOCKETS)


def pk_of(town: Town, world: str, what: str, who: Person) -> str:
    if world == "nowhere":
        return str(2**40) if what == "colleague" else str(uuid.uuid4())
    if what == "key":
        # A key is its maker's alone: the one who asks has one in their own world, everybody else's is another's.
        mine = who.member is not None and world in who.reaches[:1]
        maker = who.member if mine else getattr(town, "rival" if world == "rival" else "acme").owner
        make_key(maker, scopes=["read"], name=f"{world}secret", clients=who.narrow if mine else None)
        return str(maker.keys.latest("created_at").pk)
    thing = getattr(town, world).version.dataset if what == "dataset" else getattr(getattr(town, world), what)
    return str(thing.pk)


CHANGES = {
    "api:run": {"priority": "low"},
    "api:member": {"role": "viewer"},
    "api:project_gate": {"approvals": 1},
    "api:release": {"notes": "New."},
    "api:key": {"at_once": 5},
    "api:project_keeping": {"days": 30},
    "api:synthesis_rows": {"number": 1, "state": "accepted"},
}
"""What a PATCH says where a name is none of its business."""


def body_of(name: str, method: str) -> dict[str, Any]:
    """A request that would do something, so that a refusal is about who asks."""
    if name == "api:dataset_versions" and method == "POST":
        return {"data": {"file": SimpleUploadedFile("rows.jsonl", b'{"text": "one"}')}}
    if name.startswith("api:") and method in ("POST", "PATCH"):
        changes = CHANGES.get(name, {"name": "Renamed"})
        return {"data": json.dumps(changes if method == "PATCH" else {}), "content_type": "application/json"}
    return {}


def ask(who: Person, name: str, method: str, pk: str | None, **headers: str) -> Any:
    parts = OTHER_PARTS.get(name, {}) | ({"pk": pk} if pk and name in OBJECTS else {})
    nowhere = {"api_nowhere": "/api/nowhere", "api_openai:nowhere": "/v1/nowhere"}
    path = nowhere[name] if name in nowhere else reverse(name, kwargs=parts)
    sent = body_of(name, method)
    if pk and name not in OBJECTS:
        fields = named_in_query(name, method)[1](pk)
        sent = {"data": json.dumps(fields), "content_type": "application/json"} if name == "serving:chat" else {"data": fields}
        if name == "uploads:create":
            path, sent = f"{path}?project={pk}", {}
    with transaction.atomic():
        response = getattr(who.browser, method.lower())(path, headers=who.headers | headers, **sent)
        response.text_body = body(response).decode(errors="replace")
        if method not in READS:
            transaction.set_rollback(True)  # the next one asks on the same ground
    who.browser.cookies.pop("messages", None)
    return response


def body(response: Any) -> bytes:
    if not response.streaming:
        return bytes(response.content)

    async def everything() -> bytes:
        return b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(everything)() if response.is_async else b"".join(response.streaming_content)


def action_of(name: str, method: str) -> str | None:
    """The API answers HEAD only where the table says so; a page answers it wherever it answers GET."""
    asked = "GET" if method == "HEAD" and not name.startswith("api") else method
    return ROUTES[name].get(asked)


def browser() -> Browser:
    """A bug shall be an answer 500, so that all wrongs are told at once."""
    return Browser(raise_request_exception=False)


def expected(who: Person, name: str, method: str, reached: bool) -> set[int] | str:
    """The statuses that are right; "done" stands for whatever a permitted request may be answered with."""
    action, api = action_of(name, method), name.startswith("api")
    if action == PUBLIC:
        return "done"
    if who.member is None:
        return {401} if api else {302}
    if action is None:
        return {405}
    if action == SIGNED_IN:
        return {404} if name == "api:api-root" else "done"  # there is nothing to see at the root
    if name.startswith("api_openai:") and not who.may(action):
        return {403}  # as OpenAI says it of a key; nothing is told that the key's holder does not know
    return "done" if who.may(action) and reached else {404}


def plain(body: str, pk: str) -> str:
    """A body without what differs from one answer to the next by itself; a member's small number may be any other."""
    return re.sub(r'(csrfmiddlewaretoken" value=|csrf-token" content=)"[^"]*"', "", body.replace(pk, "ID") if len(pk) == 36 else body)


def named_in_query(name: str, method: str) -> Any:
    return QUERY_OBJECTS.get((name, "GET" if method == "HEAD" else method), (None, None))


def thing_of(name: str, method: str) -> str | None:
    return OBJECTS.get(name) or named_in_query(name, method)[0]


BY_SCRIPT = {"HX-Request": "true"}
"""Whatever is no page to look at is asked for as a script does: then the palette, most of a page's work, is not drawn once more."""
ABOUT_ONESELF = {name for name, methods in ROUTES.items() if SIGNED_IN in methods.values() and not name.startswith("api")}
"""Whether there is such a thing at all, a second factor for instance, depends on one's own account."""


def wrongs(who: Person, town: Town, name: str) -> Any:
    """What is wrong with the answers of one address to one person, in words."""
    for method in dict.fromkeys((*ROUTES[name], "HEAD", *who.tries)):
        what, action, refused = thing_of(name, method), action_of(name, method), {}
        for world in WORLDS if what and action else ("acme",):
            if (what == "key" and world == "globex") or (what in NEVER_ARCHIVED and world == "archived"):
                continue
            pk = pk_of(town, world, what, who) if what else None
            shared = what in SHARED and world in EVERYWHERE and not set(who.reaches).isdisjoint(EVERYWHERE)
            reached = not what or shared or (world in who.reaches and (world != "archived" or action in ON_ARCHIVED))
            right = expected(who, name, method, reached)
            response = ask(who, name, method, pk, **({} if method == "GET" and right == "done" else BY_SCRIPT))
            told = f"{method} {name} on {world}: {response.status_code}"
            if right == "done":
                refusals = {401, 405} | (
                    set() if name in ABOUT_ONESELF else {403} if action == PUBLIC or name == "api_openai:model" else {403, 404}
                )
                if response.status_code in refusals or response.status_code >= 500:
                    yield told
            elif response.status_code not in right:
                yield f"{told}, not {right}"
            for hidden, word in WORDS.items():
                if hidden not in who.reaches and word.lower() in response.text_body.lower():
                    yield f"{told} names {word}"
            if right == {404} and world in ("archived", "rival", "nowhere"):
                refused[world] = (plain(response.text_body, pk or ""), response.headers.get("Content-Type"))
        if len(set(refused.values())) > 1:
            yield f"{method} {name}: what is foreign differs from what is nowhere"


OF_ONES_OWN = {"logout", "workspaces:switch", "workspaces:new"}
"""About one's own session and workspaces, whatever one is in them: they have tests of their own."""
PAGES = sorted(name for name in ROUTES if not name.startswith("api") and name not in OF_ONES_OWN)
API = sorted(name for name in ROUTES if name.startswith("api"))


@pytest.fixture(scope="module")
def settled(django_db_setup, django_db_blocker, redis_server, tmp_path_factory) -> Iterator[tuple[Town, Path]]:
    """The town is built once, in a transaction that all tests of this file stand in; its files are copied for each."""
    folder = tmp_path_factory.mktemp("town")
    with django_db_blocker.unblock(), override_settings(DATA_DIR=folder), transaction.atomic():
        make_slot()
        yield make_town(make_world("ana@example.com", "Acme")), folder
        transaction.set_rollback(True)


@pytest.fixture
def town(settled, db, settings, tmp_path) -> Town:
    """As it was built: what a test changes is taken back."""
    found, folder = settled
    settings.DATA_DIR = tmp_path / "town"
    shutil.copytree(folder, settings.DATA_DIR)
    return found


@pytest.mark.parametrize("name", WITH_A_SESSION)
def test_pages_answer_each_person_as_the_table_says(town, name):
    who = person("session", name, town)
    who.tries = METHODS if name in TRY_EVERYTHING else ()
    assert not (found := [wrong for page in PAGES for wrong in wrongs(who, town, page)]), "\n".join(found)


@pytest.mark.parametrize("name", WITH_A_KEY)
def test_the_api_answers_each_key_as_the_table_says(town, name):
    who = person("key", name, town)
    who.tries = METHODS if name in TRY_EVERYTHING else ()
    assert not (found := [wrong for call in API for wrong in wrongs(who, town, call)]), "\n".join(found)


ASK_AGAIN = ("trials:new", "retraining:new")
"""Forms that are drawn again, with what is missing, where nothing was chosen."""


@pytest.mark.parametrize("typed", ["", "seven", "\x00", "1" * 5000, "-1", "%27"])
def test_an_id_that_is_none_is_not_found_and_no_error(town, typed):
    who = person("session", "owner", town)
    for (name, method), (_, sent) in QUERY_OBJECTS.items():
        fields = sent(typed)
        given = {"data": json.dumps(fields), "content_type": "application/json"} if name == "serving:chat" else {"data": fields}
        address = f"{reverse(name)}?{urlencode(fields)}" if name == "uploads:create" else reverse(name)
        status = getattr(who.browser, method.lower())(address, **given).status_code
        asks_again = name in ASK_AGAIN and method == "POST" and status == 422
        assert status in (400, 404) or (typed == "" and (status < 400 or asks_again)), f"{method} {name}"
