"""An evaluation is asked for on the gate's rows or the release's own validation rows, once at a time, and can be cancelled."""

import pytest
from pydantic import ValidationError

from studio.audit.models import AuditRecord
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.orders.kinds import KINDS
from studio.orders.models import Order
from studio.releases.evaluating import request_evaluation, stop_evaluation
from studio.releases.gates import latest_evaluation
from studio.releases.models import Gate, Release
from tests.fixtures import make_deployment, make_release
from tests.releases.conftest import FIGURES, held_out, trained


@pytest.fixture
def release(acme):
    return make_release(acme.owner, acme.artifact)


def test_the_worker_is_told_what_to_measure_beside_what_is_in_production(acme, release):
    first = make_release(acme.owner, trained(acme), version=(0, 9, 0))
    make_deployment(acme.project, first)
    Release.objects.filter(pk=release.pk).update(asked_with={"system": "Be kind.", "stop": ["END"], "temperature": 1})
    evaluation = request_evaluation(acme.owner, release)
    assert (evaluation.against, evaluation.dataset_version) == (first, acme.version)
    told = KINDS["evaluation"].payload(evaluation.order)
    assert (told["rows"], told["split"], told["shape"]) == (str(acme.version.rows_path), "validation", "chat")
    assert told["release"]["adapter"] == str(acme.artifact.folder)
    assert (told["release"]["system"], told["release"]["stop"]) == ("Be kind.", ["END"])
    assert told["before"]["name"] == first.name
    assert told["before"]["learnt"] == str(acme.version.rows_path)
    record = AuditRecord.objects.get(verb="release.evaluate")
    assert record.change == {"rows": [None, "Replies v1"], "against": [None, first.name]}


def test_the_gates_rows_are_taken_whole_in_their_newest_version(acme, release):
    rows = held_out(acme)
    newer = DatasetVersion.objects.get(pk=held_out(acme, "Newer").pk)
    DatasetVersion.objects.filter(pk=newer.pk).update(dataset=rows.dataset, number=2)
    Gate.objects.create(project=acme.project, held_out=rows.dataset)
    evaluation = request_evaluation(acme.owner, release)
    assert evaluation.dataset_version == newer
    assert KINDS["evaluation"].payload(evaluation.order)["split"] == ""


def test_one_that_is_on_its_way_is_answered_instead_of_another(acme, release):
    assert request_evaluation(acme.owner, release) == request_evaluation(acme.owner, release)
    assert Order.objects.filter(kind="evaluation").count() == 1
    assert AuditRecord.objects.filter(verb="release.evaluate").count() == 1


def test_it_can_be_cancelled_and_asked_for_again(acme, release):
    first = request_evaluation(acme.owner, release)
    stop_evaluation(acme.owner, release)
    assert Order.objects.get(pk=first.order_id).status == "stopped"
    with pytest.raises(UserError, match="No evaluation of this release is on its way"):
        stop_evaluation(acme.owner, release)
    assert request_evaluation(acme.owner, release) != first


def test_figures_are_kept_and_a_stop_that_has_none_keeps_none(acme, release):
    evaluation = request_evaluation(acme.owner, release)
    KINDS["evaluation"].succeeded(evaluation.order, {"status": "stopped"})
    assert latest_evaluation(release) is None
    KINDS["evaluation"].succeeded(evaluation.order, FIGURES | {"anything": "else"})
    assert latest_evaluation(release).result == FIGURES


@pytest.mark.parametrize("lie", [{"loss": float("nan")}, {"rows": "<b>"}, {"samples": [{"prompt": 1}]}, {"unit": "smile"}, {"change": "x"}])
def test_a_worker_that_says_what_no_evaluation_says_is_not_believed(acme, release, lie):
    evaluation = request_evaluation(acme.owner, release)
    with pytest.raises(ValidationError):
        KINDS["evaluation"].succeeded(evaluation.order, FIGURES | lie)
    assert latest_evaluation(release) is None


def test_what_cannot_be_measured_says_why(acme, release):
    Release.objects.filter(pk=release.pk).update(stage="retired")
    with pytest.raises(UserError, match="This release is retired"):
        request_evaluation(acme.owner, release)
    elsewhere = make_release(acme.owner, trained(acme, dataset_version=None), version=(2, 0, 0))
    with pytest.raises(UserError, match="Nobody knows what this was trained on"):
        request_evaluation(acme.owner, elsewhere)
    acme.version.facts["split"] = {"train": 12, "validation": 0}
    acme.version.save()
    bare = make_release(acme.owner, trained(acme, "Bare"), version=(3, 0, 0))
    with pytest.raises(UserError, match="Replies v1 has no validation rows"):
        request_evaluation(acme.owner, bare)
    Gate.objects.create(project=acme.project, held_out=held_out(acme).dataset)
    DatasetVersion.objects.filter(dataset__held_out=True).update(facts=None)
    with pytest.raises(UserError, match="have not been read yet"):
        request_evaluation(acme.owner, bare)
    assert not Order.objects.filter(kind="evaluation").exists()
