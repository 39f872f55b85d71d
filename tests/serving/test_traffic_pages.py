"""The pages of traffic: a deployment's, that of all, and its CSV."""

import csv
import io

import pytest
from django.test import Client as Browser

from studio.serving import rollup
from studio.workspaces.services import create_client
from tests.fixtures import make_deployment, make_member, make_release
from tests.serving.test_traffic import ago, recorded


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
        recorded(deployment, at=ago(hours=3))
    recorded(deployment, at=ago(hours=3), status=503, error="no_memory", first=None)
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
    recorded(deployment, at=ago(seconds=2))
    recorded(deployment, at=ago(days=60))
    rollup.roll_up()
    traffic = ana.get(f"/deployments/{deployment.pk}/?period={period}").context["traffic"]
    assert traffic["total"].calls == 1
    assert traffic["charts"][0].columns[-1]["pieces"]


def test_a_canary_that_fails_more_often_is_called_worse(ana, acme, deployment):
    deployment.canary = make_release(acme.owner, acme.artifact, version=(2, 0, 0), stage="approved")
    deployment.canary_percent = 50
    deployment.save()
    for number in range(60):
        recorded(deployment)
        status = 500 if number < 12 else 200
        recorded(deployment, release=deployment.canary, canary=True, status=status)
    page = seen(ana, f"/deployments/{deployment.pk}/")
    assert "The canary does worse: it fails 20 % of its requests, the release 0 %." in page
    answering = ana.get(f"/deployments/{deployment.pk}/").context["traffic"]["answering"]
    assert [(answer.canary, answer.share) for answer in answering] == [(False, 0.5), (True, 0.5)]


def test_all_traffic_is_listed_by_deployment_what_was_asked_most_first(ana, acme, deployment):
    busy = make_deployment(acme.project, deployment.release, slug="busy")
    recorded(deployment, at=ago(hours=2))
    rollup.roll_up()
    for _ in range(3):
        recorded(busy, status=500)
    rows = ana.get("/traffic/").context["rows"]
    assert [(row.name, row.sums.calls) for row, _ in rows] == [("in-house/busy", 3), ("in-house/support", 1)]
    rows = ana.get("/traffic/?sort=errors").context["rows"]
    assert [row.name for row, _ in rows] == ["in-house/support", "in-house/busy"]
    assert "No requests in this time" in seen(ana, "/traffic/?period=hour&client=" + str(busy_free(acme).pk))


def busy_free(acme):
    """A client of whom nothing was asked."""
    return create_client(acme.owner, name="Quiet", slug="quiet")


def test_the_list_as_csv_holds_every_row(ana, deployment):
    recorded(deployment, status=429, error="rate_limit_exceeded")
    answer = ana.get("/traffic/traffic.csv?period=day")
    assert 'filename="traffic-all-day.csv"' in answer["Content-Disposition"]
    (row,) = csv.DictReader(io.StringIO(answer.content.decode()))
    assert (row["deployment"], row["requests"], row["errors"], row["prompt_tokens"]) == ("in-house/support", "1", "1", "10")


def test_nobody_sees_the_traffic_of_another_workspace_or_client(acme, rival, deployment):
    recorded(deployment)
    outside = Browser()
    outside.force_login(rival.owner.user)
    assert not outside.get("/traffic/").context["rows"]
    assert outside.get(f"/traffic/?client={deployment.client_id}").status_code == 404
    bound = Browser()
    bound.force_login(make_member(acme.workspace, role="viewer", email="eve@people.example", clients=[busy_free(acme)]).user)
    assert not bound.get("/traffic/").context["rows"]
    assert bound.get(f"/traffic/traffic.csv?client={deployment.client_id}").status_code == 404
