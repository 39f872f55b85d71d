"""A release goes from draft to candidate to approved through its project's gate, and is retired once nothing answers with it."""

from uuid import uuid4

import pytest

from studio.audit.models import AuditRecord
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.releases.evaluating import request_evaluation
from studio.releases.gates import conditions, judged, say
from studio.releases.gating import edit_gate
from studio.releases.models import Gate, Release
from studio.releases.pages import said_of
from studio.releases.releasing import share
from studio.releases.staging import MOVES, move
from studio.releases.standing import seen_of
from studio.serving import deploying
from studio.workspaces.models import Member
from studio.workspaces.services import create_client
from tests.fixtures import make_deployment, make_member, make_release
from tests.releases.conftest import held_out, measured, trained

STAGES = ("draft", "candidate", "approved", "retired")


@pytest.fixture
def release(acme):
    """A candidate that nobody outside sees."""
    return make_release(acme.owner, acme.artifact, stage="candidate")


def gate(world, **asked):
    return Gate.objects.create(project=world.project, **asked)


def texts(release):
    """As its gate says of it alone, and among many: both read the database in their own way, and say the same."""
    found = conditions(release)
    fresh = Release.objects.get(pk=release.pk)
    assert judged(fresh, seen_of([fresh])[fresh.pk]) == found
    return [(condition.met, condition.why) for condition in found]


@pytest.mark.parametrize("before", STAGES)
@pytest.mark.parametrize("to", STAGES)
def test_a_release_moves_only_where_that_makes_sense(acme, before, to):
    made = make_release(acme.owner, acme.artifact, stage=before)
    if to in MOVES[before]:
        move(acme.owner, made, to=to, comment="Because.")
        assert Release.objects.get(pk=made.pk).stage == to
        record = AuditRecord.objects.get(verb="release.stage")
        assert record.change == {"stage": [before, to], "comment": [None, "Because."]}
        return
    with pytest.raises(UserError) as refused:
        move(acme.owner, made, to=to)
    assert list(refused.value.fields) == ["to"]
    assert Release.objects.get(pk=made.pk).stage == before
    assert not AuditRecord.objects.filter(verb="release.stage").exists()


def test_a_stage_that_does_not_exist_is_refused(acme, release):
    with pytest.raises(UserError, match="There is no such stage"):
        move(acme.owner, release, to="live")


def test_when_it_was_approved_and_retired_is_kept(acme, release):
    move(acme.owner, release, to="approved")
    assert release.approved_at is not None
    move(acme.owner, release, to="retired")
    assert release.approved_at is not None
    assert release.retired_at is not None
    move(acme.owner, release, to="draft")
    assert (release.approved_at, release.retired_at) == (None, None)


def test_what_answers_somewhere_is_not_retired(acme):
    made = make_release(acme.owner, acme.artifact, stage="approved")
    slot = make_deployment(acme.project, made)
    tried = make_release(acme.owner, trained(acme), version=(1, 1, 0), stage="approved")
    type(slot).objects.filter(pk=slot.pk).update(canary=tried, canary_percent=10)
    for answering in (made, tried):
        with pytest.raises(UserError, match=r"in-house/support answers with this release\. Point it at another one first"):
            move(acme.owner, answering, to="retired")
    type(slot).objects.filter(pk=slot.pk).update(release=tried, canary=None)
    move(acme.owner, made, to="retired")


def test_a_deployment_that_is_archived_holds_nothing_back(acme):
    from django.utils import timezone

    made = make_release(acme.owner, acme.artifact, stage="approved")
    slot = make_deployment(acme.project, made)
    type(slot).objects.filter(pk=slot.pk).update(archived_at=timezone.now())
    move(acme.owner, made, to="retired")


def test_a_project_without_a_gate_asks_for_nothing(acme, release):
    assert conditions(release) == []
    move(acme.owner, release, to="approved")


# ── An evaluation ──


def test_an_evaluation_is_enough_where_nothing_is_in_production(acme, release):
    gate(acme, evaluated=True)
    with pytest.raises(UserError, match="It has not been evaluated yet") as refused:
        move(acme.owner, release, to="approved")
    assert refused.value.code == "gate_not_met"
    measured(acme, release)
    assert texts(release) == [(True, "On 100 rows of Replies v1; nothing is in production.")]
    move(acme.owner, release, to="approved")


def in_production(world):
    first = make_release(world.owner, trained(world, "First"), version=(0, 9, 0), stage="approved")
    make_deployment(world.project, first)
    return first


@pytest.mark.parametrize(
    ("change", "low", "high", "met", "says"),
    [
        (-3.0, -4.0, -1.0, True, "Its loss is −3.0 % (−4.0 to −1.0) on 100 rows: better."),
        (0.5, -0.5, 1.9, True, "Its loss is +0.5 % (−0.5 to +1.9) on 100 rows: not worse."),
        (1.5, -1.0, 4.0, False, "nobody can tell whether that is more than 2 % worse"),
        (6.0, 3.0, 9.0, False, "worse by more than 2 %"),
        (0.0, None, None, False, "too few to tell"),
    ],
)
def test_it_must_surely_not_be_worse_than_what_is_in_production(acme, release, change, low, high, met, says):
    gate(acme, evaluated=True, margin=2)
    measured(acme, release, against=in_production(acme), before=1.0, change=change, low=low, high=high)
    ((was_met, why),) = texts(release)
    assert was_met == met
    assert says in why


def test_an_evaluation_beside_another_release_is_out_of_date(acme, release):
    gate(acme, evaluated=True)
    measured(acme, release)
    first = in_production(acme)
    assert texts(release) == [(False, f"It was compared with nothing; by now {first} is in production. Evaluate it again.")]
    measured(acme, release, against=first, change=0.0, low=-0.1, high=0.1)
    assert texts(release)[0][0]


@pytest.mark.parametrize("how", [deploying.clear, deploying.archive])
def test_to_clear_a_deployment_is_no_way_around_the_gate(acme, release, how):
    gate(acme, evaluated=True, margin=2)
    first = make_release(acme.owner, trained(acme, "First"), version=(0, 9, 0), stage="approved")
    slot = make_deployment(acme.project)
    deploying.promote(acme.owner, slot, release=first)
    measured(acme, release, against=first, before=1.0, change=6.0, low=3.0, high=9.0)
    assert not conditions(release)[0].met
    how(acme.owner, slot)
    (condition,) = conditions(release)
    assert f"than that of {first}, which was last in production" in condition.text
    assert (condition.met, condition.why) == (False, "Its loss is +6.0 % (+3.0 to +9.0) on 100 rows: worse by more than 2 %.")
    measured(acme, release)
    assert texts(release) == [(False, f"It was compared with nothing; {first} was in production last. Evaluate it again.")]
    assert request_evaluation(acme.owner, release).against == first


def test_a_release_of_another_task_is_nothing_to_compare_with(acme, release):
    gate(acme, evaluated=True)
    measured(acme, release)
    first = in_production(acme)
    Release.objects.filter(pk=first.pk).update(task="summaries")
    assert texts(release)[0][0]


def test_an_evaluation_on_other_rows_than_the_gates_does_not_count(acme, release):
    rows = held_out(acme)
    gate(acme, evaluated=True, held_out=rows.dataset)
    measured(acme, release)
    assert texts(release) == [(False, "It was evaluated on Replies v1; by now that is Gate v1. Evaluate it again.")]
    measured(acme, release, version=rows)
    assert texts(release)[0][0]


def test_an_evaluation_on_an_older_version_of_the_rows_does_not_count(acme, release):
    rows = held_out(acme)
    gate(acme, evaluated=True, held_out=rows.dataset)
    measured(acme, release, version=rows)
    assert texts(release)[0][0]
    newer = held_out(acme, "Newer")
    DatasetVersion.objects.filter(pk=newer.pk).update(dataset=rows.dataset, number=2)
    assert texts(release) == [(False, "It was evaluated on Gate v1; by now that is Gate v2. Evaluate it again.")]
    Gate.objects.update(held_out=None)
    assert texts(release) == [(False, "It was evaluated on Gate v1; by now that is Replies v1. Evaluate it again.")]
    DatasetVersion.objects.filter(pk=acme.version.pk).update(facts=None)
    release = Release.objects.get(pk=release.pk)
    assert texts(release) == [(False, "Replies v1 has no validation rows. Name held-out rows in the project's gate.")]


# ── People ──


def test_people_of_the_named_roles_approve_it_and_its_maker_does_not_count(acme, release, max_):
    gate(acme, approvals=2, roles=["admin", "owner"])
    with pytest.raises(UserError, match="your approval would not count"):
        say(acme.owner, release, approves=True)
    mia = make_member(acme.workspace, role="member", email="mia@example.com")
    eve = make_member(acme.workspace, role="admin", email="eve@example.com")
    say(max_, release, approves=True)
    say(mia, release, approves=True, comment="Good.")
    assert texts(release) == [(False, "1 of 2: max@example.com (admin).")]
    say(eve, release, approves=True)
    assert conditions(Release.objects.get(pk=release.pk))[0].met
    move(acme.owner, release, to="approved")


def test_an_approval_of_its_maker_that_was_given_by_hand_does_not_count_either(acme, release):
    gate(acme, approvals=1)
    release.approvals.create(user=acme.owner.user, email="ana@example.com", role="owner", approves=True)
    assert texts(release) == [(False, "0 of 1.")]


def test_a_refusal_blocks_until_its_person_changes_their_mind(acme, release, max_):
    say(max_, release, approves=False, comment="Too long.\nSee the second answer.")
    with pytest.raises(UserError, match=r"max@example.com refused: Too long"):
        move(acme.owner, release, to="approved")
    say(max_, release, approves=True)
    move(acme.owner, release, to="approved")
    assert list(AuditRecord.objects.filter(object_kind="release").order_by("pk").values_list("verb", flat=True)) == [
        "release.refuse",
        "release.approve",
        "release.stage",
    ]


def test_a_refusal_that_came_after_the_page_was_read_blocks_too(acme, release, max_):
    read = Release.objects.prefetch_related("approvals").get(pk=release.pk)
    assert conditions(read) == []
    say(max_, release, approves=False)
    with pytest.raises(UserError, match=r"max@example\.com refused"):
        move(acme.owner, read, to="approved")


def test_its_maker_may_refuse_it(acme, release):
    say(acme.owner, release, approves=False)
    assert texts(release) == [(False, "ana@example.com refused.")]


def test_what_was_said_stands_when_its_person_is_demoted_or_gone(acme, release, max_):
    gate(acme, approvals=1, roles=["admin"])
    say(max_, release, approves=True)
    Member.objects.filter(pk=max_.pk).update(role="viewer")
    assert texts(release) == [(True, "1 of 1: max@example.com (admin).")]
    max_.user.delete()
    assert texts(Release.objects.get(pk=release.pk)) == [(True, "1 of 1: max@example.com (admin).")]


@pytest.mark.parametrize("what", ["demoted", "removed", "deleted"])
def test_a_refusal_of_somebody_who_can_say_no_more_blocks_no_more(acme, release, max_, what):
    say(max_, release, approves=False)
    if what == "demoted":
        Member.objects.filter(pk=max_.pk).update(role="viewer")
    elif what == "removed":
        max_.delete()
    else:
        max_.user.delete()
    assert conditions(Release.objects.get(pk=release.pk)) == []


def test_a_refusal_of_somebody_who_no_longer_sees_the_client_blocks_no_more(acme, release, max_):
    other = create_client(acme.owner, name="Globex")
    say(max_, release, approves=False)
    for bound in ([acme.client, other], []):
        max_.clients.set(bound)
        assert texts(release) == [(False, "max@example.com refused.")]
    max_.clients.set([other])
    assert conditions(release) == []
    max_.clients.set([])
    Member.objects.filter(pk=max_.pk).update(narrowed=True)
    assert conditions(release) == []
    assert [each.since for each in said_of(release)] == ["Cannot speak for this release any more. Their refusal does not block any more."]


def test_a_refusal_of_a_guest_blocks_while_they_see_the_release(acme, release, gus):
    share(acme.owner, release)
    say(gus, release, approves=False)
    assert texts(release) == [(False, "gus@client.example refused.")]
    gus.clients.set([create_client(acme.owner, name="Globex")])
    assert conditions(release) == []
    gus.clients.set([])
    assert conditions(release) == []
    gus.clients.set([acme.client])
    release.shared_at = None
    assert conditions(release) == []


def test_the_client_signs_it_off_with_the_answers_that_they_saw(acme, release, gus):
    gate(acme, guest_sign_off=True)
    assert texts(release) == [(False, "They have not been asked yet.")]
    measured(acme, release)
    share(acme.owner, release)
    assert texts(release) == [(False, "They were asked, and have not answered yet.")]
    said = say(gus, release, approves=True, comment="Go on.")
    assert (said.role, said.email) == ("guest", "gus@client.example")
    assert said.samples == [{"prompt": "Hi?", "answer": "Hello.", "before": "Hm."}]
    assert conditions(Release.objects.get(pk=release.pk))[0].why == "gus@client.example did."


def test_what_is_kept_are_the_answers_that_were_on_the_page(acme, release, max_):
    seen = measured(acme, release, samples=[{"prompt": "Hi?", "answer": "Old.", "before": None, "expected": "Hello!"}])
    newest = measured(acme, release)
    assert say(max_, release, approves=True, evaluation=str(seen.pk)).samples[0]["answer"] == "Old."
    assert say(max_, release, approves=True, evaluation=newest.pk).samples[0]["answer"] == "Hello."  # the same again, of other answers
    assert say(max_, release, approves=True).samples[0]["answer"] == "Hello."
    assert say(max_, release, approves=True, evaluation="").samples == []
    assert AuditRecord.objects.filter(verb="release.approve").count() == 3
    other = measured(acme, make_release(acme.owner, trained(acme), version=(2, 0, 0)))
    for wrong in (other.pk, "x", uuid4()):
        with pytest.raises(UserError, match="no such evaluation of this release") as refused:
            say(max_, release, approves=True, evaluation=wrong)
        assert list(refused.value.fields) == ["evaluation"]


def test_an_admins_approval_is_no_sign_off(acme, release, max_):
    gate(acme, guest_sign_off=True)
    say(max_, release, approves=True)
    assert not conditions(release)[0].met


@pytest.mark.parametrize("stage", ["draft", "approved", "retired"])
def test_only_a_candidate_is_approved_or_refused(acme, max_, stage):
    made = make_release(acme.owner, acme.artifact, stage=stage)
    with pytest.raises(UserError, match="Only a candidate is approved or refused"):
        say(max_, made, approves=True)


def test_to_say_the_same_again_is_no_change(acme, release, max_):
    first = say(max_, release, approves=True, comment="Good.")
    assert say(max_, release, approves=True, comment="Good.") == first
    assert AuditRecord.objects.filter(verb="release.approve").count() == 1
    with pytest.raises(UserError, match="cannot be kept so"):
        say(max_, release, approves=True, comment="x" * 4001)


# ── The gate itself ──


def test_a_gate_is_set_and_what_was_approved_stays_so(acme, release):
    move(acme.owner, release, to="approved")
    edit_gate(acme.owner, acme.project, evaluated=True, approvals=3, roles=["owner", "admin"], margin=1.5)
    assert Release.objects.get(pk=release.pk).stage == "approved"
    record = AuditRecord.objects.get(verb="gate.edit")
    assert record.change["approvals"] == [0, 3]
    assert record.change["roles"] == [[], ["owner", "admin"]]
    edit_gate(acme.owner, acme.project, approvals=3)
    assert AuditRecord.objects.filter(verb="gate.edit").count() == 1


def test_a_gate_names_only_held_out_rows_of_its_client(acme, rival):
    rows = held_out(acme)
    edit_gate(acme.owner, acme.project, held_out=rows.dataset)
    assert Gate.objects.get(project=acme.project).held_out == rows.dataset
    with pytest.raises(UserError) as refused:
        edit_gate(acme.owner, acme.project, held_out=acme.version.dataset)
    assert "is not held out" in refused.value.fields["held_out"]
    with pytest.raises(UserError) as refused:
        edit_gate(acme.owner, acme.project, held_out=held_out(rival).dataset)
    assert refused.value.fields == {"held_out": "Choose rows of this client."}
    edit_gate(acme.owner, acme.project, held_out=None)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"margin": -1.0}, "margin"),
        ({"margin": 101.0}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"approvals": -1}, "approvals"),
        ({"approvals": 21}, "approvals"),
        ({"roles": ["viewer"]}, "roles"),
    ],
)
def test_what_a_gate_cannot_ask_is_refused_beside_its_field(acme, wanted, field):
    with pytest.raises(UserError) as refused:
        edit_gate(acme.owner, acme.project, **wanted)
    assert list(refused.value.fields) == [field]
    assert not Gate.objects.exists()
