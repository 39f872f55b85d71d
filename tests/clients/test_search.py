"""One box finds everything by name, client, base model and hash, and nothing that is not one's own."""

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client as Browser

from studio.artifacts.models import Artifact
from studio.clients import search
from studio.runs.models import Run
from studio.workspaces import searching
from studio.workspaces.models import Client, Member, Project
from studio.workspaces.searching import FEW, matching, matching_in_turn, words_of
from studio.workspaces.services import archive_client, create_client, create_project
from tests.fixtures import make_member, make_release, make_run


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def found(browser, typed):
    """(kind, title) of what the palette is answered."""
    answer = browser.get("/search/", {"q": typed}, headers={"Accept": "application/json"})
    return [(thing["kind"], thing["title"]) for thing in answer.json()["things"]]


def test_each_kind_is_found_by_its_name(acme, ana):
    release, deployment = acme.release, acme.deployment
    assert ("client", "In-house") in found(ana, "house")
    assert ("project", "First project") in found(ana, "first")
    assert ("dataset", "Replies") in found(ana, "replies")
    assert {("run", "Try"), ("artifact", "Try")} <= set(found(ana, "try"))
    assert ("release", release.name) in found(ana, release.name)
    assert ("deployment", "in-house/support") in found(ana, str(deployment))
    assert ("base model", "Tiny") in found(ana, "tiny")


def test_every_word_must_fit_somewhere(acme, ana):
    assert ("run", "Try") in found(ana, "TRY in-house tiny")
    assert found(ana, "try nothing") == []


def test_a_hash_is_found_by_its_beginning(acme, ana):
    sha256 = acme.artifact.sha256
    assert ("artifact", "Try") in found(ana, sha256[:6])
    assert ("artifact", "Try") in found(ana, sha256)
    assert found(ana, sha256[:5] + "g") == []
    release = make_release(acme.owner, acme.artifact, version=(7, 0, 0))
    assert ("release", release.name) in found(ana, sha256[:12])


def test_what_belongs_to_many_projects_is_found_by_their_name(acme, ana):
    Project.objects.bulk_create(
        Project(client=acme.client, name=f"Letters {number}", slug=f"letters-{number}") for number in range(FEW + 1)
    )
    last = Project.objects.get(slug=f"letters-{FEW}")
    Run.objects.update(project=last)
    assert ("run", "Try") in found(ana, "letters")
    assert ("run", "Try") in found(ana, f"house letters try {FEW}")
    assert ("run", "Try") not in found(ana, f"letters {FEW - 1}")


@pytest.mark.parametrize("newest", [1, 2, 3, 4, 5])
def test_of_many_the_newest_are_offered_whether_or_not_those_of_late_are_enough(acme, ana, monkeypatch, newest):
    monkeypatch.setattr(search, "LATELY", newest)
    monkeypatch.setattr(searching, "FEW", 0)  # or each word here would be a rare one
    for number in range(4):
        project = acme.project if number % 2 else create_project(acme.owner, client=acme.client, name=f"Hotel {number}")
        run = make_run(acme.owner, project, acme.base, acme.version)
        Run.objects.filter(pk=run.pk).update(name=f"Bakery {number}")
    [group] = [group for group in search.search(acme.owner, "bakery", most=2) if group.kind.word == "run"]
    assert ([thing["title"] for thing in group.things], group.more) == (["Bakery 3", "Bakery 2"], True)
    [group] = [group for group in search.search(acme.owner, "bakery hotel", most=2) if group.kind.word == "run"]
    assert ([thing["title"] for thing in group.things], group.more) == (["Bakery 2", "Bakery 0"], False)


@pytest.mark.parametrize("few", [0, 1, 2, FEW])
def test_the_same_is_found_whether_names_are_read_with_their_rows_or_looked_for_first(acme, monkeypatch, few):
    monkeypatch.setattr(searching, "FEW", few)
    for number in range(3):
        project = create_project(acme.owner, client=acme.client, name=f"Hotel {number}")
        run = make_run(acme.owner, project, acme.base, acme.version)
        Run.objects.filter(pk=run.pk).update(name=f"Bakery {number} É%")
    hash_of = acme.artifact.sha256[:8]
    typed = ["hotel", "hotel 1", "BAKERY hotel 2", "try tiny", "tiny hotel", "bakery É%", "é", "_", "zebra", "hotel zebra", "try try"]
    for text in [*typed, "in-house support", hash_of, f"{hash_of} try", f"{hash_of} hotel"]:
        words = words_of(text)
        for kind in search.KINDS:
            how = {"names": kind.names, "hashes": kind.hashes, "seen": {}}
            expected = set(kind.model.objects.filter(matching(kind.model, words, **how)))
            for many in (False, True):
                wanted, _ = matching_in_turn(kind.model, words, **how, many=many)
                assert (set() if wanted is None else set(kind.model.objects.filter(wanted))) == expected, (text, kind.word, many)


def test_things_have_the_names_that_they_have_elsewhere(acme, ana):
    make_release(acme.owner, acme.artifact, version=(7, 0, 0))
    for kind in search.KINDS:
        rows = list(search.rows(acme.owner, kind))
        things = kind.model.objects.in_bulk([row[0] for row in rows])
        assert [thing["title"] for thing in search.shown(kind, rows)] == [str(things[row[0]]) for row in rows]
        assert all(thing["url"].endswith(f"/{row[0]}/") for thing, row in zip(search.shown(kind, rows), rows, strict=True))
    [hint] = [thing["hint"] for group in search.search(acme.owner, "try", most=1) if group.kind.word == "run" for thing in group.things]
    assert hint == "In-house · First project"


def test_signs_of_patterns_are_letters_like_others(acme, ana):
    for typed in ("%", "__", "\\", "'", '"', "(", "*", "\x00", "\u202e", "x" * 5000):
        assert found(ana, typed) == [], typed
    acme.project.name = "100% wool_"
    acme.project.save()
    assert ("project", "100% wool_") in found(ana, "100%")
    assert found(ana, "100_") == []


def test_nothing_typed_offers_the_newest(acme, ana):
    assert ("run", "Try") in found(ana, "")


def test_nothing_foreign_is_found(acme, rival, ana):
    globex = create_client(acme.owner, name="Globex")
    create_project(acme.owner, client=globex, name="First globex project")
    bound = Browser()
    bound.force_login(make_member(acme.workspace, role="viewer", email="vi@example.com", clients=[globex]).user)
    assert found(bound, "first") == [("project", "First globex project")]
    stranger = Browser()
    stranger.force_login(rival.owner.user)
    assert found(stranger, "globex") == []
    guest = Browser()
    guest.force_login(make_member(acme.workspace, role="guest", email="gus@example.com", clients=[globex]).user)
    assert guest.get("/search/", {"q": "first"}).status_code == 404
    assert 'data-search="' not in guest.get("/").content.decode()


def test_what_is_archived_is_not_offered(acme, ana):
    globex = create_client(acme.owner, name="Globex")
    archive_client(acme.owner, globex)
    assert found(ana, "globex") == []


def test_the_page_of_results_shows_each_kind_and_leads_to_all(acme, ana):
    for number in range(21):
        create_project(acme.owner, client=acme.client, name=f"Letters {number}")
    page = ana.get("/search/", {"q": "letters"}).content.decode()
    assert "Letters 0" in page and "/projects/?q=letters" in page
    assert "Nothing has all these words" in ana.get("/search/", {"q": "zebra"}).content.decode()
    assert "Deployments" in ana.get("/search/", {"q": "deploy"}).content.decode()
    evil = "<script>alert(1)</script>"
    assert evil not in ana.get("/search/", {"q": evil}).content.decode()


def test_lists_take_words_and_show_a_page_at_a_time(acme, ana):
    for number in range(120):
        create_project(acme.owner, client=acme.client, name=f"Task {number:03}")
    first, second = (ana.get("/projects/", {"page": page}).content.decode() for page in (1, 2))
    assert "Task 005" in first and "Task 005" not in second and "1–100 of 121" in first
    assert "Task 119" in second
    only = ana.get("/projects/", {"q": "119"}).content.decode()
    assert "Task 119" in only and "Task 118" not in only
    assert "Task 119" in ana.get("/projects/", {"page": "999"}).content.decode()
    assert "Task 119" in ana.get("/runs/new/", {"q": "task 119"}).content.decode()
    for path in ("/runs/", "/artifacts/", "/playground/"):
        assert "Try" in ana.get(path, {"q": "try"}).content.decode()
        assert "Try ·" not in ana.get(path, {"q": "zebra"}).content.decode()


def test_a_filled_workspace_has_as_much_as_was_asked_for(acme):
    call_command("fill", acme.owner.user.email, clients=3, projects=7, runs=40, artifacts=60)
    member = Member.objects.get(workspace__name="Very many")
    assert (member.user, member.role) == (acme.owner.user, "owner")
    assert Client.objects.for_action(member, "client.view").count() == 3 + 1  # and In-house
    assert Project.objects.for_action(member, "project.view").count() == 7 + 1
    assert Run.objects.for_action(member, "run.view").count() == 40
    assert Artifact.objects.for_action(member, "artifact.view").count() == 60
    browser = Browser()
    browser.force_login(member.user)
    session = browser.session
    session["workspace"] = str(member.workspace_id)
    session.save()
    for path in ("/", "/runs/", "/artifacts/", "/releases/", "/deployments/", "/clients/", "/usage/", "/playground/", "/runs/new/"):
        assert browser.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("email", "options", "sentence"),
    [
        ("nobody@example.com", {}, "Nobody has an account"),
        ("ana@example.com", {"workspace": "Acme"}, "already"),
        ("ana@example.com", {"runs": 0}, "at least one of each"),
    ],
)
def test_fill_says_what_it_cannot_do(acme, email, options, sentence):
    with pytest.raises(CommandError, match=sentence):
        call_command("fill", email, **options)
