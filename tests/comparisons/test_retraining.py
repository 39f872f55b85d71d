"""Releases trained anew on another base model: which can be, what is refused, and the way from the recipe to a measured candidate."""

import pytest
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.comparisons import retraining as services
from studio.comparisons import retraining_rounds
from studio.comparisons.models import Retrained, Retraining
from studio.comparisons.portfolio import Options, Portfolio
from studio.comparisons.retraining_matrix import Matrix
from studio.errors import UserError
from studio.orders.models import Order
from studio.releases.models import Evaluation, Release
from studio.runs.models import Run
from studio.serving import deploying
from tests.fixtures import World, make_artifact, make_base_model, make_deployment, make_release, make_run, make_version, work_off


@pytest.fixture
def newer(acme: World):
    made = make_base_model(acme.owner, name="Newer 1B")
    type(made).objects.filter(pk=made.pk).update(sha256="9" * 64)
    made.refresh_from_db()
    return made


@pytest.fixture
def used(acme: World):
    """An approved release that a deployment answers with; its run was a rehearsal."""
    release = make_release(acme.owner, acme.artifact, stage="approved")
    deploying.promote(acme.owner, make_deployment(acme.project), release=release)
    return release


def start(acme, newer, *releases, **options) -> Retraining:
    return services.start(acme.owner, base=newer, releases=[each.pk for each in releases], options=Options(**options))


def test_smoke(acme, newer, used):
    portfolio = Portfolio(acme.owner, newer, Options())
    assert [(each.release, each.why_not) for each in portfolio.offered] == [(used, "")]
    made = start(acme, newer, used)
    (row,) = made.releases.all()
    assert row.run is not None, row.problem
    ana = Browser()
    ana.force_login(acme.owner.user)
    for address in ("/retraining/", "/retraining/new/", f"/retraining/new/?base={newer.pk}", f"/retraining/{made.pk}/", f"/retraining/{made.pk}/matrix.csv"):
        assert ana.get(address).status_code == 200, address
    assert acme.api.get(f"retrainings/{made.pk}").status_code == 200
