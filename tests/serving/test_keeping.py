"""What the endpoint is asked and answers is kept where the project says so, for as long as it says, and no longer."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.serving import keeping
from studio.serving.models import Keeping, KeptAnswer
from tests.fixtures import World, make_deployment


@pytest.fixture
def kept_for(acme: World) -> Any:
    def answer(*, days_ago: float = 0, text: str = "In two days.", question: str = "When does my parcel come?") -> KeptAnswer | None:
        return keeping.keep(
            pk=uuid.uuid4(),
            deployment=acme.deployment,
            release=acme.release,
            key=acme.key,
            messages=[{"role": "user", "content": question}],
            answer={"role": "assistant", "content": text},
            at=timezone.now() - timedelta(days=days_ago),
        )

    return answer


def test_nothing_is_kept_until_the_project_says_so(acme: World, kept_for: Any) -> None:
    assert kept_for() is None
    keeping.set_keeping(acme.owner, acme.project, days=30, confirmed=False)
    made = kept_for()
    assert made.until - made.at == timedelta(days=30)
    assert (made.question, made.beginning) == ("When does my parcel come?", "In two days.")
    assert KeptAnswer.objects.get().messages == [{"role": "user", "content": "When does my parcel come?"}]


def test_a_release_asked_by_its_own_name_counts_to_its_project(acme: World) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=1, confirmed=False)
    made = keeping.keep(
        pk=uuid.uuid4(), deployment=None, release=acme.release, key=None, messages=[], answer={"content": "Yes."}, at=timezone.now()
    )
    assert made is not None
    assert (made.project_id, made.question) == (acme.project.pk, "")


def test_what_no_database_can_store_is_stored_without_it(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=1, confirmed=False)
    made = kept_for(question="half \ud800 and \x00 nothing", text="<script>alert(1)</script>")
    made.refresh_from_db()
    assert made.messages[0]["content"] == "half ? and \ufffd nothing"
    assert made.answer["content"] == "<script>alert(1)</script>"


def test_a_conversation_over_a_megabyte_and_an_endless_one_are_not_kept(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=1, confirmed=False)
    assert kept_for(question="x" * (1 << 20)) is None
    assert kept_for(question="x" * (1 << 19)) is not None
    nested: Any = "end"
    for _ in range(500):
        nested = [nested]
    assert kept_for(question=nested) is None


@pytest.mark.parametrize("days", [0, -1, 366, 10**6])
def test_days_outside_the_range_are_refused(acme: World, days: int) -> None:
    with pytest.raises(UserError) as refused:
        keeping.set_keeping(acme.owner, acme.project, days=days, confirmed=True)
    assert "days" in refused.value.fields
    assert not Keeping.objects.exists()


def test_turning_it_off_asks_first_and_then_deletes_all(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=30, confirmed=False)
    kept_for(), kept_for()
    with pytest.raises(UserError) as refused:
        keeping.set_keeping(acme.owner, acme.project, days=None, confirmed=False)
    assert (refused.value.code, refused.value.message) == ("confirm", "This deletes the 2 answers kept so far.")
    assert KeptAnswer.objects.count() == 2
    assert keeping.set_keeping(acme.owner, acme.project, days=None, confirmed=True) == 2
    assert not KeptAnswer.objects.exists()
    assert kept_for() is None
    last = AuditRecord.objects.latest("pk")
    assert (last.verb, last.change) == ("answer.keep", {"days": [30, None], "deleted": 2})


def test_a_shorter_time_deletes_what_is_older_and_ends_the_rest_sooner(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=30, confirmed=False)
    old, new = kept_for(days_ago=10), kept_for(days_ago=1)
    with pytest.raises(UserError, match="This deletes 1 answer older than 7 days"):
        keeping.set_keeping(acme.owner, acme.project, days=7, confirmed=False)
    keeping.set_keeping(acme.owner, acme.project, days=7, confirmed=True)
    assert not KeptAnswer.objects.filter(pk=old.pk).exists()
    new.refresh_from_db()
    assert new.until - new.at == timedelta(days=7)


def test_a_longer_time_lengthens_no_promise_made_before(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=7, confirmed=False)
    before = kept_for()
    keeping.set_keeping(acme.owner, acme.project, days=30, confirmed=False)
    before.refresh_from_db()
    assert before.until - before.at == timedelta(days=7)
    assert kept_for().until - timezone.now() > timedelta(days=29)


def test_the_same_again_changes_and_records_nothing(acme: World) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=7, confirmed=False)
    keeping.set_keeping(acme.owner, acme.project, days=7, confirmed=False)
    assert AuditRecord.objects.filter(verb="answer.keep").count() == 1


def test_the_sweep_deletes_what_is_over_and_what_nobody_keeps(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=5, confirmed=False)
    kept_for(days_ago=5.1)
    stays = kept_for(days_ago=4.9)
    assert keeping.expire() == ["Deleted 1 kept answer whose time is over"]
    assert KeptAnswer.objects.get() == stays
    Keeping.objects.all().delete()  # as when it was turned off while one was being kept
    keeping.expire()
    assert not KeptAnswer.objects.exists()
    assert keeping.expire() == []


def test_what_is_kept_outlives_its_deployment(acme: World, kept_for: Any) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=5, confirmed=False)
    made = kept_for()
    acme.deployment.delete()
    made.refresh_from_db()
    assert made.deployment is None
    assert made.project == acme.project


def test_another_project_keeps_nothing_for_that(acme: World, rival: World) -> None:
    keeping.set_keeping(acme.owner, acme.project, days=5, confirmed=False)
    elsewhere = make_deployment(rival.project, slug="other")
    told = {"pk": uuid.uuid4(), "release": rival.release, "key": None, "messages": [], "answer": {}, "at": timezone.now()}
    assert keeping.keep(deployment=elsewhere, **told) is None
