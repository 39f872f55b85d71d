"""The pages of traffic: a deployment's, that of all, and its CSV."""

import csv
import io

import pytest
from django.test import Client as Browser

from studio.serving import rollup
from studio.workspaces.services import create_client
from tests.fixtures import make_call, make_deployment, make_member, make_release
from tests.serving.test_traffic import ago


@pytest.fixture
def deployment(acme):
    return make_deployment(acme.project, make_release(acme.owner, acme.artifact, stage="approved"))


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def seen(browser, url):
    answer = browser.get(url)
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_deployment_that_nobody_asked_says_so(ana, deployment):
    assert "No requests yet" in seen(ana, f"/deployments/{deployment.pk}/")


def test_a_deployments_page_tells_its_traffic_the_same_before_and_after_it_is_added_up(ana, deployment):
    for _ in range(19):
        make_call(deployment, at=ago(hours=3))
    make_call(deployment, at=ago(hours=3), status=503, error="no_memory", first=None)
    before = ana.get(f"/deployments/{deployment.pk}/").context["traffic"]
    rollup.roll_up()
    after = ana.get(f"/deployments/{deployment.pk}/").context["traffic"]
    assert before["total"] == after["total"]
    assert before["charts"] == after["charts"]
    page = seen(ana, f"/deployments/{deployment.pk}/")
    assert "No model could answer" in page and "503 no_memory" in page
    assert after["total"].calls == 20 and after["total"].p95 == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("period", ["hour", "day", "week", "month", "century"])
def test_each_period_is_shown_whole(ana, deployment, period):
    make_call(deployment)
    make_call(deployment, at=ago(days=60))
    rollup.roll_up()
    traffic = ana.get(f"/deployments/{deployment.pk}/?period={period}").context["traffic"]
    assert traffic["total"].calls == 1
    assert traffic["charts"][0].columns[-1]["pieces"]


def test_a_canary_that_fails_more_often_is_called_worse(ana, acme, deployment):
    deployment.canary = make_release(acme.owner, acme.artifact, version=(2, 0, 0), stage="approved")
    deployment.canary_percent = 50
    deployment.save()
    for number in range(60):
        make_call(deployment)
        status = 500 if number < 12 else 200
        make_call(deployment, release=deployment.canary, canary=True, status=status)
    page = seen(ana, f"/deployments/{deployment.pk}/")
    assert "The canary does worse: it fails 20 % of its requests, the release 0 %." in page
    answering = ana.get(f"/deployments/{deployment.pk}/").context["traffic"]["answering"]
    assert [(answer.canary, answer.share) for answer in answering] == [(False, 0.5), (True, 0.5)]


def test_all_traffic_is_listed_by_deployment_what_was_asked_most_first(ana, acme, deployment):
    busy = make_deployment(acme.project, deployment.release, slug="busy")
    make_call(deployment, at=ago(hours=2))
    rollup.roll_up()
    for _ in range(3):
        make_call(busy, status=500)
    rows = ana.get("/traffic/").context["rows"]
    assert [(row.name, row.sums.calls) for row, _ in rows] == [("in-house/busy", 3), ("in-house/support", 1)]
    rows = ana.get("/traffic/?sort=errors").context["rows"]
    assert [row.name for row, _ in rows] == ["in-house/support", "in-house/busy"]
    assert "No requests in this time" in seen(ana, "/traffic/?period=hour&client=" + str(busy_free(acme).pk))


def busy_free(acme):
    """A client of whom nothing was asked."""
    return create_client(acme.owner, name="Quiet", slug="quiet")


def test_the_list_as_csv_holds_every_row(ana, deployment):
    make_call(deployment, status=429, error="rate_limit_exceeded")
    answer = ana.get("/traffic/traffic.csv?period=day")
    assert 'filename="traffic-all-day.csv"' in answer["Content-Disposition"]
    (row,) = csv.DictReader(io.StringIO(answer.content.decode()))
    assert (row["deployment"], row["requests"], row["errors"], row["prompt_tokens"]) == ("in-house/support", "1", "1", "10")


def test_nobody_sees_the_traffic_of_another_workspace_or_client(acme, rival, deployment):
    make_call(deployment)
    outside = Browser()
    outside.force_login(rival.owner.user)
    assert not outside.get("/traffic/").context["rows"]
    assert outside.get(f"/traffic/?client={deployment.client_id}").status_code == 404
    bound = Browser()
    bound.force_login(make_member(acme.workspace, role="viewer", email="eve@people.example", clients=[busy_free(acme)]).user)
    assert not bound.get("/traffic/").context["rows"]
    assert bound.get(f"/traffic/traffic.csv?client={deployment.client_id}").status_code == 404


def test_a_deployment_that_fails_too_often_stands_on_the_home_page_of_who_can_act(acme, ana, deployment):
    for number in range(20):
        make_call(deployment, status=500 if number < 2 else 200)
    page = seen(ana, "/")
    assert "10 % of its 20 requests in the last hour failed." in page and "?period=hour#traffic" in page
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="eve@people.example").user)
    assert "requests in the last hour failed" not in seen(viewer, "/")


@pytest.mark.parametrize(
    ("failed", "calls", "columns"), [(2, 19, {}), (1, 20, {}), (5, 20, {"status": 499}), (5, 20, {"at": ago(hours=2)})]
)
def test_a_few_failures_old_ones_and_callers_who_left_wait_for_nobody(ana, deployment, failed, calls, columns):
    for number in range(calls):
        make_call(deployment, **({"status": 500} | columns if number < failed else {}))
    assert "requests in the last hour failed" not in seen(ana, "/")


def test_a_clients_page_tells_what_was_asked_of_it(ana, deployment):
    page = f"/clients/{deployment.client_id}/"
    assert "All traffic" not in seen(ana, page)
    make_call(deployment)
    assert f"/traffic/?client={deployment.client_id}" in seen(ana, page)
