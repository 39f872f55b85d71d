"""Every request that changes something leaves exactly one audit record, and one that is refused leaves none.

A route whose method is no reading has its example here, or stands in CHANGES_NOTHING with the reason: a new one fails the build until then.
"""

import base64
import io
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.conf import settings as studio_settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client as Browser
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from studio.audit.models import AuditRecord
from studio.comparisons.rating import Question, sealed
from studio.datasets import drafting
from studio.orders.models import Order
from studio.releases.evaluating import request_evaluation
from studio.releases.models import Release
from studio.runs.models import Run
from studio.serving import deploying
from studio.serving.models import Deployment
from studio.workspaces.policy import PUBLIC, ROUTES, SIGNED_IN, VIEWER
from studio.workspaces.services import create_client
from tests.comparisons.house import make_measured
from tests.datasets.test_fetching import Hub, pairs
from tests.fixtures import (
    World,
    make_failed_build,
    make_full_model,
    make_key,
    make_member,
    make_owner,
    make_release,
    make_run,
    make_version,
)

READS = ("GET", "HEAD", "OPTIONS")
ROW = b'{"prompt": "Hi?", "completion": "Hello."}\n'
CHAT = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]


@dataclass
class Sent:
    """A request that really changes something: the object in its address, and what it says."""

    pk: Any = None
    body: Any = None
    """The fields of a page's form, the JSON of a call, or bytes as they are."""
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    """What stands in the address besides an id."""
    form: bool = False
    """A call of the API that sends a form, not JSON."""


# ── What the examples stand on ──


def picture() -> SimpleUploadedFile:
    drawn = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(drawn, "PNG")
    return SimpleUploadedFile("logo.png", drawn.getvalue())


def rows() -> SimpleUploadedFile:
    return SimpleUploadedFile("replies.jsonl", ROW * 4)


def with_factor(acme: World) -> Authenticator:
    """An owner asks for one who has one."""
    made: Authenticator = Authenticator.objects.create(user=acme.owner.user, type="totp", data={"secret": ""})
    return made


def live(thing: Any) -> Any:
    """Its order is at work again, so that it can be stopped."""
    Order.objects.filter(pk=thing.order_id).update(status=Order.Status.RUNNING, ended_at=None)
    return thing.pk


def standing(acme: World, status: str) -> Run:
    """A run that stands where `status` says."""
    return make_run(acme.owner, acme.project, acme.base, acme.version, status=status)


def waiting(acme: World) -> tuple[Run, Run]:
    first, second = standing(acme, Order.Status.QUEUED), standing(acme, Order.Status.QUEUED)
    for rank, run in enumerate((first, second)):
        Order.objects.filter(pk=run.order_id).update(queue="train", rank=rank)
    return first, second


def archived(acme: World) -> Any:
    """A client that is archived already."""
    client = create_client(acme.owner, name="Globex")
    type(client).objects.filter(pk=client.pk).update(archived_at=timezone.now())
    return client.pk


def drafted(acme: World) -> Any:
    """A version of which one row is dropped in the owner's draft."""
    drafting.drop_rows(acme.owner, acme.version, [3])
    return acme.version.pk


def older(acme: World) -> Any:
    """A version that has a newer one."""
    newer = make_version(acme.owner, acme.project, name="Newer")
    type(newer).objects.filter(pk=newer.pk).update(dataset=acme.version.dataset, number=2)
    return acme.version.pk


def beside_held_out(acme: World) -> Any:
    """A version with rows that a held-out set has too."""
    gate = make_version(acme.owner, acme.project, name="Gate").dataset
    type(gate).objects.filter(pk=gate.pk).update(held_out=True)
    return acme.version.pk


def with_file(acme: World) -> Any:
    """A version whose file is kept."""
    name = uuid.uuid4().hex
    folder = Path(studio_settings.DATA_DIR, "uploads")
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(ROW * 4)
    type(acme.version).objects.filter(pk=acme.version.pk).update(upload=name)
    return acme.version.pk


def refused_for_its_columns(acme: World) -> Any:
    """A version that waits for somebody to say what its columns mean."""
    pk = with_file(acme)
    type(acme.version).objects.filter(pk=pk).update(facts=None)
    columns = [["q", "Hi?"], ["a", "Hello."]]
    Order.objects.filter(pk=acme.version.order_id).update(status=Order.Status.FAILED, result={"columns": columns})
    return pk


def decided(acme: World) -> Any:
    """Rows that a model wrote, all accepted."""
    acme.synthesis.rows.update(state="accepted")
    return acme.synthesis.pk


def arriving(acme: World) -> Any:
    return {"project": str(acme.project.pk), "filename": "replies.jsonl", "length": 9}


def tus(acme: World) -> dict[str, str]:
    name = base64.b64encode(b"replies.jsonl").decode()
    return {"Tus-Resumable": "1.0.0", "Upload-Length": "9", "Upload-Metadata": f"filename {name}"}


def failed_anew(acme: World) -> Sent:
    """A release that could not be trained anew, on another base model by now."""
    type(acme.retraining).objects.filter(pk=acme.retraining.pk).update(base_model=acme.newer)
    row = acme.retraining.releases.get()
    type(row).objects.filter(pk=row.pk).update(problem="It was stopped before it began.")
    return Sent(acme.retraining.pk, {"row": str(row.pk)})


def approved_anew(acme: World) -> Any:
    """The old release answers, and the new one is approved."""
    row = acme.retraining.releases.get()
    after = make_release(acme.owner, acme.artifact, version=(8, 0, 0), stage="approved")
    type(row).objects.filter(pk=row.pk).update(after=after)
    Deployment.objects.filter(pk=acme.deployment.pk).update(release=row.before)
    return row.retraining_id


def in_hub(acme: World) -> dict[str, str]:
    return {"project": str(acme.project.pk), "repository": "acme/support", "file": "a.jsonl"}


def going(acme: World) -> Any:
    """A comparison whose runs are done, and which is not measured yet."""
    type(acme.comparison).objects.filter(pk=acme.comparison.pk).update(state="running")
    return acme.comparison.pk


def of_run(acme: World, **more: Any) -> dict[str, Any]:
    named = {"project": acme.project.pk, "base_model": acme.base.pk, "dataset_version": acme.version.pk}
    return {name: str(pk) for name, pk in named.items()} | {"plugin": "rehearsal", "name": "A run"} | more


def about(acme: World) -> dict[str, str]:
    """Which rows, and which base model."""
    return {"project": str(acme.project.pk), "dataset_version": str(acme.version.pk), "base_model": str(acme.base.pk)}


def mixed(acme: World) -> dict[str, Any]:
    return {"project": str(acme.project.pk), "name": "Mix", "parts": [{"version": str(acme.version.pk), "times": 1}]}


def mix_form(acme: World) -> dict[str, Any]:
    key = acme.version.dataset_id
    chosen = {f"use_{key}": "on", f"version_{key}": acme.version.pk, f"amount_{key}": "1", f"unit_{key}": "times"}
    return {"project": acme.project.pk, "name": "Mix", "seed": "42"} | chosen


def approved(acme: World, *, minor: int = 0) -> Release:
    """A release of its artifact that may answer."""
    return make_release(acme.owner, acme.artifact, version=(7, minor, 0), stage="approved")


def answering(acme: World) -> Deployment:
    """A deployment at which one release answers, after another did."""
    for minor in (1, 2):
        deploying.promote(acme.owner, acme.deployment, release=approved(acme, minor=minor))
    return acme.deployment


def tried(acme: World) -> Any:
    """A deployment at which another release gets some of the requests."""
    found = answering(acme)
    deploying.try_canary(acme.owner, found, release=approved(acme, minor=3), percent=10)
    return found.pk


def put_away(acme: World) -> Any:
    deploying.archive(acme.owner, acme.deployment)
    return acme.deployment.pk


def candidate(acme: World) -> Any:
    """A release that waits for approval, and that nobody outside sees yet."""
    type(acme.release).objects.filter(pk=acme.release.pk).update(stage="candidate", shared_at=None)
    return acme.release.pk


def deliverable(acme: World) -> dict[str, Any]:
    """A release that may be handed over, and the file of it."""
    type(acme.release).objects.filter(pk=acme.release.pk).update(stage="approved")
    return {"release": str(acme.release.pk), "build": str(acme.build.pk)}


def measured(acme: World) -> Any:
    """A release whose evaluation is on its way."""
    request_evaluation(acme.owner, acme.release)
    return acme.release.pk


def key_of(acme: World) -> Any:
    make_key(acme.owner)
    return acme.owner.keys.latest("created_at").pk


def voted(acme: World) -> dict[str, Any]:
    return {"column": [f"base:{acme.base.pk}", f"adapter:{acme.artifact.pk}"], "prompt": "Hi?", "answer": ["No.", "Yes."], "best": "1"}


def voted_by_script(acme: World) -> dict[str, Any]:
    sent = voted(acme)
    return {"columns": sent["column"], "prompt": sent["prompt"], "answers": sent["answer"], "best": 1}


def row_form(text: str = "Another answer.") -> dict[str, str]:
    said = [("user", "Question?"), ("assistant", text)]
    form = {
        f"messages-{number}-{part}": value
        for number, pair in enumerate(said)
        for part, value in zip(("role", "content"), pair, strict=True)
    }
    return form | {"do": "save"}


def rated(acme: World) -> Sent:
    """One of two answers found better, by the owner who was asked."""
    make_measured(acme.comparison)
    question = sealed(acme.owner, acme.comparison, Question(0, 0, 1, 1, 1))
    return Sent(acme.comparison.pk, {"question": question, "better": "left"})


# ── One example for each route and method ──

Example = Callable[[World], Sent]
EXAMPLES: dict[tuple[str, str], Example] = {
    ("prompts:new", "POST"): lambda acme: Sent(body={"name": "Support", "prompts": "Where?"}),
    ("prompts:edit", "POST"): lambda acme: Sent(acme.prompt_set.pk, {"do": "rename", "name": "Renamed"}),
    ("prompts:copy", "POST"): lambda acme: Sent(acme.prompt_set.pk),
    ("prompts:delete", "POST"): lambda acme: Sent(acme.prompt_set.pk),
    ("comparisons:rate", "POST"): lambda acme: rated(acme),
    ("shared_rate", "POST"): lambda acme: rated(acme),
    ("comparisons:share", "POST"): lambda acme: Sent(acme.comparison.pk, {"shared": "off"}),
    ("comparisons:new", "POST"): lambda acme: Sent(body=about(acme) | {"ways": ["lora", "full"], "seeds": "1"}),
    ("comparisons:stop", "POST"): lambda acme: Sent(going(acme)),
    ("comparisons:again", "POST"): lambda acme: Sent(acme.comparison.pk),
    ("comparisons:rename", "POST"): lambda acme: Sent(acme.comparison.pk, {"name": "Renamed"}),
    ("comparisons:seeds", "POST"): lambda acme: Sent(acme.comparison.pk),
    ("comparisons:delete", "POST"): lambda acme: Sent(acme.comparison.pk),
    ("api:comparisons", "POST"): lambda acme: Sent(body=about(acme) | {"seeds": [1], "arms": [{"plugin": "rehearsal"}] * 2}),
    ("api:comparison", "PATCH"): lambda acme: Sent(acme.comparison.pk, {"name": "Renamed"}),
    ("api:comparison", "DELETE"): lambda acme: Sent(acme.comparison.pk),
    ("api:comparison_stop", "POST"): lambda acme: Sent(going(acme), {}),
    ("api:comparison_measure", "POST"): lambda acme: Sent(acme.comparison.pk, {}),
    ("api:comparison_seeds", "POST"): lambda acme: Sent(acme.comparison.pk, {"seeds": [5]}),
    ("trials:new", "POST"): lambda acme: Sent(body={"set": acme.prompt_set.pk, "column": [f"base:{acme.base.pk}"]}),
    ("trials:stop", "POST"): lambda acme: Sent(live(acme.trial)),
    ("trials:delete", "POST"): lambda acme: Sent(acme.trial.pk),
    ("api:prompt_sets", "POST"): lambda acme: Sent(body={"name": "Support", "prompts": [{"turns": ["Where?"]}]}),
    ("api:prompt_set", "PATCH"): lambda acme: Sent(acme.prompt_set.pk, {"name": "Renamed"}),
    ("api:prompt_set", "DELETE"): lambda acme: Sent(acme.prompt_set.pk),
    ("api:trials", "POST"): lambda acme: Sent(body={"prompt_set": str(acme.prompt_set.pk), "columns": [f"base:{acme.base.pk}"]}),
    ("api:trial_stop", "POST"): lambda acme: Sent(live(acme.trial)),
    ("api:trial", "DELETE"): lambda acme: Sent(acme.trial.pk),
    ("clients:new", "POST"): lambda acme: Sent(body={"name": "Globex"}),
    ("clients:archive", "POST"): lambda acme: Sent(create_client(acme.owner, name="Globex").pk),
    ("clients:restore", "POST"): lambda acme: Sent(archived(acme)),
    ("clients:export", "POST"): lambda acme: Sent(acme.client.pk),
    ("clients:quotas", "POST"): lambda acme: Sent(acme.client.pk, {"storage_limit": "10"}),
    ("clients:logo", "POST"): lambda acme: Sent(acme.client.pk, {"file": picture()}),
    ("usage:rates", "POST"): lambda acme: Sent(body={"currency": "USD", "storage_price": "0.05"}),
    ("usage:rate_new", "POST"): lambda acme: Sent(body={"kind": "CPU", "per_hour": "1.20", "since": "2026-01-01"}),
    ("usage:rate_remove", "POST"): lambda acme: Sent(acme.rate.pk),
    ("clients:erase", "POST"): lambda acme: Sent(create_client(acme.owner, name="Globex").pk, {"name": "Globex"}),
    ("projects:new", "POST"): lambda acme: Sent(body={"name": "Replies", "client": acme.client.pk}),
    ("settings:second_factor", "POST"): lambda acme: Sent(body={"required": "on"} if with_factor(acme) else {}),
    ("settings:key_new", "POST"): lambda acme: Sent(body={"name": "nightly", "scopes": ["read"]}),
    ("settings:key_limits", "POST"): lambda acme: Sent(key_of(acme), {"at_once": "3"}),
    ("settings:key_revoke", "POST"): lambda acme: Sent(key_of(acme)),
    ("people:change", "POST"): lambda acme: Sent(acme.colleague.pk, {"role": "viewer", "sees": "all"}),
    ("people:remove", "POST"): lambda acme: Sent(acme.colleague.pk),
    ("people:invite", "POST"): lambda acme: Sent(body={"role": "viewer", "sees": "all", "email": "", "days": "7"}),
    ("people:invite_revoke", "POST"): lambda acme: Sent(acme.invitation.pk),
    ("connections:list", "POST"): lambda acme: Sent(body={"kind": "openai", "name": "Big", "url": "https://1.1.1.1/v1", "model": "large"}),
    ("connections:try", "POST"): lambda acme: Sent(acme.connection.pk),
    ("connections:remove", "POST"): lambda acme: Sent(acme.connection.pk),
    ("basemodels:new", "POST"): lambda acme: Sent(body={"source": "hub:acme/tiny"}),
    ("basemodels:stop", "POST"): lambda acme: Sent(live(acme.base)),
    ("basemodels:new_tokens", "POST"): lambda acme: Sent(acme.base.pk, {"tokens": "<acme>"}),
    ("datasets:new", "POST"): lambda acme: Sent(body={"project": acme.project.pk, "name": "New", "file": rows()}),
    ("datasets:version_new", "POST"): lambda acme: Sent(acme.version.dataset_id, {"file": rows()}),
    ("datasets:delete", "POST"): lambda acme: Sent(make_version(acme.owner, acme.project, name="Spare").dataset_id),
    ("datasets:again", "POST"): lambda acme: Sent(with_file(acme)),
    ("datasets:map", "POST"): lambda acme: Sent(refused_for_its_columns(acme), {"column_0": "prompt", "column_1": "completion"}),
    ("datasets:stop", "POST"): lambda acme: Sent(live(acme.version)),
    ("datasets:split", "POST"): lambda acme: Sent(acme.version.pk, {"validation_percent": "25", "seed": "7"}),
    ("datasets:leave_out", "POST"): lambda acme: Sent(beside_held_out(acme)),
    ("datasets:license", "POST"): lambda acme: Sent(acme.version.dataset_id, {"license": "cc-by-4.0"}),
    ("datasets:hold_out", "POST"): lambda acme: Sent(acme.version.dataset_id, {"held_out": "true"}),
    ("datasets:mix", "POST"): lambda acme: Sent(body=mix_form(acme)),
    ("datasets:synthesis_new", "POST"): lambda acme: Sent(acme.version.pk, {"target": "2"}),
    ("datasets:synthesis_stop", "POST"): lambda acme: Sent(live(acme.synthesis)),
    ("datasets:synthesis_decide", "POST"): lambda acme: Sent(acme.synthesis.pk, {"row": "1", "do": "accept"}),
    ("datasets:synthesis_edit", "POST"): lambda acme: Sent(acme.synthesis.pk, {"row": "1"} | row_form()),
    ("datasets:synthesis_save", "POST"): lambda acme: Sent(decided(acme)),
    ("datasets:row_edit", "POST"): lambda acme: Sent(acme.version.pk, row_form(), query="row=1"),
    ("datasets:draft_rows", "POST"): lambda acme: Sent(acme.version.pk, {"do": "drop", "chosen": ["1"]}),
    ("datasets:draft_rule", "POST"): lambda acme: Sent(acme.version.pk, {"finding": "secret", "do": "drop"}),
    ("datasets:draft_save", "POST"): lambda acme: Sent(drafted(acme), {"note": "One less"}),
    ("datasets:draft_discard", "POST"): lambda acme: Sent(drafted(acme)),
    ("datasets:mark", "POST"): lambda acme: Sent(acme.version.pk, {"do": "star:1"}),
    ("datasets:restore", "POST"): lambda acme: Sent(older(acme)),
    ("datasets:fetch", "POST"): lambda acme: Sent(body=in_hub(acme) | {"from": "hub"}),
    ("adapters:look", "POST"): lambda acme: Sent(acme.adapter_file.pk, {"base_model": acme.base.pk, "name": "Brought"}),
    ("adapters:discard", "POST"): lambda acme: Sent(acme.adapter_file.pk),
    ("extractions:new", "POST"): lambda acme: Sent(make_full_model(acme).pk, {"rank": ["8", "0"]}),
    ("extractions:stop", "POST"): lambda acme: Sent(live(acme.extraction)),
    ("extractions:delete", "POST"): lambda acme: Sent(acme.extraction.pk),
    ("api:artifact_extractions", "POST"): lambda acme: Sent(make_full_model(acme).pk, {"ranks": [8]}),
    ("api:extraction_stop", "POST"): lambda acme: Sent(live(acme.extraction)),
    ("api:extraction", "DELETE"): lambda acme: Sent(acme.extraction.pk),
    ("advice:survey", "POST"): lambda acme: Sent(body=about(acme)),
    ("advice:survey_stop", "POST"): lambda acme: Sent(live(acme.survey)),
    ("api:surveys", "POST"): lambda acme: Sent(body={"base_model": str(acme.base.pk), "dataset_version": str(acme.version.pk)}),
    ("api:survey_stop", "POST"): lambda acme: Sent(live(acme.survey)),
    ("adapters:stop", "POST"): lambda acme: Sent(live(acme.adapter_upload)),
    ("datasets:upload", "POST"): lambda acme: Sent(acme.upload.pk, {"name": "Fresh"}),
    ("datasets:upload_discard", "POST"): lambda acme: Sent(acme.upload.pk),
    ("uploads:create", "POST"): lambda acme: Sent(body=b"", query=f"project={acme.project.pk}", headers=tus(acme)),
    ("uploads:piece", "DELETE"): lambda acme: Sent(acme.upload.pk, headers={"Tus-Resumable": "1.0.0"}),
    ("runs:new", "POST"): lambda acme: Sent(body=of_run(acme)),
    ("runs:queue_rules", "POST"): lambda acme: Sent(body={"client": acme.client.pk, "run_limit": "2"}),
    ("runs:stop", "POST"): lambda acme: Sent(live(acme.run), {"discard": "1"}),
    ("runs:pause", "POST"): lambda acme: Sent(standing(acme, Order.Status.QUEUED).pk),
    ("runs:resume", "POST"): lambda acme: Sent(standing(acme, Order.Status.PAUSED).pk),
    ("runs:move", "POST"): lambda acme: Sent(waiting(acme)[0].pk, {"before": ""}),
    ("runs:when", "POST"): lambda acme: Sent(standing(acme, Order.Status.QUEUED).pk, {"priority": "2"}),
    ("runs:discard", "POST"): lambda acme: Sent(standing(acme, Order.Status.PAUSED).pk),
    ("builds:new", "POST"): lambda acme: Sent(acme.artifact.pk, {"quantization": "f16"}),
    ("builds:base", "POST"): lambda acme: Sent(acme.base.pk, {"quantization": "f16", "project": acme.project.pk}),
    ("builds:stop", "POST"): lambda acme: Sent(live(acme.build)),
    ("builds:retry", "POST"): lambda acme: Sent(make_failed_build(acme.owner, acme.artifact).pk),
    ("builds:delete", "POST"): lambda acme: Sent(make_failed_build(acme.owner, acme.artifact).pk),
    ("projects:gate", "POST"): lambda acme: Sent(acme.project.pk, {"approvals": "2", "margin": "2"}),
    ("releases:new", "POST"): lambda acme: Sent(body={"artifact": acme.artifact.pk}),
    ("releases:stage", "POST"): lambda acme: Sent(acme.release.pk, {"to": "candidate"}),
    ("releases:approve", "POST"): lambda acme: Sent(candidate(acme), {"approves": "false", "comment": "Too long."}),
    ("releases:evaluate", "POST"): lambda acme: Sent(acme.release.pk),
    ("releases:stop_evaluation", "POST"): lambda acme: Sent(measured(acme)),
    ("releases:share", "POST"): lambda acme: Sent(candidate(acme)),
    ("releases:edit", "POST"): lambda acme: Sent(acme.release.pk, {"notes": "Shorter answers."}),
    ("deliveries:new", "POST"): lambda acme: Sent(body=deliverable(acme) | {"days": "7"}),
    ("deliveries:revoke", "POST"): lambda acme: Sent(acme.delivery.pk),
    ("deployments:new", "POST"): lambda acme: Sent(body={"project": acme.project.pk, "slug": "night"}),
    ("retraining:new", "POST"): lambda acme: Sent(body={"base": str(acme.newer.pk), "release": [str(acme.release.pk)]}),
    ("retraining:stop", "POST"): lambda acme: Sent(acme.retraining.pk),
    ("retraining:again", "POST"): lambda acme: failed_anew(acme),
    ("retraining:promote", "POST"): lambda acme: Sent(approved_anew(acme)),
    ("api:retrainings", "POST"): lambda acme: Sent(body={"base_model": str(acme.newer.pk), "releases": [str(acme.release.pk)]}),
    ("api:retraining_stop", "POST"): lambda acme: Sent(acme.retraining.pk, {}),
    ("api:retraining_again", "POST"): lambda acme: Sent(failed_anew(acme).pk, {"release": str(acme.release.pk)}),
    ("api:retraining_promote", "POST"): lambda acme: Sent(approved_anew(acme), {}),
    ("deployments:promote", "POST"): lambda acme: Sent(acme.deployment.pk, {"release": approved(acme).pk}),
    ("deployments:canary", "POST"): lambda acme: Sent(tried(acme), {"canary_percent": "0"}),
    ("deployments:rollback", "POST"): lambda acme: Sent(answering(acme).pk),
    ("deployments:clear", "POST"): lambda acme: Sent(answering(acme).pk),
    ("deployments:archive", "POST"): lambda acme: Sent(acme.deployment.pk),
    ("deployments:restore", "POST"): lambda acme: Sent(put_away(acme)),
    ("answers:judge", "POST"): lambda acme: Sent(acme.kept.pk, {"thumb": "1"}),
    ("answers:add", "POST"): lambda acme: Sent(body={"dataset": acme.version.dataset_id, "answer": acme.kept.pk}),
    ("answers:delete", "POST"): lambda acme: Sent(acme.kept.pk),
    ("answers:setting", "POST"): lambda acme: Sent(acme.project.pk, {"days": "30"}),
    ("api:answer_judge", "POST"): lambda acme: Sent(acme.kept.pk, {"correction": "On Monday."}),
    ("api:answer", "DELETE"): lambda acme: Sent(acme.kept.pk),
    ("api:project_keeping", "PATCH"): lambda acme: Sent(acme.project.pk, {"days": 30}),
    ("serving:keep", "POST"): lambda acme: Sent(body={"dataset": acme.version.dataset_id, "target": "base:", "messages": json.dumps(CHAT)}),
    ("serving:talks", "POST"): lambda acme: Sent(body={"column": f"adapter:{acme.artifact.pk}", "turns": json.dumps(acme.talk.turns)}),
    ("serving:talk_delete", "POST"): lambda acme: Sent(acme.talk.pk),
    ("serving:votes", "POST"): lambda acme: Sent(body=voted(acme)),
    ("api:talks", "POST"): lambda acme: Sent(body={"columns": [f"adapter:{acme.artifact.pk}"], "turns": acme.talk.turns}),
    ("api:talk", "DELETE"): lambda acme: Sent(acme.talk.pk),
    ("api:votes", "POST"): lambda acme: Sent(body=voted_by_script(acme)),
    ("api:keys", "POST"): lambda acme: Sent(body={"name": "nightly", "scopes": ["read"]}),
    ("api:key", "PATCH"): lambda acme: Sent(key_of(acme), {"at_once": 3}),
    ("api:key", "DELETE"): lambda acme: Sent(key_of(acme)),
    ("api:clients", "POST"): lambda acme: Sent(body={"name": "Globex"}),
    ("api:client", "PATCH"): lambda acme: Sent(acme.client.pk, {"name": "Renamed"}),
    ("api:client", "DELETE"): lambda acme: Sent(create_client(acme.owner, name="Globex").pk),
    ("api:client_logo", "POST"): lambda acme: Sent(acme.client.pk, {"file": picture()}, form=True),
    ("api:client_logo", "DELETE"): lambda acme: Sent(acme.logo.client_id),
    ("api:client_restore", "POST"): lambda acme: Sent(archived(acme), {}),
    ("api:client_erase", "POST"): lambda acme: Sent(create_client(acme.owner, name="Globex").pk, {"name": "Globex"}),
    ("api:member", "PATCH"): lambda acme: Sent(acme.colleague.pk, {"role": "viewer"}),
    ("api:member", "DELETE"): lambda acme: Sent(acme.colleague.pk),
    ("api:invitations", "POST"): lambda acme: Sent(body={"role": "viewer"}),
    ("api:invitation", "DELETE"): lambda acme: Sent(acme.invitation.pk),
    ("api:projects", "POST"): lambda acme: Sent(body={"client": str(acme.client.pk), "name": "Replies"}),
    ("api:project", "PATCH"): lambda acme: Sent(acme.project.pk, {"name": "Renamed"}),
    ("api:base_models", "POST"): lambda acme: Sent(body={"source": "hub:acme/tiny"}),
    ("api:datasets", "POST"): lambda acme: Sent(body={"project": str(acme.project.pk), "name": "New"}),
    ("api:dataset", "PATCH"): lambda acme: Sent(acme.version.dataset_id, {"name": "Renamed"}),
    ("api:dataset", "DELETE"): lambda acme: Sent(make_version(acme.owner, acme.project, name="Spare").dataset_id),
    ("api:dataset_versions", "POST"): lambda acme: Sent(acme.version.dataset_id, {"file": rows()}, form=True),
    ("api:dataset_revisions", "POST"): lambda acme: Sent(acme.version.pk, {"dropped": [1]}),
    ("api:dataset_restore", "POST"): lambda acme: Sent(older(acme), {}),
    ("api:dataset_marks", "POST"): lambda acme: Sent(acme.version.pk, {"rows": [1]}),
    ("api:dataset_splits", "POST"): lambda acme: Sent(acme.version.pk, {"validation_percent": 25}),
    ("api:mixes", "POST"): lambda acme: Sent(body=mixed(acme)),
    ("api:artifacts", "POST"): lambda acme: Sent(
        body={"project": acme.project.pk, "base_model": acme.base.pk, "file": SimpleUploadedFile("adapter.zip", b"PK")}, form=True
    ),
    ("api:uploads", "POST"): lambda acme: Sent(body=arriving(acme)),
    ("api:upload_fetch", "POST"): lambda acme: Sent(body=in_hub(acme)),
    ("api:upload", "DELETE"): lambda acme: Sent(acme.upload.pk),
    ("api:dataset_syntheses", "POST"): lambda acme: Sent(acme.version.pk, {"target": 2}),
    ("api:synthesis_stop", "POST"): lambda acme: Sent(live(acme.synthesis), {}),
    ("api:synthesis_rows", "PATCH"): lambda acme: Sent(acme.synthesis.pk, {"number": 1, "state": "accepted"}),
    ("api:synthesis_save", "POST"): lambda acme: Sent(decided(acme), {}),
    ("api:runs", "POST"): lambda acme: Sent(body=of_run(acme, config={"max_steps": 3})),
    ("api:run", "PATCH"): lambda acme: Sent(standing(acme, Order.Status.QUEUED).pk, {"priority": "high"}),
    ("api:run_stop", "POST"): lambda acme: Sent(live(acme.run), {}),
    ("api:run_pause", "POST"): lambda acme: Sent(standing(acme, Order.Status.QUEUED).pk, {}),
    ("api:run_resume", "POST"): lambda acme: Sent(standing(acme, Order.Status.PAUSED).pk, {}),
    ("api:run_discard", "POST"): lambda acme: Sent(standing(acme, Order.Status.PAUSED).pk, {}),
    ("api:run_move", "POST"): lambda acme: Sent(waiting(acme)[0].pk, {}),
    ("api:run_clone", "POST"): lambda acme: Sent(acme.run.pk, {"changes": {"name": "Again"}}),
    ("api:queue_rules", "PATCH"): lambda acme: Sent(body={"run_limit": 3}),
    ("api:project_gate", "PATCH"): lambda acme: Sent(acme.project.pk, {"approvals": 2}),
    ("api:releases", "POST"): lambda acme: Sent(body={"project": str(acme.project.pk), "artifact": str(acme.artifact.pk)}),
    ("api:release", "PATCH"): lambda acme: Sent(acme.release.pk, {"notes": "Shorter answers."}),
    ("api:release_stage", "POST"): lambda acme: Sent(acme.release.pk, {"to": "candidate"}),
    ("api:release_approve", "POST"): lambda acme: Sent(candidate(acme), {"approves": False}),
    ("api:release_evaluate", "POST"): lambda acme: Sent(acme.release.pk, {}),
    ("api:release_stop_evaluation", "POST"): lambda acme: Sent(measured(acme), {}),
    ("api:release_share", "POST"): lambda acme: Sent(candidate(acme), {}),
    ("api:deliveries", "POST"): lambda acme: Sent(body=deliverable(acme)),
    ("api:delivery", "DELETE"): lambda acme: Sent(acme.delivery.pk),
    ("api:deployments", "POST"): lambda acme: Sent(body={"project": str(acme.project.pk), "slug": "night"}),
    ("api:deployment", "DELETE"): lambda acme: Sent(acme.deployment.pk),
    ("api:deployment_restore", "POST"): lambda acme: Sent(put_away(acme), {}),
    ("api:deployment_promote", "POST"): lambda acme: Sent(acme.deployment.pk, {"release": str(approved(acme).pk)}),
    ("api:deployment_canary", "DELETE"): lambda acme: Sent(tried(acme)),
    ("api:deployment_rollback", "POST"): lambda acme: Sent(answering(acme).pk, {}),
    ("api:deployment_clear", "POST"): lambda acme: Sent(answering(acme).pk, {}),
    ("api:builds", "POST"): lambda acme: Sent(body={"artifact": str(acme.artifact.pk), "quantization": "f16"}),
    ("api:build", "DELETE"): lambda acme: Sent(make_failed_build(acme.owner, acme.artifact).pk),
    ("api:build_stop", "POST"): lambda acme: Sent(live(acme.build), {}),
    ("api:build_retry", "POST"): lambda acme: Sent(make_failed_build(acme.owner, acme.artifact).pk, {}),
}

SEVERAL: dict[tuple[str, str], list[str]] = {
    # A file that is dropped on a project makes a dataset and its first version.
    ("datasets:new", "POST"): ["dataset.create", "dataset.add_version"],
    ("datasets:upload", "POST"): ["dataset.create", "dataset.add_version"],
    ("datasets:mix", "POST"): ["dataset.create", "dataset.add_version"],
    ("api:mixes", "POST"): ["dataset.create", "dataset.add_version"],
    # Each release that is trained anew has a run of its own.
    ("retraining:new", "POST"): ["retraining.create", "run.create"],
    ("api:retrainings", "POST"): ["retraining.create", "run.create"],
    ("retraining:again", "POST"): ["retraining.again", "run.create"],
    ("api:retraining_again", "POST"): ["retraining.again", "run.create"],
    # So has each arm of a comparison, with each seed.
    ("comparisons:new", "POST"): ["comparison.create", *["run.create"] * 2],
    ("api:comparisons", "POST"): ["comparison.create", *["run.create"] * 2],
    ("comparisons:seeds", "POST"): ["comparison.seeds", *["run.create"] * 4],
    ("api:comparison_seeds", "POST"): ["comparison.seeds", *["run.create"] * 2],
}
"""Acts that touch several objects: one record for each, in this order."""

CHANGES_NOTHING: dict[tuple[str, str], str] = {
    **{
        (name, "POST"): "their own account: test_sign_in, test_second_factor and test_sessions look at its records"
        for name, methods in ROUTES.items()
        if name in ("login", "logout") or (name.startswith(("account_", "account:", "mfa_")) and "POST" in methods)
    },
    ("invitation", "POST"): "by somebody who is no member yet: tests/workspaces/test_invitations.py looks at its record",
    ("workspaces:switch", "POST"): "chooses what the session shows",
    ("retraining:outlook", "POST"): "says what would be trained anew, and starts nothing",
    ("workspaces:new", "POST"): "makes another workspace, and stands there: tests/workspaces/test_switching.py looks at its records",
    ("setup", "POST"): "once, before there is a workspace: tests/workspaces/test_setup.py looks at its records",
    ("datasets:mix_preview", "POST"): "shows what a mix would give",
    ("datasets:upload_preview", "POST"): "shows what is in a file",
    ("uploads:piece", "PATCH"): "bytes of an upload that is on record since it began",
    ("api:upload", "PATCH"): "bytes of an upload that is on record since it began",
    ("runs:estimate", "POST"): "estimates",
    ("comparisons:outlook", "POST"): "estimates",
    ("api:estimates", "POST"): "estimates",
    ("serving:chat", "POST"): "asks a model",
    **{(f"api_openai:{name}", "POST"): "asks a model" for name in ("chat_completions", "completions", "embeddings")},
    **{("api_openai:nowhere", method): "is nowhere" for method in ("POST", "PUT", "PATCH", "DELETE")},
    ("shared:sign_off", "POST"): "a guest's alone: tests/releases/test_shared.py looks at its record",
    **{("api_nowhere", method): "is no address" for method in ("POST", "PUT", "PATCH", "DELETE")},
}


def test_every_route_that_changes_something_has_an_example():
    routes = {(name, method) for name, methods in ROUTES.items() for method in methods if method not in READS}
    assert routes - set(EXAMPLES) == set(CHANGES_NOTHING)
    assert set(EXAMPLES) <= routes
    assert set(SEVERAL) <= set(EXAMPLES)


# ── Sending them ──


@pytest.fixture(autouse=True)
def hub(settings: Any) -> Iterator[None]:
    """A hub with one file, for what is fetched from there."""
    server = Hub()
    server.put("a.jsonl", pairs(1))
    settings.HUB_URL = f"http://{server.host}"
    yield
    server.server.shutdown()
    server.server.server_close()


def send(browser: Browser, headers: dict[str, str], name: str, method: str, sent: Sent) -> Any:
    address = reverse(name, kwargs=sent.parts | ({"pk": sent.pk} if sent.pk else {}))
    address += f"?{sent.query}" if "=" in sent.query else ""
    headers = headers | sent.headers
    is_form = sent.form or not name.startswith("api:")
    if method == "POST" and is_form and not isinstance(sent.body, bytes):
        return browser.post(address, sent.body or {}, headers=headers)
    content = sent.body if isinstance(sent.body, bytes) else json.dumps(sent.body) if sent.body is not None else ""
    kind = "application/offset+octet-stream" if isinstance(sent.body, bytes) else "application/json"
    return browser.generic(method, address, content, content_type=kind, headers=headers)


def as_member(member: Any, name: str) -> tuple[Browser, dict[str, str]]:
    """A browser of theirs with what opens the route: a session for pages, a key for the API."""
    browser = Browser()
    if name.startswith("api:"):
        return browser, {"Authorization": f"Bearer {make_key(member)}"}
    browser.force_login(member.user)
    return browser, {}


def verbs(workspace: Any, known: set[int]) -> list[str]:
    return list(AuditRecord.objects.filter(workspace=workspace).exclude(pk__in=known).order_by("pk").values_list("verb", flat=True))


@pytest.mark.parametrize(("name", "method"), EXAMPLES, ids=lambda part: str(part).lower())
def test_what_is_refused_leaves_no_record_and_what_is_done_leaves_one(acme, slot, name, method):
    sent = EXAMPLES[name, method](acme)
    action = ROUTES[name][method]
    if action not in (PUBLIC, SIGNED_IN):
        viewer = make_member(acme.workspace, role="viewer", email="vic@example.com")
        strangers = [(Browser(), {}), as_member(make_owner("zoe@example.org", "Rival"), name)]
        if action not in VIEWER:
            strangers.append(as_member(viewer, name))
        known = set(AuditRecord.objects.values_list("pk", flat=True))
        for browser, headers in strangers:
            send(browser, headers, name, method, sent)
        assert verbs(acme.workspace, known) == []
        if hasattr(sent.body, "get") and hasattr(sent.body.get("file"), "seek"):
            sent.body["file"].seek(0)
    browser, headers = as_member(acme.owner, name)
    known = set(AuditRecord.objects.values_list("pk", flat=True))
    answer = send(browser, headers, name, method, sent)
    assert answer.status_code < 400, answer.content.decode()[-2000:]
    found = verbs(acme.workspace, known)
    expected = SEVERAL.get((name, method))
    assert found == expected if expected else len(found) == 1, Counter(found)
    records = AuditRecord.objects.exclude(pk__in=known)
    key = "test" if name.startswith("api:") else ""
    assert {(record.user_id, record.key, record.ip) for record in records} == {(acme.owner.user_id, key, "127.0.0.1")}
