"""The page and the call that answer "LoRA, QLoRA or full?", and the survey that is asked for from there."""

import math
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db.models import ProtectedError
from django.http import Http404
from django.test import Client as Browser
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.basemodels.models import BaseModel
from studio.comparisons import advising
from studio.comparisons.models import Survey
from studio.comparisons.survey_kind import SurveyKind
from studio.datasets.models import Dataset, DatasetVersion
from studio.errors import UserError
from studio.orders.models import Order, Slot
from studio.training.advisor import advise
from studio.workspaces.models import Rate
from tests.fixtures import make_base_model, make_member, make_order, make_slot, make_version

FACTS = {
    "name": "SmolLM2",
    "parameters": 134_515_008,
    "hidden_size": 576,
    "layers": 30,
    "intermediate_size": 1536,
    "vocabulary": 49152,
    "heads": 9,
    "kv_heads": 3,
    "head_size": 64,
    "context_length": 2048,
    "dtype": "bfloat16",
    "size": 269_000_000,
    "linears": [
        {"name": "q_proj", "inputs": 576, "outputs": 576, "count": 30},
        {"name": "down_proj", "inputs": 1536, "outputs": 576, "count": 30},
    ],
}
SURVEYED = {"rows": 8, "tokens": 400, "loss": 2 * math.log(2), "surprising": 0.25, "rates": {"lora": None}, "seconds": 9.0}


@pytest.fixture
def small(acme):
    """The workspace's base model with the size of a real one."""
    acme.base.facts = acme.base.facts | FACTS
    acme.base.save(update_fields=["facts"])
    return acme


@pytest.fixture
def web(acme):
    found = Browser()
    found.force_login(acme.owner.user)
    return found


def asked(world, **more):
    named = {"project": world.project.pk, "dataset_version": world.version.pk, "base_model": world.base.pk}
    return {name: value if isinstance(value, list) else str(value) for name, value in (named | more).items()}


def measured(world, **columns):
    order = make_order(world.owner, kind="survey", client=world.client)
    return Survey.objects.create(
        **({"dataset_version": world.version, "base_model": world.base, "order": order, "result": SURVEYED} | columns)
    )


def test_the_page_proposes_one_and_shows_all_side_by_side(small, web):
    make_slot()
    page = web.get("/advice/", asked(small)).content.decode()
    assert "LoRA at rank 16." in page
    for title in ("QLoRA, 4 bits", "DoRA", "Full fine-tuning", "In nine rows", "Common GPUs", "What this does not know"):
        assert title in page
    assert page.count("<polyline") == 2
    assert "Hu et al. 2021" in page
    assert "https://arxiv.org/abs/2106.09685" in page


def test_the_button_opens_the_form_of_a_run_filled_in(small, web):
    make_slot()
    response = web.get("/advice/", asked(small))
    query = parse_qs(urlsplit(response.context["start"]).query)
    assert query["plugin"] == ["peft_lora"]
    assert query["dataset_version"] == [str(small.version.pk)]
    form = web.get(response.context["start"])
    assert form.status_code == 200
    assert form.context["form"].plugin_name == "peft_lora"
    compare = web.get(response.context["compare"])
    assert compare.status_code == 200


def test_workers_that_differ_in_a_package_that_counts_stand_apart_and_others_do_not(acme):
    for name, more in (("one", {}), ("two", {"bitsandbytes": "0.49"}), ("three", {"rich": "15"})):
        slot = make_slot()
        packages = {"torch": "2"} | more
        Slot.objects.filter(pk=slot.pk).update(name=name, facts=slot.facts | {"name": name, "packages": packages})
    assert [host.name for host in advising.workers()] == ["one", "two"]


def test_a_rate_that_a_range_test_found_too_high_goes_lower_into_both_forms(small, web):
    make_slot()
    found = {"low": 1e-5, "high": 1e-4, "points": [[1e-3, 1.0]]}
    measured(small, result=SURVEYED | {"rates": {"lora": found}})
    told = web.get("/advice/", asked(small)).context
    assert parse_qs(urlsplit(told["start"]).query)["set_learning_rate"] == ["0.0001"]
    assert parse_qs(urlsplit(told["compare"]).query)["rate_lora"] == ["0.0001"]
    rates = web.get(told["compare"]).context["form"].rates()
    assert {rate["name"]: rate["value"] for rate in rates}["rate_lora"] == "0.0001"


def test_what_matters_changes_what_is_proposed_and_only_the_answer_is_drawn_again(small, web):
    make_slot()
    answer = web.get("/advice/", asked(small, goal="quality", clients=30), headers={"HX-Request": "true"}).content.decode()
    assert "Full fine-tuning." in answer
    assert "30 clients" in answer
    assert "<h1>" not in answer
    odd = web.get("/advice/", asked(small, goal="none", clients="many"))
    assert (odd.context["chosen"].goal, odd.context["chosen"].clients) == ("task", 1)


def test_pages_of_what_it_is_about_lead_to_it_filled_in_for_those_who_may_ask(small, web):
    project, version, base = (f"{name}={pk}" for name, pk in asked(small).items())
    pages = {
        "/comparisons/": "",
        f"/projects/{small.project.pk}/": f"?{project}",
        f"/datasets/versions/{small.version.pk}/": f"?{project}&amp;{version}",
        f"/base-models/{small.base.pk}/": f"?{base}",
        f"/comparisons/new/?{project}": f"?{project}&amp;{version}&amp;{base}",
    }
    for page, query in pages.items():
        assert f'href="/advice/{query}"' in web.get(page).content.decode(), page
    chosen = web.get(f"/advice/?{base}", follow=True).context["chosen"]  # the only project is taken
    assert (chosen.project, chosen.model) == (small.project, small.base)
    viewer = Browser()
    viewer.force_login(make_member(small.workspace, role="viewer", email="vic@example.com").user)
    for page in list(pages)[:-1]:  # the last is not there for them
        seen = viewer.get(page)
        assert seen.status_code == 200
        assert "/advice/" not in seen.content.decode(), page


def test_what_a_worker_costs_stands_beside_the_time(small, web):
    make_slot()
    Rate.objects.create(workspace=small.workspace, kind="CPU", per_hour="1.20", since="2026-01-01")
    response = web.get("/advice/", asked(small))
    lora = response.context["advice"].method("lora").best
    assert lora.cost.high == pytest.approx(1.2 * lora.estimate.seconds.high / 3600)
    assert "Cost" in response.content.decode()


def test_without_a_worker_the_page_says_what_is_not_known(small, web):
    page = web.get("/advice/", asked(small)).content.decode()
    assert "No worker is running" in page
    assert "not known" in page


def test_an_address_without_a_project_asks_for_one_or_takes_the_only_one(small, web):
    assert web.get("/advice/").headers["Location"] == f"/advice/?project={small.project.pk}"
    small.client.projects.create(name="Another", slug="another")
    assert "For which project?" in web.get("/advice/").content.decode()


def test_a_project_without_rows_and_a_workspace_without_a_base_model_are_told_what_is_next(small, web):
    empty = small.client.projects.create(name="Empty", slug="empty")
    assert "Nothing to learn from yet" in web.get("/advice/", {"project": str(empty.pk)}).content.decode()
    BaseModel.objects.update(facts=None)
    assert "No base model yet" in web.get("/advice/", {"project": str(small.project.pk)}).content.decode()


def test_what_is_not_ready_or_held_out_is_refused_in_words(small, web):
    coming = make_base_model(small.owner, name="Coming")
    BaseModel.objects.filter(pk=coming.pk).update(facts=None)
    assert "The base model is not here yet." in web.get("/advice/", asked(small, base_model=coming.pk)).content.decode()
    unread = make_version(small.owner, small.project, name="Unread")
    DatasetVersion.objects.filter(pk=unread.pk).update(facts=None)
    assert "The dataset is not ready." in web.get("/advice/", asked(small, dataset_version=unread.pk)).content.decode()
    Dataset.objects.filter(pk=small.version.dataset_id).update(held_out=True)
    assert small.api.get("advice?" + "&".join(f"{name}={value}" for name, value in asked(small).items())).status_code == 422


def test_ids_of_others_are_not_found(small, web, rival):
    for name, thing in (("project", rival.project), ("dataset_version", rival.version), ("base_model", rival.base)):
        assert web.get("/advice/", asked(small, **{name: thing.pk})).status_code == 404
        assert web.get("/advice/panel/", asked(small, **{name: thing.pk})).status_code == 404
        assert web.post("/advice/survey/", asked(small, **{name: thing.pk})).status_code == 404
    assert web.get("/advice/", asked(small, dataset_version="nothing")).status_code == 404
    assert not Survey.objects.exists()


def test_a_viewer_reads_no_advice_and_starts_no_survey(small):
    viewer = Browser()
    viewer.force_login(make_member(small.workspace, role="viewer", email="vi@example.com").user)
    assert viewer.get("/advice/", asked(small)).status_code == 404
    assert viewer.post("/advice/survey/", asked(small)).status_code == 404


def test_the_form_of_a_run_asks_for_the_panel_which_says_it_in_one_sentence(small, web):
    make_slot()
    form = web.get("/runs/new/", {"project": str(small.project.pk)}).content.decode()
    assert 'hx-get="/advice/panel/"' in form
    panel = web.get("/advice/panel/", asked(small)).content.decode()
    assert "LoRA at rank 16." in panel
    assert "/advice/?project=" in panel
    Dataset.objects.filter(pk=small.version.dataset_id).update(held_out=True)
    assert web.get("/advice/panel/", asked(small)).content.decode().strip() == ""


def test_the_call_answers_the_same_facts(small):
    slot = make_slot()
    found = small.api.get("advice?" + "&".join(f"{name}={value}" for name, value in asked(small, goal="clients", clients=9).items()))
    assert found.status_code == 200, found.content
    said = found.json()
    assert (said["advice"]["goal"], said["advice"]["clients"], said["survey"]) == ("clients", 9, None)
    assert [row["name"] for row in said["advice"]["rows"]][:2] == ["memory", "parameters"]
    assert {finding["key"] for finding in said["literature"]} == set(said["advice"]["sources"])
    hosts = [advising.HostFacts.model_validate(slot.facts)]
    plain = advise(
        small.base.model_facts,
        small.version.dataset_facts(small.base),
        hosts,
        goal="clients",
        clients=9,
        plugins=dict(advising.wanted_plugins()),
    )
    assert said["advice"] == plain.model_dump(mode="json")


def test_a_survey_is_asked_for_once_stopped_and_recorded(small, web):
    answer = web.post("/advice/survey/", asked(small, goal="quality"))
    assert "goal=quality" in answer.headers["Location"]
    assert web.post("/advice/survey/", asked(small)).status_code == 302
    (made,) = Survey.objects.all()
    assert (made.order.kind, made.order.status, made.order.client) == ("survey", "queued", small.client)
    assert AuditRecord.objects.filter(verb="survey.create").count() == 1
    assert "Waiting for a free worker" in web.get("/advice/", asked(small)).content.decode()
    part = web.get("/advice/", asked(small, part="survey"), headers={"HX-Request": "true"})
    assert 'id="survey"' in part.content.decode()
    web.post(f"/advice/surveys/{made.pk}/stop/")
    made.order.refresh_from_db()
    assert not made.order.is_live
    assert AuditRecord.objects.latest("at").verb == "survey.stop"
    ended = web.get("/advice/", asked(small, part="survey"), headers={"HX-Request": "true"})
    assert ended.headers["HX-Refresh"] == "true"


def test_the_newest_survey_of_these_rows_and_this_base_is_used_with_its_age(small, web):
    make_slot()
    measured(small, base_model=make_base_model(small.owner, name="Other"), result=SURVEYED | {"loss": 9.0})
    survey = measured(small)
    DatasetVersion.objects.filter(pk=small.version.pk).update(
        tokens={str(small.base.pk): {"total": 500, "supervised": 200, "p50": 20, "p95": 40, "p99": 50, "longest": 60}}
    )
    response = web.get("/advice/", asked(small))
    page = response.content.decode()
    assert response.context["advised"].survey == survey
    assert "2.0 bits a token, as measured" in page
    assert "Measured here" in page
    assert "now" in page
    measured(small, result=SURVEYED | {"loss": 4.0}, order=make_order(small.owner, kind="survey", client=small.client))
    assert web.get("/advice/", asked(small)).context["advised"].survey != survey


def test_a_survey_that_failed_says_why(small, web):
    order = make_order(small.owner, kind="survey", client=small.client, status=Order.Status.FAILED)
    Order.objects.filter(pk=order.pk).update(error="No room.")
    measured(small, result=None, order=order)
    assert "No room." in web.get("/advice/", asked(small)).content.decode()


def test_what_a_worker_says_of_a_survey_is_judged(small):
    survey, kind = measured(small, result=None), SurveyKind()
    kind.succeeded(survey.order, {})  # it was stopped before it had measured anything
    survey.refresh_from_db()
    assert survey.result is None
    for odd in ({"loss": float("nan")}, {"loss": "much"}, {"surprising": 2}, {"rates": {"lora": {"low": -1, "high": 1, "points": []}}}):
        with pytest.raises(ValueError, match="validation error"):
            kind.succeeded(survey.order, SURVEYED | odd)
    kind.succeeded(survey.order, SURVEYED | {"folder": "/nowhere"})
    survey.refresh_from_db()
    assert survey.result["loss"] == SURVEYED["loss"]


def test_a_survey_through_the_api(small, rival):
    made = small.api.post("surveys", {"dataset_version": str(small.version.pk), "base_model": str(small.base.pk)})
    assert made.status_code == 201, made.content
    assert (made.json()["status"], made.json()["result"]) == ("queued", None)
    assert small.api.get(f"surveys/{made.json()['id']}").json() == made.json()
    assert rival.api.get(f"surveys/{made.json()['id']}").status_code == 404
    assert small.api.post(f"surveys/{made.json()['id']}/stop").json()["status"] == "stopped"


def test_copies_are_counted_once(small):
    DatasetVersion.objects.filter(pk=small.version.pk).update(facts=small.version.facts | {"duplicates": 3})
    small.version.refresh_from_db()
    assert advising.share_of_copies(small.version) == 0.25


def test_workers_of_the_same_kind_are_shown_once(small):
    first = make_slot()
    type(first).objects.create(name="test-2", queue="train", facts=first.facts | {"name": "test-2"}, seen_at=timezone.now())
    larger = first.facts | {"name": "large", "memory": 64 << 30}
    type(first).objects.create(name="large", queue="train", facts=larger, seen_at=timezone.now())
    assert [host.name for host in advising.workers()] == ["large", "test"]


def test_what_a_survey_measured_with_cannot_go_before_it(small):
    base = make_base_model(small.owner, name="Other")
    survey = measured(small, base_model=base, order=make_order(small.owner, kind="survey", client=small.client, status=Order.Status.QUEUED))
    with pytest.raises(ProtectedError):
        base.delete()
    assert str(survey.order.survey) == "Survey of Replies v1 with Other"  # the order knows still what it is about


def test_rows_that_were_deleted_meanwhile_are_not_surveyed(small):
    gone = make_version(small.owner, small.project, name="Gone")
    DatasetVersion.objects.filter(pk=gone.pk).delete()
    with pytest.raises(Http404):
        advising.begin_survey(small.owner, base=small.base, version=gone)
    assert not Order.objects.filter(kind="survey").exists()


# ── Which workers count ──


@pytest.fixture
def two_workers(small):
    """One with a GPU, and one with a processor alone; of each kind there is a second one that says the same."""
    facts = dict(make_slot().facts)
    gpu = facts | {"gpus": [{"name": "RTX 4090", "memory": 24 << 30}], "memory": 64 << 30, "bf16": True, "gflops": 50_000.0}
    for name, told in (("test-2", facts), ("gpu-1", gpu), ("gpu-2", gpu)):
        Slot.objects.create(name=name, queue="train", facts=told | {"name": name}, seen_at=timezone.now())
    return small


def test_all_workers_count_until_somebody_chooses(two_workers, web):
    told = web.get("/advice/", asked(two_workers))
    assert told.context["advice"].hosts == ["gpu-1", "test"]
    assert told.context["advice"].left_out == []
    page = told.content.decode()
    assert page.count('name="worker"') == page.count('name="worker" value="gpu-1"') + page.count('name="worker" value="test"') == 2
    assert "RTX 4090, 26 GB; 1 more like it" in page


def test_only_chosen_workers_count_and_what_was_left_out_is_said(two_workers, web):
    told = web.get("/advice/", asked(two_workers, worker="test"))
    advice = told.context["advice"]
    assert (advice.hosts, advice.left_out) == (["test"], ["gpu-1", "gpu-2"])
    assert {fit.host for method in advice.methods for fit in method.fits} == {"test"}
    assert told.context["memory"].host == "test"
    assert any(sentence.startswith("Whether gpu-1, gpu-2 will train it all the same") for sentence in advice.unknown)
    assert [counts for _, _, counts in told.context["chosen"].kinds] == [False, True]
    assert "worker=test" in web.post("/advice/survey/", asked(two_workers, worker="test")).headers["Location"]
    another = web.get("/advice/", asked(two_workers, worker="gpu-2")).context["advice"]
    assert another.hosts == ["gpu-2"]  # the one that was meant, not the one that it is like


def test_a_worker_that_went_away_counts_no_more_and_that_is_said(two_workers, web):
    Slot.objects.filter(name="test-2").delete()
    told = web.get("/advice/", asked(two_workers, worker=["test-2", "gpu-1"]))
    assert told.context["advice"].hosts == ["gpu-1"]
    assert "Not running now, so left out of this advice." in told.content.decode()
    alone = web.get("/advice/", asked(two_workers, worker="<b>"))
    assert alone.context["advice"].hosts == ["gpu-1", "test"]
    assert "&lt;b&gt;" in alone.content.decode()
    assert "Not running now, so all workers count." in alone.content.decode()


def test_the_panel_chooses_too_and_leads_to_the_page_with_the_choice(two_workers, web):
    panel = web.get("/advice/panel/", asked(two_workers)).content.decode()
    assert 'id="id_advice_worker"' in panel
    chosen = web.get("/advice/panel/", asked(two_workers, worker="test")).content.decode()
    assert '<option value="test" selected>' in chosen
    assert "worker=test" in chosen


def test_the_call_and_the_function_count_only_the_workers_that_are_named(two_workers):
    query = "&".join(f"{name}={value}" for name, value in asked(two_workers).items())
    advice = two_workers.api.get(f"advice?{query}&worker=test&worker=test-2").json()["advice"]
    assert (advice["hosts"], advice["left_out"]) == (["test"], ["gpu-1", "gpu-2"])
    refused = two_workers.api.get(f"advice?{query}&worker=test&worker=gone")
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"]["worker"] == "No worker gone takes runs now. These do: gpu-1, gpu-2, test, test-2."
    case = {"base": two_workers.base, "version": two_workers.version, "goal": "task", "clients": 1}
    assert advising.advice_for(**case, on=["gpu-1"]).advice.hosts == ["gpu-1"]
    assert advising.advice_for(**case).advice.hosts == ["gpu-1", "test"]


def test_a_survey_of_what_is_not_ready_is_refused(small):
    with pytest.raises(UserError):
        BaseModel.objects.filter(pk=small.base.pk).update(facts=None)
        small.base.refresh_from_db()
        advising.begin_survey(small.owner, base=small.base, version=small.version)
    assert not Survey.objects.exists()
