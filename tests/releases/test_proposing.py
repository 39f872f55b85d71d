"""The rule proposes a number and says why; a person may choose a higher one, never a lower; numbers are unique."""

import threading

import pytest
from django.db import close_old_connections

from studio.artifacts.models import Artifact
from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.releases.models import Release
from studio.releases.releasing import create_release, edit_notes, proposed, share
from studio.workspaces.services import create_client, create_project
from tests.fixtures import make_base_model, make_release, make_world
from tests.releases.conftest import trained


def create(world, artifact=None, **columns):
    return create_release(world.owner, project=world.project, artifact=artifact or world.artifact, **columns)


def test_the_first_release_of_a_task_is_one_point_zero(acme):
    made = create(acme, notes="  The first.\r\nIt greets.  ")
    assert (made.name, made.version, made.bump, made.previous) == ("in-house-first-project-tiny-v1.0.0", "v1.0.0", "major", None)
    assert (made.stage, made.task, made.notes, made.asked_with) == ("draft", "first-project", "The first.\nIt greets.", {})
    assert (made.created_by, made.base_model) == (acme.owner.user, acme.base)
    record = AuditRecord.objects.get(verb="release.create")
    assert (record.label, record.client, record.change["version"]) == (made.name, acme.client, [None, "v1.0.0"])


def test_trained_anew_is_minor_and_says_so(acme):
    first, again = create(acme), trained(acme)
    said = proposed(acme.project, again)
    assert said.why == "Minor, since it was trained anew: adapter Again instead of Try, on the same base."
    assert said.allowed == ["minor", "major"]
    made = create(acme, again)
    assert (made.version, made.previous) == ("v1.1.0", first)


def test_another_base_is_major_and_says_so(acme):
    create(acme)
    other = make_base_model(acme.owner, name="SmolLM2-135M-Instruct")
    type(other).objects.filter(pk=other.pk).update(sha256="5" * 64)
    other.refresh_from_db()
    said = proposed(acme.project, trained(acme, base_model=other))
    assert said.why == "Major, since the base changed: SmolLM2-135M-Instruct instead of Tiny."
    made = create(acme, trained(acme, base_model=other))
    assert made.name == "in-house-first-project-smollm2-v2.0.0"


def test_the_same_base_that_was_registered_twice_is_the_same(acme):
    create(acme)
    twin = make_base_model(acme.owner, name="Twin")
    assert proposed(acme.project, trained(acme, base_model=twin)).bump == "minor"


def test_only_other_settings_are_a_patch_and_it_says_which(acme):
    create(acme, asked_with={"system": "Be kind.", "temperature": 0.5})
    said = proposed(acme.project, acme.artifact, asked_with={"system": "Be brief.", "temperature": 0.5, "stop": ["END"]})
    assert said.why == "Patch, since only what it is asked with changed: system prompt, stop texts."
    assert create(acme, asked_with={"system": "Be brief."}).version == "v1.0.1"


def test_settings_stay_where_nobody_names_others(acme):
    create(acme, asked_with={"system": "Be kind."})
    assert create(acme, trained(acme)).asked_with == {"system": "Be kind."}
    assert create(acme, trained(acme, "Third"), asked_with={}).asked_with == {}


def test_nothing_changed_is_refused(acme):
    create(acme, asked_with={"temperature": 0.5})
    for asked in (None, {"temperature": 0.5}):
        with pytest.raises(UserError, match=r"Nothing changed since in-house-first-project-tiny-v1\.0\.0") as refused:
            create(acme, asked_with=asked, bump="major")
        assert refused.value.code == "nothing_changed"
    assert Release.objects.count() == 1


def test_a_higher_bump_may_be_chosen_and_a_lower_one_may_not(acme):
    create(acme)
    again = trained(acme)
    with pytest.raises(UserError, match=r"at least a minor release\. Minor, since it was trained anew") as refused:
        create(acme, again, bump="patch")
    assert list(refused.value.fields) == ["bump"]
    with pytest.raises(UserError, match="cannot be chosen so"):
        create(acme, again, bump="huge")
    assert create(acme, again, bump="major").version == "v2.0.0"


def test_the_latest_version_counts_and_not_the_latest_made(acme):
    make_release(acme.owner, acme.artifact, version=(2, 0, 0))
    make_release(acme.owner, acme.artifact, version=(1, 9, 10))
    assert create(acme, trained(acme)).version == "v2.1.0"


def test_each_task_is_counted_by_itself(acme):
    assert create(acme, task="Support replies").name == "in-house-support-replies-tiny-v1.0.0"
    assert create(acme, task="summaries").version == "v1.0.0"
    with pytest.raises(UserError, match="cannot be called so"):
        create(acme, task="???")


def test_two_projects_of_a_client_do_not_release_under_one_name(acme):
    create(acme, task="support")
    other = create_project(acme.owner, client=acme.client, name="Other")
    artifact = trained(acme)
    Artifact.objects.filter(pk=artifact.pk).update(project=other)
    artifact.refresh_from_db()
    with pytest.raises(UserError, match="releases under this name already") as refused:
        create_release(acme.owner, project=other, artifact=artifact, task="support")
    assert list(refused.value.fields) == ["task"]


def test_what_does_not_answer_is_not_released(acme):
    rehearsal = trained(acme, "Rehearsed", kind=Artifact.Kind.REHEARSAL)
    mute = trained(acme, "Without a base", base_model=None)
    for artifact in (acme.build.artifact, rehearsal, mute):
        with pytest.raises(UserError, match="an adapter or a model that answers"):
            create(acme, artifact)
    assert create(acme, trained(acme, "Whole", kind=Artifact.Kind.MODEL)).version == "v1.0.0"


def test_what_another_project_made_is_not_released(acme):
    client = create_client(acme.owner, name="Globex")
    other = create_project(acme.owner, client=client, name="Theirs")
    with pytest.raises(UserError, match="made in another project"):
        create_release(acme.owner, project=other, artifact=acme.artifact)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"system": "x" * 20_001}, "system"),
        ({"stop": ["x" * 101]}, "stop"),
        ({"stop": [str(number) for number in range(9)]}, "stop"),
        ({"system": "a\0b"}, "system"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_settings_that_cannot_be_are_refused_beside_their_field(acme, asked, field):
    with pytest.raises(UserError) as refused:
        create(acme, asked_with=asked)
    assert list(refused.value.fields) == [field]


def test_notes_change_and_nothing_else_does(acme):
    made = create(acme)
    edit_notes(acme.owner, made, notes="Shorter.")
    edit_notes(acme.owner, made, notes="Shorter.")
    assert AuditRecord.objects.filter(verb="release.edit").values_list("change", flat=True).get() == {"notes": ["", "Shorter."]}
    with pytest.raises(UserError, match="cannot be kept so"):
        edit_notes(acme.owner, made, notes="x" * 10_001)


def test_a_release_is_shared_once_and_not_as_a_draft(acme):
    made = create(acme)
    with pytest.raises(UserError, match=r"This release is a draft\. Make it a candidate first"):
        share(acme.owner, made)
    Release.objects.filter(pk=made.pk).update(stage="candidate")
    share(acme.owner, made)
    shared = Release.objects.get(pk=made.pk).shared_at
    share(acme.owner, made)
    assert Release.objects.get(pk=made.pk).shared_at == shared
    assert AuditRecord.objects.filter(verb="release.share").count() == 1


@pytest.mark.django_db(transaction=True)
def test_numbers_are_unique_where_several_release_at_once(queue):
    world = make_world("eve@example.com", "Several")
    create(world)
    adapters = [trained(world, f"Adapter {number}") for number in range(4)]
    ready, refused = threading.Barrier(len(adapters)), []

    def release(artifact):
        ready.wait(10)
        try:
            create(world, artifact)
        except Exception as error:
            refused.append(error)
        finally:
            close_old_connections()

    threads = [threading.Thread(target=release, args=(artifact,)) for artifact in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []
    assert sorted(Release.objects.values_list("minor", flat=True)) == [0, 1, 2, 3, 4]
