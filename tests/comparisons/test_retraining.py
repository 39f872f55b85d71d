"""Releases trained anew on another base model: which can be, what is refused, and the way from the recipe to a measured candidate."""

import csv
import io
import re
import threading

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from studio.audit.models import AuditRecord
from studio.basemodels.models import BaseModel
from studio.comparisons import retraining as services
from studio.comparisons import retraining_rounds
from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import Options, Portfolio
from studio.comparisons.retraining_chart import chart_of
from studio.comparisons.retraining_matrix import Matrix
from studio.comparisons.retraining_rounds import advance
from studio.datasets.models import Dataset, DatasetVersion
from studio.errors import UserError
from studio.orders.kinds import KINDS
from studio.orders.models import Order
from studio.releases import staging
from studio.releases.models import Evaluation, Gate, Release
from studio.runs.models import Run
from studio.serving import deploying
from studio.workspaces.models import Client, Member
from studio.workspaces.services import archive_client, create_client, create_project
from tests.fixtures import (
    Api,
    World,
    make_artifact,
    make_base_model,
    make_deployment,
    make_key,
    make_member,
    make_order,
    make_release,
    make_run,
    make_version,
    make_world,
    work_off,
)
from tests.releases.conftest import FIGURES

pytestmark = pytest.mark.usefixtures("slot")


def another_base(owner: Member, name: str = "Newer 1B") -> BaseModel:
    made = make_base_model(owner, name=name)
    BaseModel.objects.filter(pk=made.pk).update(sha256="9" * 64)
    made.refresh_from_db()
    return made


def in_use(world: World, release: Release, *, slug: str = "support") -> Release:
    """Approved, and a deployment answers with it."""
    Release.objects.filter(pk=release.pk).update(stage="approved")
    release.refresh_from_db()
    deploying.promote(world.owner, make_deployment(release.project, release=None, slug=slug), release=release)
    return release


def elsewhere(world: World, name: str = "Globex") -> Release:
    """A release that is in use, of another client."""
    project = create_project(world.owner, client=create_client(world.owner, name=name), name="Replies")
    version = make_version(world.owner, project)
    run = make_run(world.owner, project, world.base, version)
    artifact = make_artifact(run.order, project, {"x": name.encode()}, base_model=world.base, dataset_version=version)
    return in_use(world, make_release(world.owner, artifact))


@pytest.fixture
def newer(acme: World) -> BaseModel:
    return another_base(acme.owner)


@pytest.fixture
def used(acme: World) -> Release:
    """Its run was a rehearsal."""
    return in_use(acme, make_release(acme.owner, acme.artifact))


@pytest.fixture
def ana(acme: World) -> Browser:
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def offered(world: World, base: BaseModel, **options):
    return Portfolio(world.owner, base, Options(**options)).offered


def start(world: World, base: BaseModel, *releases: Release, **options) -> Retraining:
    return services.start(world.owner, base=base, releases=[each.pk for each in releases], options=Options(**options))


def trained(world: World, row: Retrained) -> Retrained:
    """Its run has ended with an adapter on the new base."""
    row.refresh_from_db()
    Order.objects.filter(pk=row.run.order_id).update(status=Order.Status.SUCCEEDED)
    told = {"base_model": row.run.base_model, "dataset_version": row.run.dataset_version}
    make_artifact(row.run.order, row.run.project, {"adapter_model.safetensors": row.pk.bytes}, **told)
    return row


def measure(row: Retrained, **figures) -> None:
    """The evaluation that was asked for ends with these figures."""
    row.refresh_from_db()
    order = row.after.evaluations.get().order
    Order.objects.filter(pk=order.pk).update(status=Order.Status.SUCCEEDED)
    KINDS["evaluation"].succeeded(order, FIGURES | {"before": 1.1} | figures)


def whole(answer) -> str:
    async def everything() -> bytes:
        return b"".join([piece async for piece in answer.streaming_content])

    return async_to_sync(everything)().decode()


BETTER = {"change": -5.0, "low": -7.0, "high": -3.0}
WORSE = {"change": 9.0, "low": 7.0, "high": 11.0}
SAME = {"change": 0.1, "low": -1.0, "high": 1.5}
UNSURE = {"change": 1.0, "low": -6.0, "high": 8.0}


# ── Which can be ──


def test_what_answers_somewhere_is_offered_and_the_newest_that_is_approved_of_other_tasks(acme, newer, used):
    make_release(acme.owner, acme.artifact, version=(0, 1, 0), stage="approved")  # older
    make_release(acme.owner, acme.artifact, version=(1, 5, 0))  # a draft
    higher = make_release(acme.owner, acme.artifact, version=(1, 2, 0), stage="approved")
    other = make_release(acme.owner, acme.artifact, version=(3, 0, 0), stage="approved")
    Release.objects.filter(pk=other.pk).update(task="other")
    found = {each.release: each.is_proposed for each in offered(acme, newer)}
    assert found == {used: True, higher: False, other: True}  # of one task what is in use goes before what is only approved


def test_what_stands_on_the_base_model_already_is_not_offered_also_where_that_was_added_twice(acme, used):
    assert offered(acme, acme.base) == []
    twin = make_base_model(acme.owner, name="Twin")  # the same files
    assert offered(acme, twin) == []


def test_an_uploaded_adapter_has_no_recipe(acme, newer):
    order = make_order(acme.owner, kind="adapter", client=acme.client)
    release = make_release(acme.owner, make_artifact(order, acme.project, {"x": b"1"}, base_model=acme.base), stage="approved")
    (only,) = offered(acme, newer)
    assert (only.release, only.why_not) == (release, "It was uploaded, so nobody here knows how it was trained.")


def test_rows_that_are_held_out_by_now_are_not_trained_on(acme, newer, used):
    Dataset.objects.filter(pk=acme.version.dataset_id).update(held_out=True)
    assert offered(acme, newer)[0].why_not == "Replies is held out by now, so no run may train on it."


def test_a_way_to_train_that_is_gone_is_named(acme, newer, used):
    Run.objects.filter(pk=acme.run.pk).update(plugin="long_gone")
    assert offered(acme, newer)[0].why_not == "It was trained with long_gone, which is not installed any more."


def test_rows_of_another_shape_than_the_way_to_train_reads_are_refused(acme, newer, used):
    facts = acme.version.facts | {"shape": "preference"}
    DatasetVersion.objects.filter(pk=acme.version.pk).update(facts=facts)
    assert offered(acme, newer)[0].why_not.endswith("this dataset has preference rows.")


def test_the_newest_rows_are_taken_where_somebody_wants_that_and_it_is_said(acme, newer, used):
    second = make_version(acme.owner, acme.project, name="Second")
    DatasetVersion.objects.filter(pk=second.pk).update(dataset=acme.version.dataset, number=2)
    assert offered(acme, newer)[0].version == acme.version
    (only,) = offered(acme, newer, rows="newest")
    assert only.version.pk == second.pk
    assert only.changes == ["It learns from Replies v2 instead of version 1."]


def test_a_recipe_is_kept_or_takes_what_suits_the_new_base(acme, newer, used):
    Run.objects.filter(pk=acme.run.pk).update(
        plugin="peft_lora", config={"max_steps": 3, "learning_rate": 5e-3, "max_length": 2048, "rank": 4}
    )
    BaseModel.objects.filter(pk=newer.pk).update(
        facts=newer.facts | {"linears": [{"name": "q_proj", "inputs": 64, "outputs": 64, "count": 2}]}
    )
    (kept,) = offered(acme, newer)
    assert (kept.config["learning_rate"], kept.config["rank"]) == (5e-3, 4)
    assert kept.why_not == "Max length: 2\N{NO-BREAK SPACE}048 is more than this model's 512. Take what suits the new base instead."
    (suited,) = offered(acme, newer, settings="suits")
    assert (suited.config["learning_rate"], suited.config["max_length"], suited.config["rank"]) == (2e-4, 512, 4)
    assert suited.changes[0].startswith("Learning rate was 0.005; it becomes 0.0002, as usual for an adapter")


def test_what_it_would_take_is_told_in_all_and_for_each(acme, newer, used):
    portfolio = Portfolio(acme.owner, newer, Options())
    total = portfolio.total(portfolio.offered)
    assert (total.runs, total.clients, total.unknown) == (1, 1, 0)
    assert total.seconds == portfolio.offered[0].estimate.seconds


# ── Starting ──


def test_starting_puts_a_run_with_the_same_recipe_into_the_queue_behind_daily_work(acme, newer, used):
    before = set(AuditRecord.objects.values_list("pk", flat=True))
    made = start(acme, newer, used, at_night=True)
    row = made.releases.get()
    run = row.run
    assert (run.base_model, run.dataset_version, run.plugin) == (newer, acme.version, "rehearsal")
    assert run.config["max_steps"] == acme.run.config["max_steps"]
    assert (run.order.status, run.order.priority, run.order.at_night) == ("queued", Order.Priority.LOW, True)
    assert (made.client, made.name, row.problem) == (acme.client, "To Newer 1B", "")
    assert [record.verb for record in AuditRecord.objects.exclude(pk__in=before).order_by("pk")] == ["retraining.create", "run.create"]


def test_what_cannot_be_trained_stands_there_with_its_reason_and_the_others_go_on(acme, newer, used):
    other = elsewhere(acme)
    Client.objects.filter(pk=other.project.client_id).update(storage_limit=0)
    made = start(acme, newer, used, other)
    assert made.client is None
    rows = {row.before: row for row in made.releases.select_related("before")}
    assert rows[used].run is not None
    assert rows[other].run is None
    assert "Globex stores" in rows[other].problem
    assert not Run.objects.filter(project=other.project, base_model=newer).exists()


def test_pressed_twice_nothing_is_trained_twice(acme, newer, used):
    start(acme, newer, used)
    with pytest.raises(UserError, match="It is being trained on Newer 1B already, in To Newer 1B"):
        start(acme, newer, used)
    assert Retraining.objects.count() == 1


@pytest.mark.parametrize("releases", [[], ["00000000-0000-4000-8000-000000000000"]])
def test_nothing_and_what_is_not_there_is_refused(acme, newer, releases):
    with pytest.raises(UserError) as refused:
        services.start(acme.owner, base=newer, releases=releases, options=Options())
    assert "releases" in refused.value.fields
    assert not Retraining.objects.exists()


def test_a_base_model_that_is_not_here_yet_is_refused(acme, newer, used):
    newer.facts = None
    with pytest.raises(UserError, match="not here yet"):
        start(acme, newer, used)


def test_a_key_that_trains_and_does_not_release_starts_none(acme, newer, used):
    sent = {"base_model": str(newer.pk), "releases": [str(used.pk)]}
    assert Api(make_key(acme.owner, scopes=["train"])).post("retrainings", sent).status_code == 400
    assert Api(make_key(acme.owner, scopes=["read", "train", "deploy"])).post("retrainings", sent).status_code == 202


# ── Rounds ──


def test_a_run_that_has_ended_becomes_a_candidate_that_is_measured_beside_the_old_one(acme, newer, used):
    Release.objects.filter(pk=used.pk).update(asked_with={"system": "Be kind."})
    row = trained(acme, start(acme, newer, used).releases.get())
    said = advance()
    row.refresh_from_db()
    after = row.after
    assert said == [f"Proposed {after} in place of {used}."]
    assert (after.name, after.stage, after.bump) == ("in-house-first-project-newer-v2.0.0", "candidate", "major")
    assert (after.asked_with, after.artifact.order, after.created_by) == ({"system": "Be kind."}, row.run.order, acme.owner.user)
    evaluation = Evaluation.objects.get(release=after)
    assert (evaluation.against, evaluation.order.status) == (used, "queued")
    assert advance() == []
    assert Release.objects.filter(project=acme.project).count() == 2
    assert acme.project.deployments.get().release == used  # nothing is deployed by itself


def test_without_anything_in_production_it_is_measured_beside_the_release_that_it_replaces(acme, newer):
    release = make_release(acme.owner, acme.artifact, stage="approved")
    Gate.objects.create(project=acme.project, evaluated=True)
    row = trained(acme, start(acme, newer, release).releases.get())
    advance()
    measure(row, **WORSE)
    assert row.after.evaluations.get().against == release
    line = Matrix.of(row.retraining, acme.owner).lines[0]
    assert (line.outcome, line.unmet) == ("worse", [])  # the gate compares with production alone, and there is none


def test_what_a_rehearsal_leaves_is_no_release_and_the_matrix_says_so(acme, newer, used):
    row = start(acme, newer, used).releases.get()
    work_off(row.run.order)
    advance()
    row.refresh_from_db()
    assert row.after is None
    assert row.problem == "A release is made of an adapter or a model that answers; this is a Rehearsal."
    assert advance() == []
    (line,) = Matrix.of(row.retraining, acme.owner).lines
    assert (line.state, line.is_live, line.can_train_again) == ("trained", False, True)


@pytest.mark.parametrize("how", ["gone", "viewer", "narrowed"])
def test_a_release_is_made_in_nobodys_name_who_may_not_make_it(acme, newer, used, how):
    bob = make_member(acme.workspace, role="member", email="bob@example.com")
    made = services.start(bob, base=newer, releases=[used.pk], options=Options())
    row = trained(acme, made.releases.get())
    if how == "gone":
        bob.delete()
    elif how == "viewer":
        Member.objects.filter(pk=bob.pk).update(role="viewer")
    else:
        bob.clients.set([create_client(acme.owner, name="Globex")])
    advance()
    row.refresh_from_db()
    assert row.after is None
    assert "Make one of it yourself" in row.problem


def test_an_archived_client_waits_until_it_is_back(acme, newer):
    other = elsewhere(acme)
    row = trained(acme, start(acme, newer, other).releases.get())
    archive_client(acme.owner, other.project.client)
    assert advance() == []
    Client.objects.filter(pk=other.project.client_id).update(archived_at=None)
    assert len(advance()) == 1
    row.refresh_from_db()
    assert row.after is not None


def test_a_stopped_run_becomes_no_release(acme, newer, used):
    row = trained(acme, start(acme, newer, used).releases.get())
    Order.objects.filter(pk=row.run.order_id).update(status=Order.Status.STOPPED)
    assert advance() == []


def test_what_the_web_process_had_not_begun_a_round_begins(acme, newer, used):
    made = Retraining.objects.create(workspace=acme.workspace, base_model=newer, name="Cut short", created_by=acme.owner.user)
    row = Retrained.objects.create(retraining=made, before=used)
    assert advance() == ["Began 1 run of Cut short."]
    row.refresh_from_db()
    assert row.run.order.status == "queued"


def test_of_very_many_the_request_begins_some_and_rounds_the_others(acme, newer, used, monkeypatch):
    other = elsewhere(acme)
    monkeypatch.setattr(services, "BEGUN_AT_ONCE", 1)
    made = start(acme, newer, used, other)
    assert made.releases.filter(run=None, problem="").count() == 1
    with pytest.raises(UserError, match="already"):
        start(acme, newer, used, other)
    advance()
    assert not made.releases.filter(run=None).exists()


def test_what_cannot_begin_any_more_says_why_and_does_not_wait_for_ever(acme, newer, used):
    made = Retraining.objects.create(workspace=acme.workspace, base_model=acme.base, name="To itself", created_by=acme.owner.user)
    row = Retrained.objects.create(retraining=made, before=used)  # it stands on this base model already
    assert advance() == []
    row.refresh_from_db()
    assert row.problem.startswith("Whoever started this cannot train it on this base model any more.")


def test_one_that_goes_wrong_holds_up_no_other_however_few_have_a_turn(acme, newer, used, monkeypatch):
    monkeypatch.setattr(retraining_rounds, "AT_ONCE", 1)
    for name, options in (("Odd", {"settings": "no such"}), ("Well", {}), ("Odd too", {"settings": "no such"})):
        made = Retraining.objects.create(
            workspace=acme.workspace, base_model=another_base(acme.owner, name), name=name, options=options, created_by=acme.owner.user
        )
        Retrained.objects.create(retraining=made, before=used)
    assert advance() == ["Began 1 run of Well."]
    assert Retrained.objects.filter(run=None, problem="").count() == 2


def test_what_was_stopped_before_it_began_does_not_begin(acme, newer, used):
    made = Retraining.objects.create(workspace=acme.workspace, base_model=newer, name="Cut short", created_by=acme.owner.user)
    row = Retrained.objects.create(retraining=made, before=used)
    (each,) = offered(acme, newer)
    assert services.stop(acme.owner, made) == 1
    services.begin(acme.owner, row, each, made)  # a round had read it before
    row.refresh_from_db()
    assert (row.run, row.problem) == (None, "It was stopped before it began.")


@pytest.mark.django_db(transaction=True)
def test_two_rounds_at_once_make_one_release(queue):
    world = make_world()
    release = in_use(world, make_release(world.owner, world.artifact))
    row = trained(world, start(world, another_base(world.owner), release).releases.get())

    def go() -> None:
        advance()
        connection.close()

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    row.refresh_from_db()
    assert row.after is not None
    assert Release.objects.filter(project=world.project).count() == 2
    assert Evaluation.objects.count() == 1


# ── Matrix ──


@pytest.mark.parametrize(("figures", "outcome"), [(BETTER, "better"), (WORSE, "worse"), (SAME, "same"), (UNSURE, "unsure")])
def test_the_matrix_says_whether_it_is_better(acme, newer, used, figures, outcome):
    Gate.objects.create(project=acme.project, evaluated=True)
    row = trained(acme, start(acme, newer, used).releases.get())
    advance()
    assert Matrix.of(row.retraining, acme.owner).lines[0].unmet[0].why == "It has not been evaluated yet."
    measure(row, **figures)
    matrix = Matrix.of(row.retraining, acme.owner)
    (line,) = matrix.lines
    assert (line.outcome, line.awaits_approval, line.is_live) == (outcome, outcome in ("better", "same"), False)
    words = {"better": "1 better", "worse": "1 worse", "same": "1 not worse", "unsure": "1 that cannot be told"}
    assert matrix.sentence == f"1 of 1 is trained: {words[outcome]}."
    assert chart_of(matrix.lines).whiskers[0].outcome == outcome


def test_the_worst_stand_first_and_filters_show_what_they_say(acme, newer, used, ana):
    made = start(acme, newer, used, elsewhere(acme), elsewhere(acme, "Initech"))
    rows = [trained(acme, row) for row in made.releases.order_by("before__project__client__name")]
    advance()
    for row, figures in zip(rows, (BETTER, WORSE, SAME), strict=True):
        measure(row, **figures)
    matrix = Matrix.of(made, acme.owner)
    assert [line.outcome for line in matrix.shown(sort="worse")] == ["worse", "same", "better"]
    assert [line.outcome for line in matrix.shown(only="worse")] == ["worse"]
    assert matrix.sentence == "3 of 3 are trained: 1 better, 1 not worse, 1 worse."
    page = ana.get(f"/retraining/{made.pk}/?only=worse").content.decode()
    assert page.count("<tr") == 2  # the head, and the one


def test_approved_ones_are_promoted_together_and_only_on_a_press(acme, newer, used):
    other = elsewhere(acme)
    made = start(acme, newer, used, other)
    rows = {row.before_id: trained(acme, row) for row in made.releases.all()}
    advance()
    with pytest.raises(UserError, match="Nothing of it is approved"):
        services.promote_all(acme.owner, made)
    rows[used.pk].refresh_from_db()
    staging.move(acme.owner, rows[used.pk].after, to="approved")
    done, refused = services.promote_all(acme.owner, made)
    assert ([str(place) for place in done], refused) == (["in-house/support"], [])
    assert acme.project.deployments.get().release == rows[used.pk].after
    assert other.deployments.get()  # its own is not approved


def test_the_csv_has_every_release(acme, newer, used, ana):
    made = start(acme, newer, used)
    row = trained(acme, made.releases.get())
    advance()
    measure(row, **BETTER)
    Client.objects.filter(pk=acme.client.pk).update(name="=SUM(A1)")
    answer = ana.get(f"/retraining/{made.pk}/matrix.csv")
    (line,) = csv.DictReader(io.StringIO(whole(answer)))
    assert (line["client"], line["before"], line["outcome"], line["change_percent"]) == ("'=SUM(A1)", used.name, "better", "-5.0")


def test_the_api_has_the_same_matrix(acme, newer, used):
    answer = acme.api.post("retrainings", {"base_model": str(newer.pk), "settings": "suits"})
    assert answer.status_code == 202
    told = answer.json()
    assert [(each["before_name"], each["state"]) for each in told["releases"]] == [(used.name, "waiting")]
    assert told["summary"] == "0 of 1 is trained."
    row = trained(acme, Retrained.objects.get())
    advance()
    measure(row, **SAME)
    (line,) = acme.api.get(f"retrainings/{told['id']}").json()["releases"]
    assert (line["state"], line["outcome"], line["stage"], line["loss_before"]) == ("trained", "same", "candidate", 1.1)
    assert [each["id"] for each in acme.api.get("retrainings").json()["items"]] == [told["id"]]


def test_one_that_failed_is_trained_again_through_the_api(acme, newer, used):
    made = start(acme, newer, used)
    first = made.releases.get().run
    path = f"retrainings/{made.pk}/again"
    assert acme.api.post(path).status_code == 400  # which one
    assert acme.api.post(path, {"release": str(used.pk)}).json()["error"]["message"] == "It is being trained already."
    Order.objects.filter(pk=first.order_id).update(status=Order.Status.FAILED)
    answer = acme.api.post(path, {"release": str(used.pk)})
    assert (answer.status_code, answer.json()["state"], answer.json()["before"]) == (202, "waiting", str(used.pk))
    assert answer.json()["run"] != str(first.pk)
    other = elsewhere(acme)  # a release, and none of this retraining's
    assert acme.api.post(path, {"release": str(other.pk)}).json()["error"]["code"] == "unknown_id"


def test_approved_ones_are_promoted_through_the_api(acme, newer, used):
    made = start(acme, newer, used)
    row = trained(acme, made.releases.get())
    advance()
    assert acme.api.post(f"retrainings/{made.pk}/promote").json()["error"]["message"] == "Nothing of it is approved and not promoted yet."
    row.refresh_from_db()
    staging.move(acme.owner, row.after, to="approved")
    place = acme.project.deployments.get()
    assert acme.api.post(f"retrainings/{made.pk}/promote").json() == {"deployments": [str(place.pk)], "refused": []}
    place.refresh_from_db()
    assert place.release == row.after


# ── Its page ──


def many_waiting(world: World, base: BaseModel, *, count: int) -> Retraining:
    """Releases whose runs wait."""
    made = Retraining.objects.create(workspace=world.workspace, base_model=base, name="Many", created_by=world.owner.user)
    for number in range(count):
        run = make_run(world.owner, world.project, base, world.version, status=Order.Status.QUEUED)
        Retrained.objects.create(retraining=made, before=make_release(world.owner, world.artifact, version=(1, 0, number)), run=run)
    return made


def marks(page: str) -> dict[str, str]:
    return dict(re.findall(r'name="mark" value="(\w+):(\w+)"', page))


def test_the_matrix_is_read_a_page_at_a_time(acme, newer, ana):
    made = many_waiting(acme, newer, count=27)
    page = ana.get(f"/retraining/{made.pk}/").content.decode()
    assert (page.count('<tr id="row-'), "0 of 27 are trained." in page) == (25, True)
    assert "1–25 of 27" in page
    assert 'hx-trigger="every 5s" hx-include="[name=mark]"' in page
    second = ana.get(f"/retraining/{made.pk}/?only=going&page=2").content.decode()
    assert (second.count('<tr id="row-'), "26–27 of 27" in second) == (2, True)
    assert f'href="/retraining/{made.pk}/?only=going&amp;sort=&amp;page=1#matrix-title"' in second
    assert f'hx-get="/retraining/{made.pk}/?only=going&amp;sort=&amp;page=2"' in second
    assert len(list(csv.DictReader(io.StringIO(whole(ana.get(f"/retraining/{made.pk}/matrix.csv")))))) == 27


def test_a_refresh_brings_only_what_has_changed(acme, newer, ana):
    made = many_waiting(acme, newer, count=2)
    address = f"/retraining/{made.pk}/"
    known = marks(ana.get(address).content.decode())
    assert set(known) == {"head", "sum", "chart", "matrix", "promoted"}

    def refreshed():
        return ana.get(address, {"mark": [f"{name}:{digest}" for name, digest in known.items()]}, headers={"HX-Request": "true"})

    assert (refreshed().status_code, refreshed().content) == (204, b"")
    order = made.releases.first().run.order
    Order.objects.filter(pk=order.pk).update(status=Order.Status.RUNNING, done=1, total=4)
    answer = refreshed()
    assert set(marks(answer.content.decode())) == {"matrix"}
    assert b'id="changing-matrix" hx-swap-oob="outerMorph"' in answer.content
    known |= marks(answer.content.decode())
    assert refreshed().status_code == 204
    Order.objects.filter(pk=order.pk).update(done=2)
    assert set(marks(refreshed().content.decode())) == {"matrix"}
    Order.objects.filter(pk__in=made.releases.values("run__order")).update(status=Order.Status.STOPPED)
    assert refreshed().headers["HX-Refresh"] == "true"  # nothing goes on by itself any more


def test_where_something_is_refused_the_page_and_its_links_ask_for_the_matrix(acme, newer, used, ana):
    made = start(acme, newer, used)
    refused = ana.post(f"/retraining/{made.pk}/again/", {"row": str(made.releases.get().pk)})
    page = refused.content.decode()
    assert refused.status_code == 422
    assert f'hx-get="/retraining/{made.pk}/?only=&amp;sort=&amp;page=1"' in page
    asked = re.findall(r'(?:href|hx-get)="([^"]*\?only=[^"]*)"', page)
    assert len(asked) > 2
    for address in asked:
        assert ana.get(address.replace("&amp;", "&")).status_code == 200
    assert 'href="?' not in page


def test_the_button_that_stops_the_rest_may_come_by_a_refresh_and_finds_its_dialog(acme, newer, used, ana):
    made = start(acme, newer, used)
    row = trained(acme, made.releases.get())  # a release of it is still to come
    address = f"/retraining/{made.pk}/"
    page = ana.get(address).content.decode()
    assert 'data-open="stop-retraining"' not in page
    assert 'id="stop-retraining"' in page
    Order.objects.filter(pk=row.run.order_id).update(status=Order.Status.QUEUED)
    refreshed = ana.get(address, {"mark": "head:none"}, headers={"HX-Request": "true"}).content.decode()
    assert 'data-open="stop-retraining"' in refreshed
    Order.objects.filter(pk=row.run.order_id).update(status=Order.Status.STOPPED)
    assert "stop-retraining" not in ana.get(address).content.decode()  # nothing goes on


def test_the_matrix_asks_as_often_for_many_releases_as_for_few(acme, newer, used, ana):
    def queries(many: int) -> int:
        project, base = acme.project, another_base(acme.owner, name=f"Base {many}")
        Gate.objects.update_or_create(project=project, defaults={"evaluated": True, "approvals": 1})
        made = Retraining.objects.create(workspace=acme.workspace, base_model=base, name="Many", created_by=acme.owner.user)
        for number in range(many):
            run = make_run(acme.owner, project, base, acme.version)
            artifact = make_artifact(run.order, project, {"x": run.pk.bytes}, base_model=base, dataset_version=acme.version)
            before = make_release(acme.owner, artifact, version=(many, number, 1))
            after = make_release(acme.owner, artifact, version=(many, number, 2), stage="candidate")
            make_deployment(project, before, slug=f"slot-{many}-{number}")
            order = make_order(acme.owner, kind="evaluation", client=acme.client)
            told = {"dataset_version": acme.version, "order": order, "result": FIGURES | SAME | {"before": 1.0}}
            Evaluation.objects.create(release=after, against=before, **told)
            Retrained.objects.create(retraining=made, before=before, run=run, after=after)
        with CaptureQueriesContext(connection) as asked:
            assert ana.get(f"/retraining/{made.pk}/").status_code == 200
        return len(asked)

    assert queries(2) == queries(7)


# ── Whose ──


@pytest.fixture
def two(acme, newer, used):
    """A retraining of two clients' releases, and somebody who sees only the second one."""
    other = elsewhere(acme)
    made = start(acme, newer, used, other)
    bob = make_member(acme.workspace, role="member", email="bob@example.com", clients=[other.project.client])
    return made, other, bob


def test_people_narrowed_to_a_client_see_retrain_and_stop_only_theirs(acme, newer, used, two):
    made, other, bob = two
    assert [line.row.before for line in Matrix.of(made, bob).lines] == [other]
    opened = Browser()
    opened.force_login(bob.user)
    assert "In-house" not in opened.get(f"/retraining/{made.pk}/").content.decode()
    assert "In-house" not in opened.get("/retraining/").content.decode()
    assert "In-house" not in opened.get(f"/retraining/new/?base={newer.pk}").content.decode()
    with pytest.raises(UserError, match="not here"):
        services.start(bob, base=newer, releases=[used.pk], options=Options())
    services.stop(bob, made)
    made.refresh_from_db()
    assert made.stopped_at is None  # the other client's goes on
    assert {row.before: row.run.order.status for row in made.releases.all()} == {used: "queued", other: "stopped"}


def test_one_that_has_nothing_of_mine_is_not_there(acme, two):
    made, _, _ = two
    third = create_client(acme.owner, name="Initech")
    eve = make_member(acme.workspace, role="member", email="eve@example.com", clients=[third])
    opened = Browser()
    opened.force_login(eve.user)
    assert opened.get(f"/retraining/{made.pk}/").status_code == 404
    assert "To Newer" not in opened.get("/retraining/").content.decode()


def test_the_rest_is_stopped_and_what_is_trained_goes_on(acme, newer, used, two):
    made, other, _ = two
    rows = {row.before_id: row for row in made.releases.all()}
    trained(acme, rows[used.pk])
    assert services.stop(acme.owner, made) == 1
    made.refresh_from_db()
    assert made.stopped_at is not None
    assert AuditRecord.objects.get(verb="retraining.stop").change == {"runs": [1, 0]}
    assert len(advance()) == 1
    with pytest.raises(UserError, match="Nothing of it is on its way"):
        services.stop(acme.owner, made)
    assert other.deployments.get().release == other


def test_one_that_failed_is_trained_again_by_the_same_recipe(acme, newer, used, ana):
    made = start(acme, newer, used)
    row = made.releases.get()
    first = row.run
    sent = {"row": str(row.pk)}
    assert ana.post(f"/retraining/{made.pk}/again/", sent).status_code == 422  # it still waits
    Order.objects.filter(pk=first.order_id).update(status=Order.Status.FAILED)
    assert ana.post(f"/retraining/{made.pk}/again/", sent).status_code == 302
    row.refresh_from_db()
    assert row.run != first
    assert (row.run.config, row.run.order.status) == (first.config, "queued")


def test_what_a_release_came_of_is_not_trained_again(acme, newer, used):
    row = trained(acme, start(acme, newer, used).releases.get())
    advance()
    row.refresh_from_db()
    with pytest.raises(UserError, match="A release came of it already"):
        services.again(acme.owner, row)


def test_the_form_shows_what_it_would_take_before_anything_is_started(acme, newer, used, ana):
    page = ana.get(f"/retraining/new/?base={newer.pk}").content.decode()
    assert used.name in page
    assert f'value="{used.pk}" id="release-{used.pk}" checked' in page
    total = ana.post("/retraining/new/outlook/", {"base": str(newer.pk), "shown": str(used.pk)}, headers={"HX-Request": "true"})
    assert b"<dt>Runs</dt><dd>0</dd>" in total.content
    assert not Retraining.objects.exists()
    assert ana.post("/retraining/new/", {"base": str(newer.pk)}).status_code == 422
    answer = ana.post("/retraining/new/", {"base": str(newer.pk), "release": [str(used.pk)], "settings": "suits", "name": "Spring"})
    made = Retraining.objects.get()
    assert answer.headers["Location"] == f"/retraining/{made.pk}/"
    assert (made.name, made.options["settings"]) == ("Spring", "suits")
    for address in ("/retraining/", f"/retraining/{made.pk}/", f"/base-models/{newer.pk}/", "/deployments/"):
        assert ana.get(address).status_code == 200
