"""What belongs to another workspace or client answers exactly as what does not exist, in every address and every body."""

import base64
import re
import uuid

import pytest
from django.urls import get_resolver
from django.urls.resolvers import URLPattern, URLResolver

from studio.releases.evaluating import request_evaluation
from studio.releases.models import Release
from studio.serving.models import Trial
from studio.workspaces.policy import ROUTES
from tests.fixtures import PIXEL, Api, make_key, make_member, make_order

PATHS = [
    ("get", "clients/{client}"),
    ("patch", "clients/{client}"),
    ("delete", "clients/{client}"),
    ("post", "clients/{client}/restore"),
    ("get", "clients/{client}/logo"),
    ("post", "clients/{client}/logo"),
    ("delete", "clients/{client}/logo"),
    ("get", "clients/{client}/export"),
    ("post", "clients/{client}/erase"),
    ("get", "erasures/{erasure}"),
    ("get", "projects/{project}"),
    ("patch", "projects/{project}"),
    ("get", "base-models/{base}"),
    ("get", "datasets/{dataset}"),
    ("patch", "datasets/{dataset}"),
    ("delete", "datasets/{dataset}"),
    ("get", "datasets/{dataset}/versions"),
    ("post", "datasets/{dataset}/versions"),
    ("get", "dataset-versions/{version}"),
    ("get", "dataset-versions/{version}/rows"),
    ("get", "dataset-versions/{version}/refusals"),
    ("get", "dataset-versions/{version}/rows/0/lineage"),
    ("post", "dataset-versions/{version}/revisions"),
    ("post", "dataset-versions/{version}/restore"),
    ("get", "dataset-versions/{version}/changes"),
    ("post", "dataset-versions/{version}/marks"),
    ("get", "dataset-versions/{version}/writers"),
    ("get", "dataset-versions/{version}/syntheses"),
    ("post", "dataset-versions/{version}/syntheses"),
    ("get", "syntheses/{synthesis}"),
    ("post", "syntheses/{synthesis}/stop"),
    ("get", "syntheses/{synthesis}/rows"),
    ("patch", "syntheses/{synthesis}/rows"),
    ("post", "syntheses/{synthesis}/save"),
    ("get", "dataset-versions/{version}/tokens"),
    ("get", "dataset-versions/{version}/token-view"),
    ("get", "dataset-versions/{version}/export"),
    ("post", "dataset-versions/{version}/splits"),
    ("get", "uploads/{upload}"),
    ("head", "uploads/{upload}"),
    ("get", "uploads/{upload}/preview"),
    ("patch", "uploads/{upload}"),
    ("delete", "uploads/{upload}"),
    ("get", "runs/{run}"),
    ("patch", "runs/{run}"),
    ("get", "runs/{run}/events"),
    ("get", "runs/{run}/events.jsonl"),
    ("get", "runs/{run}/run.yaml"),
    ("post", "runs/{run}/move"),
    ("post", "runs/{run}/discard"),
    ("post", "runs/{run}/stop"),
    ("post", "runs/{run}/pause"),
    ("post", "runs/{run}/resume"),
    ("post", "runs/{run}/clone"),
    ("get", "adapter-uploads/{adapter_upload}"),
    ("get", "artifacts/{artifact}"),
    ("get", "artifacts/{artifact}/download"),
    ("get", "artifacts/{artifact}/files/adapter_config.json"),
    ("get", "artifacts/{artifact}/bundle"),
    ("get", "artifacts/{artifact}/ladder"),
    ("get", "artifacts/{artifact}/build-types"),
    ("get", "base-models/{base}/ladder"),
    ("get", "base-models/{base}/build-types"),
    ("get", "builds/{build}"),
    ("delete", "builds/{build}"),
    ("post", "builds/{build}/stop"),
    ("post", "builds/{build}/retry"),
    ("get", "artifacts/{artifact}/extractions"),
    ("post", "artifacts/{artifact}/extractions"),
    ("get", "extractions/{extraction}"),
    ("post", "extractions/{extraction}/stop"),
    ("get", "surveys/{survey}"),
    ("post", "surveys/{survey}/stop"),
    ("delete", "extractions/{extraction}"),
    ("get", "members/{colleague}"),
    ("patch", "members/{colleague}"),
    ("delete", "members/{colleague}"),
    ("delete", "invitations/{invitation}"),
    ("patch", "keys/{key}"),
    ("delete", "keys/{key}"),
    ("get", "projects/{project}/gate"),
    ("patch", "projects/{project}/gate"),
    ("get", "releases/{release}"),
    ("patch", "releases/{release}"),
    ("post", "releases/{release}/stage"),
    ("post", "releases/{release}/approve"),
    ("post", "releases/{release}/evaluate"),
    ("post", "releases/{release}/evaluate/stop"),
    ("post", "releases/{release}/share"),
    ("get", "prompt-sets/{prompt_set}"),
    ("patch", "prompt-sets/{prompt_set}"),
    ("delete", "prompt-sets/{prompt_set}"),
    ("get", "comparisons/{comparison}"),
    ("patch", "comparisons/{comparison}"),
    ("delete", "comparisons/{comparison}"),
    ("get", "comparisons/{comparison}/comparison.yaml"),
    ("post", "comparisons/{comparison}/stop"),
    ("post", "comparisons/{comparison}/measure"),
    ("post", "comparisons/{comparison}/seeds"),
    ("get", "comparisons/{comparison}/ratings"),
    ("get", "trials/{trial}"),
    ("get", "trials/{trial}/beside"),
    ("post", "trials/{trial}/stop"),
    ("delete", "trials/{trial}"),
    ("get", "talks/{talk}"),
    ("delete", "talks/{talk}"),
    ("get", "votes/{vote}"),
    ("get", "retrainings/{retraining}"),
    ("post", "retrainings/{retraining}/stop"),
    ("post", "retrainings/{retraining}/again"),
    ("post", "retrainings/{retraining}/promote"),
    ("get", "deliveries/{delivery}"),
    ("delete", "deliveries/{delivery}"),
    ("get", "deployments/{deployment}"),
    ("get", "answers/{kept}"),
    ("post", "answers/{kept}/judge"),
    ("delete", "answers/{kept}"),
    ("get", "projects/{project}/keeping"),
    ("patch", "projects/{project}/keeping"),
    ("delete", "deployments/{deployment}"),
    ("post", "deployments/{deployment}/restore"),
    ("post", "deployments/{deployment}/promote"),
    ("delete", "deployments/{deployment}/canary"),
    ("post", "deployments/{deployment}/rollback"),
    ("post", "deployments/{deployment}/clear"),
]


def ids(world):
    return {
        "client": world.client.pk,
        "logo": world.logo.pk,
        "erasure": world.erasure.pk,
        "project": world.project.pk,
        "base": world.base.pk,
        "dataset": world.version.dataset_id,
        "version": world.version.pk,
        "upload": world.upload.pk,
        "adapter_file": world.adapter_file.pk,
        "adapter_upload": world.adapter_upload.pk,
        "synthesis": world.synthesis.pk,
        "run": world.run.pk,
        "artifact": world.artifact.pk,
        "build": world.build.pk,
        "extraction": world.extraction.pk,
        "survey": world.survey.pk,
        "colleague": world.colleague.pk,
        "invitation": world.invitation.pk,
        "key": world.key.pk,
        "delivery": world.delivery.pk,
        "deployment": world.deployment.pk,
        "release": world.release.pk,
        "prompt_set": world.prompt_set.pk,
        "trial": world.trial.pk,
        "talk": world.talk.pk,
        "vote": world.vote.pk,
        "retraining": world.retraining.pk,
        "comparison": world.comparison.pk,
        "kept": world.kept.pk,
    }


def call(api, method, path):
    if path.endswith("/erase"):
        return api.post(path, {"name": "In-house"})
    if path.endswith("/versions") and method == "post":
        return api.upload(path, b'{"text": "x"}')
    if path.endswith("/beside"):
        return api.get(f"{path}?trial={another_trial(path.split('/')[1])}")
    if path.endswith("/logo") and method == "post":
        return api.upload(path, base64.b64decode(PIXEL), name="logo.png")
    if path.startswith("uploads/") and method in ("head", "patch"):
        sent = api.headers | {"Upload-Offset": "16"}
        return api.browser.generic(method.upper(), f"/api/v1/{path}", "", headers=sent, CONTENT_TYPE="application/offset+octet-stream")
    bodies = {"runs": {"priority": "high"}, "members": {"role": "viewer"}, "syntheses": {"number": 1, "state": "accepted"}}
    bodies["releases"] = {"notes": "New."}
    bodies["keys"] = {"at_once": 5}
    body = bodies.get(path.split("/")[0], {"name": "Taken over"})
    if path.endswith("/keeping") and method == "patch":
        return api.patch(path, {"days": 30})
    if path.endswith("/gate"):
        return getattr(api, method)(path, **({"body": {"approvals": 1}} if method == "patch" else {}))
    if path.endswith(("/evaluate", "/evaluate/stop")):
        begin_evaluation(path.split("/")[1])
    if (said := {"stage": {"to": "approved"}, "approve": {"approves": False}, "share": {}}.get(path.split("/")[-1])) is not None:
        Release.objects.filter(pk=path.split("/")[1]).update(stage="candidate")
        return api.post(path, said)
    if path.endswith("/promote"):
        return api.post(path, {"release": str(approved(path.split("/")[1]))})
    return getattr(api, method)(path, **({"body": body} if method == "patch" else {}))


def begin_evaluation(release):
    """One that is on its way, where there is such a release."""
    if found := Release.objects.filter(pk=release).first():
        request_evaluation(found.project.client.workspace.members.get(role="owner"), found)


def another_trial(trial):
    """One that asked the same set, or an id of nothing."""
    found = Trial.objects.filter(pk=trial).first()
    if found is None:
        return uuid.uuid4()
    order = make_order(found.workspace.members.get(role="owner"), kind="trial", client=found.client)
    same = ("workspace", "client", "name", "prompt_set", "prompts", "columns", "asked_with", "answers")
    return Trial.objects.create(order=order, **{name: getattr(found, name) for name in same}).pk


def approved(deployment):
    """A release that may be promoted to a deployment, or an id of nothing."""
    release = Release.objects.filter(project__deployments=deployment).first()
    if release is None:
        return uuid.uuid4()
    Release.objects.filter(pk=release.pk).update(stage="approved")
    return release.pk


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_an_address_of_another_workspace_is_an_address_of_nothing(acme, rival, method, path):
    foreign = call(acme.api, method, path.format(**ids(rival)))
    missing = call(acme.api, method, path.format(**dict.fromkeys(ids(rival), uuid.uuid4())))
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content == missing.content
    assert call(rival.api, method, path.format(**ids(rival))).status_code < 404


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_member_of_one_client_meets_nothing_of_another(acme, method, path):
    other = acme.api.post("clients", {"name": "Globex"}).json()
    client = acme.workspace.clients.get(pk=other["id"])
    narrow = Api(make_key(make_member(acme.workspace, role="admin", email="max@example.com", clients=[client])))
    expected = 200 if path.startswith("base-models/{base}") else 404  # a base model belongs to no client
    assert call(narrow, method, path.format(**ids(acme))).status_code == expected


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_a_guest_without_a_client_meets_nothing(acme, method, path):
    guest = Api(make_key(make_member(acme.workspace, role="guest", email="gus@example.com")))
    assert call(guest, method, path.format(**ids(acme))).status_code == 404


def bodies(world, acme):
    """(path, body, field) of every id that a body takes; the rest of each body is acme's own."""
    run = {"project": acme.project.pk, "plugin": "rehearsal", "base_model": acme.base.pk, "dataset_version": acme.version.pk}
    estimate = {"plugin": "rehearsal", "base_model": acme.base.pk, "dataset_version": acme.version.pk}
    brought = {"project": acme.project.pk, "base_model": acme.base.pk, "upload": acme.adapter_file.pk}
    compared = {name: pk for name, pk in run.items() if name != "plugin"} | {"arms": [{"plugin": "rehearsal"}] * 2}
    clone = f"runs/{acme.run.pk}/clone"
    mix = {"project": acme.project.pk, "name": "x", "parts": [{"version": acme.version.pk, "times": 1}]}
    talk = {"columns": [f"adapter:{acme.artifact.pk}"], "turns": [{"prompt": "Hi", "answers": [{"text": "Yes."}]}]}
    vote = {"columns": [f"adapter:{acme.artifact.pk}", f"base:{acme.base.pk}"], "prompt": "Hi", "answers": ["Yes.", "No."], "best": 0}
    return [
        ("talks", talk | {"client": world["client"]}, "client"),
        ("talks", talk | {"columns": [f"adapter:{world['artifact']}"]}, "columns"),
        ("votes", vote | {"client": world["client"]}, "client"),
        ("votes", vote | {"columns": [f"adapter:{world['artifact']}", f"base:{acme.base.pk}"]}, "columns"),
        ("projects", {"client": world["client"], "name": "x"}, "client"),
        ("invitations", {"role": "guest", "clients": [world["client"]]}, "clients"),
        ("datasets", {"project": world["project"], "name": "x"}, "project"),
        ("uploads", {"project": world["project"], "filename": "x", "length": 9}, "project"),
        ("uploads/fetch", {"project": world["project"], "key": "a.jsonl"}, "project"),
        (f"datasets/{acme.version.dataset_id}/versions", {"upload": world["upload"]}, "upload"),
        ("estimates", estimate | {"base_model": world["base"]}, "base_model"),
        ("estimates", estimate | {"dataset_version": world["version"]}, "dataset_version"),
        ("surveys", {"base_model": acme.base.pk, "dataset_version": world["version"]}, "dataset_version"),
        ("surveys", {"base_model": world["base"], "dataset_version": acme.version.pk}, "base_model"),
        ("comparisons", compared | {"project": world["project"]}, "project"),
        ("comparisons", compared | {"base_model": world["base"]}, "base_model"),
        ("comparisons", compared | {"dataset_version": world["version"]}, "dataset_version"),
        ("comparisons", compared | {"probe": world["version"]}, "probe"),
        ("comparisons", compared | {"arms": [{"plugin": "rehearsal", "base_model": world["base"]}] * 2}, "arms"),
        ("comparisons", compared | {"arms": [{"plugin": "rehearsal", "dataset_version": world["version"]}] * 2}, "arms"),
        ("runs", run | {"project": world["project"]}, "project"),
        ("runs", run | {"base_model": world["base"]}, "base_model"),
        ("runs", run | {"dataset_version": world["version"]}, "dataset_version"),
        (clone, {"changes": {"base_model": world["base"]}}, "base_model"),
        (clone, {"changes": {"dataset_version": world["version"]}}, "dataset_version"),
        ("artifacts", brought | {"project": world["project"]}, "project"),
        ("artifacts", brought | {"base_model": world["base"]}, "base_model"),
        ("artifacts", brought | {"upload": world["adapter_file"]}, "upload"),
        ("builds", {"artifact": world["artifact"], "quantization": "q8_0"}, "artifact"),
        ("builds", {"base_model": world["base"], "quantization": "q8_0"}, "base_model"),
        ("builds", {"base_model": acme.base.pk, "project": world["project"], "quantization": "q8_0"}, "project"),
        ("releases", {"project": world["project"], "artifact": acme.artifact.pk}, "project"),
        ("releases", {"project": acme.project.pk, "artifact": world["artifact"]}, "artifact"),
        ("retrainings", {"base_model": world["base"]}, "base_model"),
        ("retrainings", {"base_model": acme.newer.pk, "releases": [world["release"]]}, "releases"),
        ("retrainings", {"base_model": acme.newer.pk, "client": world["client"]}, "client"),
        (f"retrainings/{acme.retraining.pk}/again", {"release": world["release"]}, "release"),
        ("deliveries", {"release": world["release"]}, "release"),
        ("deliveries", {"release": acme.release.pk, "build": world["build"]}, "build"),
        ("deployments", {"project": world["project"], "slug": "x"}, "project"),
        ("keys", {"name": "x", "deployments": [world["deployment"]]}, "deployments"),
        (f"deployments/{acme.deployment.pk}/promote", {"release": world["release"]}, "release"),
        ("mixes", mix | {"project": world["project"]}, "project"),
        ("mixes", mix | {"dataset": world["dataset"]}, "dataset"),
        ("mixes", mix | {"parts": [{"version": world["version"], "times": 1}]}, "parts"),
    ]


def plain(value):
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else str(value)


def test_an_id_of_another_workspace_in_a_body_is_an_id_of_nothing(acme, rival, slot):
    nothing = dict.fromkeys(ids(rival), uuid.uuid4())
    for (path, foreign, field), (_, missing, _) in zip(bodies(ids(rival), acme), bodies(nothing, acme), strict=True):
        refused, unknown = acme.api.post(path, plain(foreign)), acme.api.post(path, plain(missing))
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unknown_id"), path
        assert list(refused.json()["error"]["fields"]) == [field]
        assert refused.content == unknown.content


def test_filters_by_another_workspace_find_nothing(acme, rival):
    for path in (
        "projects?client={client}",
        "datasets?project={project}",
        "uploads?project={project}",
        "runs?project={project}",
        "artifacts?run={run}",
        "builds?artifact={artifact}",
        "builds?project={project}",
        "builds?base_model={base}",
        "releases?project={project}",
        "releases?client={client}",
        "releases?artifact={artifact}",
        "retrainings?client={client}",
        "retrainings?base_model={base}",
        "deliveries?client={client}",
        "deliveries?release={release}",
        "talks?client={client}",
        "votes?client={client}",
        "answers?project={project}",
        "answers?deployment={deployment}",
        "answers?release={release}",
        "deployments?project={project}",
        "deployments?client={client}",
    ):
        assert acme.api.get(path.format(**ids(rival))).json() == {"items": [], "next": None}


def test_no_list_names_anything_of_another_workspace(acme, rival):
    strange = [str(value) for name, value in ids(rival).items() if name != "colleague"] + [rival.colleague.user.email]  # not a small number
    for path in (
        "clients",
        "projects",
        "datasets",
        "uploads",
        "base-models",
        "runs",
        "artifacts",
        "builds",
        "releases",
        "retrainings",
        "deliveries",
        "deployments",
        "answers",
        "talks",
        "votes",
        "votes/standings",
        "members",
        "invitations",
        "audit",
    ):
        text = acme.api.get(path).content.decode()
        assert not [value for value in strange if value in text], path


def patterns(resolver=None, namespaces=()):
    for entry in (resolver or get_resolver("studio.api.urls")).url_patterns:
        if isinstance(entry, URLResolver):
            yield from patterns(entry, (*namespaces, entry.namespace) if entry.namespace else namespaces)
        elif isinstance(entry, URLPattern):
            yield ":".join((*namespaces, entry.name or "?")), entry


def test_every_address_of_the_api_stands_in_the_policy_table_and_in_these_tests():
    routes = dict(patterns())
    assert set(routes) <= set(ROUTES)
    assert {name for name in ROUTES if name.startswith("api") and not name.startswith("api_openai")} == set(routes)
    tested = {re.sub(r"\{\w+\}", "*", path).replace("adapter_config.json", "*").replace("rows/0/", "rows/*/") for _, path in PATHS}
    addresses = {re.sub(r"<[\w:]+>", "*", str(route.pattern)) for route in routes.values() if "pk" in route.pattern.converters}
    assert addresses == tested
