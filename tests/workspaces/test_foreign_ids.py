"""Every field that takes an id, of every form, body and query: what belongs to another client, to another workspace or to nobody is
answered alike, changes nothing, and is never offered.

The fields of pages are read from the pages themselves. Those of the API stand in a table, and a field of its document that the table does
not know fails the build.
"""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from django.apps import apps
from django.db import transaction
from django.test import Client as Browser
from django.urls import reverse

from studio.serving.models import Deployment, PromptSet
from studio.workspaces.models import Client, Project
from studio.workspaces.policy import ROUTES
from tests.fixtures import Api, World, make_key, make_member, make_release
from tests.workspaces.conftest import Town
from tests.workspaces.test_policy import OTHER_PARTS, PAGE_OBJECTS, QUERY_OBJECTS, body

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOKEN = re.compile(r"\b[0-9A-Za-z]{64}\b")
"""Django masks its token anew for each page."""
SAYS_MORE = ("amount_", "unit_", "most_")
"""Beginnings of fields of a mix that say how much of a dataset is taken. Which is taken is said by `use_` and `version_`."""
SELECTORS = (Client, Project, Deployment, PromptSet)
"""Says for whom something is to be: there an owner may choose another client's. A key may ask deployments of several, and a set's client is
whose models are asked."""


# ── What is there, before and after ──


def snapshot() -> dict[str, int]:
    """How many rows each model has; whatever is refused changes none of it."""
    ours = [model for model in apps.get_models() if model.__module__.startswith("studio.")]
    return {model._meta.label: model._base_manager.count() for model in ours}


class Things:
    """Every row with an id, so that an id on a page is known for what it is; and its like in the other worlds."""

    def __init__(self, town: Town):
        self.town = town
        self.models = {model: model.CLIENT for model in apps.get_models() if hasattr(model, "CLIENT")}
        self.known = {str(pk): model for model in self.models for pk in model._base_manager.values_list("pk", flat=True)}

    def like(self, pk: str) -> dict[str, str]:
        """An id of the same kind in the other client (where kinds belong to clients), in the other workspace, and one that is nobody's."""
        model = self.known[pk]
        found = {}
        for name in ("globex", "rival"):
            world: World = getattr(self.town, name)
            if model.CLIENT:
                rows = model._base_manager.filter(**{model.CLIENT: world.client.pk})
            elif name == "rival":
                rows = model._base_manager.filter(**{model.WORKSPACE: world.workspace.pk})
            else:
                continue
            if (other := rows.first()) is not None and str(other.pk) != pk:
                found[name] = str(other.pk)
        return found | {"nobody": str(uuid.uuid4())}

    def of(self, world: World) -> set[str]:
        """The ids of all that is one client's."""
        return {
            str(pk)
            for model, path in self.models.items()
            if path
            for pk in model._base_manager.filter(**{path: world.client.pk}).values_list("pk", flat=True)
        }


# ── The forms of pages ──


@dataclass
class Form:
    method: str
    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    """Each name with a value that is offered, as they would be sent."""

    def ids(self, things: Things) -> list[tuple[int, str]]:
        """(place of the field, the id that stands in its value, or in its name where that alone says something)."""
        places = []
        for at, (name, value) in enumerate(self.fields):
            found = UUID.findall(value) or ([] if name.startswith(SAYS_MORE) else UUID.findall(name))
            places += [(at, pk) for pk in found if pk in things.known]
        return places


class Forms(HTMLParser):
    """The forms of a page with every field that has a name; of a select all its options, of a button its value."""

    def __init__(self, address: str):
        super().__init__()
        self.address, self.found, self.open, self.select = address, [], None, ""
        self.apart: dict[str, Form] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.open = Form(told.get("method", "get").lower(), told.get("action") or self.address)
            self.found.append(self.open)
            self.apart[told.get("id", "")] = self.open
        form = self.apart.get(told["form"]) if told.get("form") else self.open
        if tag == "select":
            self.select = told.get("name", "")
        elif tag == "option" and self.select and form:
            form.fields.append((self.select, told.get("value", "")))
        elif tag in ("input", "button", "textarea") and told.get("name") and form:
            form.fields.append((told["name"], told.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.open = None
        elif tag == "select":
            self.select = ""


def forms_of(page: str, address: str) -> list[Form]:
    reader = Forms(address)
    reader.feed(page)
    return reader.found


def pages(town: Town) -> Iterator[str]:
    """Every page of a thing of acme, and those that a query names it for."""
    for name, methods in ROUTES.items():
        if "GET" not in methods or name.startswith(("api", "account", "mfa", "socialaccount", "openid", "setup", "login", "healthz")):
            continue
        what = PAGE_OBJECTS.get(name)
        if what == "key":
            continue
        parts = dict(OTHER_PARTS.get(name, {}))
        if what:
            thing = town.acme.version.dataset if what == "dataset" else getattr(town.acme, what)
            parts["pk"] = thing.pk
        yield reverse(name, kwargs=parts)
        if (query := QUERY_OBJECTS.get((name, "GET"))) is not None:
            thing = town.acme.version.dataset if query[0] == "dataset" else getattr(town.acme, query[0])
            yield f"{reverse(name, kwargs=parts)}?{'&'.join(f'{key}={value}' for key, value in query[1](thing.pk).items())}"


def opened(browser: Browser, address: str) -> str:
    response = browser.get(address)
    if response.status_code != 200 or response.streaming or not response.get("Content-Type", "").startswith("text/html"):
        return ""
    return response.content.decode()


def sent(browser: Browser, form: Form, at: int, pk: str, other: str) -> tuple[int, str, str]:
    """What the form is answered with where one id is another: status, where to, and the text without that id. Nothing of it stays."""
    chosen: dict[str, list[str]] = {}
    for place, (name, value) in enumerate(form.fields):
        if place == at:
            name, value = name.replace(pk, other), value.replace(pk, other)
        elif name == form.fields[at][0]:  # of a select one option is sent
            continue
        chosen.setdefault(name, []).append(value)
    with transaction.atomic():
        before = snapshot()
        response = getattr(browser, form.method)(form.action.replace(pk, other) if pk in form.action else form.action, chosen)
        text = body(response).decode(errors="replace")
        changed = form.method == "post" and snapshot() != before
        transaction.set_rollback(True)
    browser.cookies.pop("messages", None)
    plain = TOKEN.sub("TOKEN", text).replace(other, "ID").replace(other.replace("-", ""), "ID").replace(other[:8], "ID")
    return response.status_code, response.get("Location", "").replace(other, "ID"), f"{plain} {'and changed something' if changed else ''}"


def bound_to_acme(town: Town) -> Any:
    return make_member(town.acme.workspace, role="admin", email="max@example.com", clients=[town.acme.client])


def signed_in(member: Any) -> Browser:
    opened = Browser(raise_request_exception=False)
    opened.force_login(member.user)
    return opened


def prepared(town: Town) -> Things:
    """Whatever a page may name is there in each world."""
    for world in (town.acme, town.globex, town.rival):
        for name in (
            "upload",
            "synthesis",
            "delivery",
            "deployment",
            "invitation",
            "connection",
            "erasure",
            "colleague",
            "talk",
            "vote",
            "trial",
            "kept",
            "retraining",
            "comparison",
            "newer",
        ):
            assert getattr(world, name)
        world.client.projects.create(name="Another", slug="another")
        type(world.release).objects.filter(pk=world.release.pk).update(stage="approved")
        assert world.evaluation and world.candidate
        make_release(world.owner, world.artifact, version=(1, 0, 1), shared=True, stage="approved")
        assert world.retraining  # of the release that is the newest by now
    return Things(town)


def test_a_form_that_names_what_is_anothers_is_answered_as_one_that_names_nothing(town):
    things, wrong = prepared(town), []
    browser = signed_in(bound_to_acme(town))
    tried = 0
    for address in pages(town):
        for form in forms_of(opened(browser, address), address):
            for at, pk in form.ids(things):
                answers = {name: sent(browser, form, at, pk, other) for name, other in things.like(pk).items()}
                tried += 1
                named = f"{form.method} {form.action} {form.fields[at]} on {address}"
                if len(set(answers.values())) > 1:
                    wrong.append(f"{named}: {[(name, answer[:2]) for name, answer in answers.items()]}")
                if form.method == "post" and any(answer[0] < 400 or answer[2].endswith("changed something") for answer in answers.values()):
                    wrong.append(f"{named} was done: {[(name, answer[:2]) for name, answer in answers.items()]}")
    assert tried > 30
    assert not wrong, "\n".join(wrong)


def test_no_page_shows_or_offers_an_id_of_another_client(town):
    things, found = prepared(town), []
    browser = signed_in(bound_to_acme(town))
    foreign = things.of(town.globex) | things.of(town.rival)
    for address in pages(town):
        if shown := set(UUID.findall(opened(browser, address))) & foreign:
            found.append(f"{address}: {[things.known[pk].__name__ for pk in shown]}")
    assert not found, "\n".join(found)


def test_an_owner_who_sees_every_client_is_offered_for_one_only_what_is_its_own_and_cannot_mix_them(town):
    things, wrong = prepared(town), []
    browser, foreign = signed_in(town.acme.owner), things.of(town.globex)
    tried = 0
    for address in pages(town):
        for form in forms_of(opened(browser, address), address):
            if form.method != "post":
                continue
            for at, pk in form.ids(things):
                model = things.known[pk]
                if model in SELECTORS:
                    continue
                if pk in foreign and not UUID.search(form.action):
                    wrong.append(f"{form.action} on {address} offers a {model.__name__} of another client in {form.fields[at][0]}")
                other = things.like(pk).get("globex")
                if other and pk not in foreign:
                    tried += 1
                    status, _, text = sent(browser, form, at, pk, other)
                    if status < 400 or text.endswith("changed something"):
                        wrong.append(f"{form.action} on {address} took a {model.__name__} of another client in {form.fields[at][0]}")
    assert tried > 5
    assert not wrong, "\n".join(wrong)


# ── The bodies and queries of the API ──


@dataclass
class Call:
    """A request that is right as it stands, and the fields of it that name something: field → what of a world."""

    method: str
    path: str
    body: dict[str, Any]
    ids: dict[str, str]
    alone: tuple[str, ...] = ()
    """Fields that say for whom it is to be: an owner may name another client's there."""


LISTS = {
    "clients": {"after": "client"},
    "projects": {"after": "project", "client": "client"},
    "invitations": {"after": "invitation"},
    "keys": {"after": "key"},
    "base-models": {"after": "base"},
    "datasets": {"after": "dataset", "project": "project"},
    "datasets/{dataset}/versions": {"after": "version"},
    "dataset-versions/{version}/syntheses": {"after": "synthesis"},
    "dataset-versions/{version}/tokens": {"base_model": "base"},
    "dataset-versions/{version}/token-view": {"base_model": "base"},
    "uploads": {"after": "upload", "project": "project"},
    "advice": {"project": "project", "dataset_version": "version", "base_model": "base"},
    "runs": {"after": "run", "project": "project"},
    "comparisons": {"after": "comparison", "project": "project", "client": "client"},
    "artifacts": {"after": "artifact", "project": "project", "run": "run"},
    "artifacts/{artifact}/extractions": {"after": "extraction"},
    "builds": {"after": "build", "artifact": "artifact", "base_model": "base", "project": "project"},
    "releases": {"after": "release", "project": "project", "client": "client", "artifact": "artifact"},
    "retrainings": {"after": "retraining", "client": "client", "base_model": "base"},
    "deliveries": {"after": "delivery", "client": "client", "release": "release"},
    "deployments": {"after": "deployment", "project": "project", "client": "client"},
    "answers": {"after": "kept", "project": "project", "deployment": "deployment", "release": "release"},
    "prompt-sets": {"after": "prompt_set", "client": "client"},
    "trials": {"after": "trial", "client": "client"},
    "trials/{trial}/beside": {"trial": "trial"},
    "talks": {"after": "talk", "client": "client"},
    "votes": {"after": "vote", "client": "client"},
    "votes/standings": {"client": "client"},
    "erasures": {"after": "erasure"},
    "audit": {"client": "client", "object": "run"},
    "usage": {"client": "client"},
    "traffic": {"client": "client", "deployment": "deployment"},
}
"""Queries of GET that name something."""


def calls(acme: World) -> list[Call]:
    """Each body that takes an id, right for acme."""
    project, base, version = str(acme.project.pk), str(acme.base.pk), str(acme.version.pk)
    run = {"project": project, "plugin": "rehearsal", "base_model": base, "dataset_version": version, "config": {"max_steps": 3}}
    of_run = {"project": "project", "base_model": "base", "dataset_version": "version"}
    mix = {"project": project, "name": "Mix", "parts": [{"version": version, "times": 1}]}
    fetch = {"project": project, "connection": str(acme.connection.pk), "key": "a.jsonl"}
    build = {"artifact": str(acme.artifact.pk), "quantization": "f16"}
    made = {"project": project, "artifact": str(acme.artifact.pk), "task": "other"}
    anew = {"base_model": str(acme.newer.pk), "releases": [str(acme.release.pk)], "client": str(acme.client.pk)}
    return [
        Call(
            "post",
            "retrainings",
            anew,
            {"base_model": "base", "releases.[]": "release", "client": "client"},
            alone=("releases.[]", "client"),  # one retraining may be of several clients
        ),
        Call("post", "retrainings/{retraining}/again", {"release": str(acme.release.pk)}, {"release": "release"}),
        Call("post", "projects", {"client": str(acme.client.pk), "name": "x"}, {"client": "client"}, alone=("client",)),
        Call("post", "datasets", {"project": project, "name": "x"}, {"project": "project"}, alone=("project",)),
        Call("post", "datasets/{dataset}/versions", {"upload": str(acme.upload.pk)}, {"upload": "upload"}),
        Call("post", "uploads", {"project": project, "filename": "x", "length": 9}, {"project": "project"}, alone=("project",)),
        Call("post", "uploads/fetch", fetch, {"project": "project", "connection": "connection"}, alone=("project",)),
        Call("post", "mixes", mix, {"project": "project", "parts.[].version": "version"}),
        Call("post", "mixes", mix | {"dataset": str(acme.version.dataset_id)}, {"dataset": "dataset"}),
        Call(
            "post", "dataset-versions/{version}/syntheses", {"target": 2, "writer": f"artifact:{acme.artifact.pk}"}, {"writer": "artifact"}
        ),
        Call(
            "post",
            "estimates",
            {key: run[key] for key in ("plugin", "base_model", "dataset_version")},
            of_run | {"project": ""},
            alone=("dataset_version",),
        ),
        Call("post", "prompt-sets", {"client": str(acme.client.pk), "name": "x", "text": "Why?"}, {"client": "client"}, alone=("client",)),
        Call(
            "post",
            "trials",
            {"prompt_set": str(acme.prompt_set.pk), "columns": [f"adapter:{acme.artifact.pk}"]},
            {"prompt_set": "prompt_set", "columns.[]": "artifact"},
        ),
        Call(
            "post",
            "talks",
            {"client": str(acme.client.pk), "columns": [f"adapter:{acme.artifact.pk}"], "turns": [{"prompt": "Hi", "answers": [None]}]},
            {"client": "client", "columns.[]": "artifact"},
        ),
        Call(
            "post",
            "votes",
            {"client": str(acme.client.pk), "prompt": "Hi", "answers": ["Yes.", "No."], "best": 0}
            | {"columns": [f"adapter:{acme.artifact.pk}", f"base:{acme.base.pk}"]},
            {"client": "client", "columns.[]": "artifact"},
        ),
        Call("post", "runs", run, of_run),
        Call(
            "post",
            "surveys",
            {"base_model": base, "dataset_version": version},
            {"base_model": "base", "dataset_version": "version"},
            alone=("dataset_version",),
        ),
        Call(
            "post",
            "comparisons",
            {name: run[name] for name in ("project", "base_model", "dataset_version")}
            | {"seeds": [1], "probe": version, "arms": [{"plugin": "rehearsal", "base_model": base, "dataset_version": version}] * 2},
            of_run | {"probe": "version", "arms.[].base_model": "base", "arms.[].dataset_version": "version"},
        ),
        Call("post", "runs/{run}/clone", {"changes": {"dataset_version": version, "base_model": base}}, CLONED),
        Call("post", "runs/{run}/move", {"before": str(acme.run.pk)}, {"before": "run"}),
        Call("patch", "queue/rules", {"clients": {str(acme.client.pk): 2}}, {"clients.*": "client"}, alone=("clients.*",)),
        Call("post", "builds", build, {"artifact": "artifact"}, alone=("artifact",)),
        Call("post", "builds", {"base_model": base, "project": project, "quantization": "f16"}, BUILT, alone=("project",)),
        Call("post", "releases", made, {"project": "project", "artifact": "artifact"}),
        Call(
            "post", "releases/{candidate}/approve", {"approves": False, "evaluation": str(acme.evaluation.pk)}, {"evaluation": "evaluation"}
        ),
        Call("patch", "projects/{project}/gate", {"held_out": str(acme.version.dataset_id)}, {"held_out": "dataset"}),
        Call(
            "post", "deliveries", {"release": str(acme.release.pk), "build": str(acme.build.pk)}, {"release": "release", "build": "build"}
        ),
        Call("post", "deployments", {"project": project, "slug": "new"}, {"project": "project"}, alone=("project",)),
        Call("post", "deployments/{deployment}/promote", {"release": str(acme.release.pk)}, {"release": "release"}),
        Call(
            "post",
            "keys",
            {"name": "x", "scopes": ["read"], "clients": [str(acme.client.pk)]},
            {"clients.[]": "client"},
            alone=("clients.[]",),
        ),
        Call(
            "post",
            "keys",
            {"name": "x", "deployments": [str(acme.deployment.pk)]},
            {"deployments.[]": "deployment"},
            alone=("deployments.[]",),
        ),
        Call("post", "invitations", {"role": "viewer", "clients": [str(acme.client.pk)]}, {"clients.[]": "client"}, alone=("clients.[]",)),
        Call(
            "patch",
            "members/{colleague}",
            {"role": "viewer", "clients": [str(acme.client.pk)]},
            {"clients.[]": "client"},
            alone=("clients.[]",),
        ),
    ]


CLONED = {"changes.dataset_version": "version", "changes.base_model": "base"}
BUILT = {"base_model": "base", "project": "project"}
FILES = {("post", "artifacts"): {"project": "project", "base_model": "base", "upload": "upload"}}
"""Forms with a file; tests/artifacts looks at their fields."""
TYPED = {"writer", "object", "person", "clients", "target", "connection"}
"""Names of texts that hold an id among others."""


def thing(world: World, what: str) -> Any:
    if what == "dataset":
        return world.version.dataset
    return world.owner.keys.first() if what == "key" else getattr(world, what)


def fields_of(document: dict[str, Any], schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted name, type) of each value in a body; `[]` stands for the items of a list, `*` for the keys of a mapping."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for way in ("anyOf", "allOf", "oneOf"):
        for part in schema.get(way, []):
            yield from fields_of(document, part, at)
    for name, part in schema.get("properties", {}).items():
        yield from fields_of(document, part, f"{at}.{name}".strip("."))
    if isinstance(schema.get("additionalProperties"), dict):
        yield f"{at}.*", {"type": "string"}
    if schema.get("type") == "array":
        yield from fields_of(document, schema.get("items", {}), f"{at}.[]".strip("."))
    elif schema.get("type") == "string":
        yield at, schema


def is_an_id(name: str, schema: dict[str, Any]) -> bool:
    return schema.get("format") == "uuid" or name.removesuffix(".*").rpartition(".")[2] in TYPED


def test_every_field_of_the_api_that_takes_an_id_is_in_the_tables(town):
    document = town.acme.api.get("openapi.json").json()
    asked = {(call.method, call.path, name) for call in calls(town.acme) for name in call.ids}
    asked |= {("get", path, name) for path, names in LISTS.items() for name in names}
    asked |= {(method, path, name) for (method, path), names in FILES.items() for name in names}
    known, missing = {(method, re.sub(r"\{\w+\}", "{pk}", path), name) for method, path, name in asked}, []
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            schemas = [content["schema"] for content in operation.get("requestBody", {}).get("content", {}).values()]
            found = [pair for schema in schemas for pair in fields_of(document, schema)]
            for part in operation.get("parameters", []):
                if part["in"] == "query":
                    found += [(part["name"], schema) for _, schema in fields_of(document, part["schema"], part["name"])]
            named = {(method, path.removeprefix("/api/v1/"), name) for name, schema in found if is_an_id(name, schema)}
            missing += sorted(named - known)
    assert not missing, "\n".join(map(str, missing))


def with_id(call: Call, name: str, other: str) -> dict[str, Any]:
    """The body with one id replaced."""
    changed: dict[str, Any] = json.loads(json.dumps(call.body))
    here: Any = changed
    *way, last = name.split(".")
    for step in way:
        here = here[0] if step == "[]" else here[step]
    if last == "*":
        value = here.pop(next(iter(here)))
        here[other] = value
    elif last == "[]":
        here[0] = other
    else:
        before = str(here[last])
        here[last] = UUID.sub(other, before)
    return changed


def answered(api: Api, method: str, path: str, other: str, sent: Any = None) -> tuple[int, str]:
    with transaction.atomic():
        response = api.get(path) if method == "get" else getattr(api, method)(path, sent)
        text, changed = response.content.decode().replace(other, "ID"), snapshot() if method != "get" else ""
        transaction.set_rollback(True)
    return response.status_code, f"{text} {changed}"


def others_of(town: Town, what: str) -> dict[str, str]:
    shared = what in ("base", "connection", "key", "erasure")
    worlds = ("rival",) if shared else ("globex", "rival")
    return {name: str(thing(getattr(town, name), what).pk) for name in worlds} | {"nobody": str(uuid.uuid4())}


def filled(path: str, acme: World) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: str(thing(acme, found[1]).pk), path)


def test_an_id_of_another_in_a_body_is_refused_as_one_of_nobody_and_changes_nothing(town):
    prepared(town)
    api, wrong = Api(make_key(bound_to_acme(town))), []
    before = snapshot()
    for call in calls(town.acme):
        for name, what in call.ids.items():
            if not what:
                continue
            path = filled(call.path, town.acme)
            answers = {who: answered(api, call.method, path, pk, with_id(call, name, pk)) for who, pk in others_of(town, what).items()}
            if len(set(answers.values())) > 1 or {answer[0] for answer in answers.values()} - {400, 404, 422}:
                wrong.append(f"{call.method} {call.path} {name}: {[(who, status, text[:160]) for who, (status, text) in answers.items()]}")
    assert not wrong, "\n".join(wrong)
    assert snapshot() == before


def test_an_owner_who_sees_every_client_cannot_mix_them_through_the_api(town):
    prepared(town)
    api, wrong = Api(make_key(town.acme.owner)), []
    before = snapshot()
    for call in calls(town.acme):
        for name, what in call.ids.items():
            if what in ("", "base", "connection") or name in call.alone:
                continue
            other = str(thing(town.globex, what).pk)
            status, text = answered(api, call.method, filled(call.path, town.acme), other, with_id(call, name, other))
            if status not in (400, 404, 422):
                wrong.append(f"{call.method} {call.path} {name}: {status} {text[:160]}")
    assert not wrong, "\n".join(wrong)
    assert snapshot() == before


def test_a_query_by_what_is_anothers_finds_what_a_query_by_nothing_finds(town):
    prepared(town)
    api, wrong = Api(make_key(bound_to_acme(town))), []
    for path, names in LISTS.items():
        for name, what in names.items():
            address = filled(path, town.acme)
            answers = {who: answered(api, "get", f"{address}?{name}={pk}", pk) for who, pk in others_of(town, what).items()}
            if len(set(answers.values())) > 1:
                wrong.append(f"{path}?{name}: {[(who, status, text[:160]) for who, (status, text) in answers.items()]}")
    assert not wrong, "\n".join(wrong)
