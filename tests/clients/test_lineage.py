"""Lineage both ways: what a thing was made of and what was made of it, where a row is, and nothing of anybody else's."""

import json

import numpy as np
import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext

from studio.clients.graph import around
from studio.clients.picture import SHOWN, picture
from studio.clients.whereabouts import whereabouts
from studio.datasets import drafting, rows
from studio.datasets.changing import Changes
from studio.datasets.models import DatasetVersion
from studio.serving import deploying
from tests.fixtures import (
    Api,
    make_artifact,
    make_build,
    make_delivery,
    make_deployment,
    make_key,
    make_member,
    make_order,
    make_release,
    make_run,
    make_version,
    work_off,
)
from tests.workspaces.conftest import name_everything, world_of_another_client


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


@pytest.fixture
def shipped(acme):
    """A release of acme's adapter, live in a deployment and delivered."""
    release = make_release(acme.owner, acme.artifact, stage="approved")
    deployment = make_deployment(acme.project)
    deploying.promote(acme.owner, deployment, release=release)
    return release, deployment, make_delivery(acme.owner, release, acme.build, recipient="Their shop")


def second_version(acme, changes):
    """What a person saved of the first version, worked off."""
    made = drafting.revise(acme.owner, acme.version, changes, note="")
    assert work_off(made.order).status == "succeeded", made.order.error
    return DatasetVersion.objects.select_related("dataset__project__client", "parent", "order").get(pk=made.pk)


def learnt(acme, version, name):
    """A run on a version, and its adapter."""
    run = make_run(acme.owner, acme.project, acme.base, version)
    run.name = name
    run.save()
    return run, make_artifact(run.order, acme.project, {"a": name.encode()}, name=name, base_model=acme.base, dataset_version=version)


def names(graph):
    return {node.name for node in graph.nodes.values()}


def pairs(graph):
    return {(graph.nodes[one].name, graph.nodes[other].name) for one, other in graph.edges}


def test_from_the_rows_to_the_deployment_and_back(acme, shipped):
    release, deployment, delivery = shipped
    built = acme.build.artifact
    whole = {
        ("Replies v1", "Try"),
        ("Try", "Try"),
        ("Try", built.name),
        ("Try", release.name),
        (release.name, "in-house/support"),
        (release.name, "Their shop"),
        (built.name, "Their shop"),
    }
    graph = around(acme.owner, acme.version)
    assert pairs(graph) == whole
    assert {node.kind for node in graph.nodes.values()} == {"version", "run", "artifact", "build", "release", "deployment", "delivery"}
    for thing in (acme.run, acme.artifact, release):
        found = around(acme.owner, thing)
        assert {acme.version.pk, acme.run.pk, acme.artifact.pk, deployment.pk, delivery.pk, acme.base.pk} <= set(found.nodes)
        assert (acme.base.name, "Try") in pairs(found)
    upwards = around(acme.owner, built)
    assert {acme.version.pk, acme.run.pk, acme.artifact.pk, built.pk} <= set(upwards.nodes)
    assert not {release.pk, deployment.pk} & set(upwards.nodes)  # they came of the adapter, not of this file


def test_what_came_of_the_same_rows_beside_a_thing_is_not_of_its_lineage(acme, shipped):
    run, artifact = learnt(acme, acme.version, "Beside")
    graph = around(acme.owner, shipped[0])
    assert not {run.pk, artifact.pk} & set(graph.nodes)
    assert {run.pk, artifact.pk} <= set(around(acme.owner, acme.version).nodes)


def test_versions_made_of_versions_are_followed_both_ways(acme):
    second = make_version(acme.owner, acme.project, name="Second")
    second.parent = acme.version
    second.save()
    mixed = make_version(acme.owner, acme.project, name="Mixed")
    mixed.origin = {"kind": "mix", "parts": [{"version": str(second.pk)}, {"version": "nothing"}]}
    mixed.save()
    run, artifact = learnt(acme, mixed, "On the mix")
    assert {second.pk, mixed.pk, run.pk, artifact.pk, acme.run.pk} <= set(around(acme.owner, acme.version).nodes)
    back = around(acme.owner, artifact)
    assert {acme.version.pk, second.pk, mixed.pk, run.pk} <= set(back.nodes)
    assert {("Replies v1", "Second v1"), ("Second v1", "Mixed v1"), ("Mixed v1", "On the mix")} <= pairs(back)
    middle = around(acme.owner, second)
    assert run.pk in middle.nodes
    assert acme.run.pk not in middle.nodes  # it learnt from the version before


def test_a_canary_is_drawn_as_one_and_an_old_release_is_not_live(acme, shipped):
    release, deployment, _ = shipped
    other = make_release(acme.owner, acme.artifact, version=(1, 1, 0), stage="approved")
    deploying.try_canary(acme.owner, deployment, release=other, percent=5)
    graph = around(acme.owner, acme.artifact)
    assert graph.tried == {(other.pk, deployment.pk)}
    assert (release.pk, deployment.pk) in graph.edges
    assert sum(curve.tried for curve in picture(graph).curves) == 1


def test_nothing_of_another_client_appears_even_where_a_row_points_there(acme, rival):
    globex = world_of_another_client(acme)
    name_everything(globex, "Globexsecret")
    name_everything(rival, "Rivalsecret")
    for world in (globex, rival):
        acme.artifact.parents.add(world.artifact)
        world.artifact.parents.add(acme.artifact)
        world.version.parent = acme.version
        world.version.save()
        release = make_release(world.owner, world.artifact)
        release.name, release.artifact = "Globexsecret release", acme.artifact
        release.save()
        make_deployment(world.project, release, slug="globexsecret")
    max_ = Browser()
    max_.force_login(make_member(acme.workspace, role="member", email="max@example.com", clients=[acme.client]).user)
    own = {acme.version.pk, acme.run.pk, acme.artifact.pk, acme.build.artifact_id, acme.base.pk}
    for kind, thing in (("versions", acme.version), ("runs", acme.run), ("artifacts", acme.artifact)):
        assert set(around(acme.owner, thing).nodes) <= own  # the owner may see both clients; a lineage is one's alone
        text = max_.get(f"/lineage/{kind}/{thing.pk}/").content.decode().lower()
        assert "globexsecret" not in text
        assert "rivalsecret" not in text
    where = whereabouts(acme.owner, acme.version, 7)
    assert [place.version.pk for place in where.places] == [acme.version.pk]
    assert "globexsecret" not in max_.get(f"/lineage/versions/{acme.version.pk}/rows/8/").content.decode().lower()


def test_a_guest_and_a_stranger_meet_no_lineage(acme, rival, shipped):
    guest = Browser()
    guest.force_login(make_member(acme.workspace, role="guest", email="gus@example.com", clients=[acme.client]).user)
    stranger = Browser()
    stranger.force_login(rival.owner.user)
    for path in (f"releases/{shipped[0].pk}", f"artifacts/{acme.artifact.pk}", f"versions/{acme.version.pk}/rows/1"):
        assert guest.get(f"/lineage/{path}/").status_code == 404
        assert stranger.get(f"/lineage/{path}/").status_code == 404


def test_what_is_far_is_summed_up_and_the_list_below_names_it(acme, ana):
    for number in range(15):
        learnt(acme, acme.version, f"Run number {number}")
    graph = around(acme.owner, acme.version)
    columns = picture(graph).columns
    assert [len(boxes) for boxes in columns] == [1, SHOWN, SHOWN, 1]
    assert [boxes[-1].more for boxes in columns] == [0, 11, 11, 0]
    text = ana.get(f"/lineage/versions/{acme.version.pk}/").content.decode()
    assert "11 more" in text
    assert all(f"Run number {number}<" in text for number in range(15))
    far = picture(around(acme.owner, acme.artifact))
    assert [box.current for boxes in far.columns for box in boxes].count(True) == 1


def test_the_thing_that_is_looked_at_is_shown_however_many_are_beside_it(acme):
    for number in range(15):
        make_build(acme.owner, acme.artifact, quantization=f"q{number}")
    oldest = acme.build.artifact
    shown = [box.node.pk for boxes in picture(around(acme.owner, oldest)).columns for box in boxes if box.node]
    assert oldest.pk in shown


def test_a_lineage_takes_as_many_queries_for_many_things_as_for_few(acme, shipped):
    def counted(thing):
        with CaptureQueriesContext(connection) as queries:
            around(acme.owner, thing)
        return len(queries)

    few = counted(acme.version)
    for number in range(30):
        _, artifact = learnt(acme, acme.version, f"Run number {number}")
        make_delivery(acme.owner, make_release(acme.owner, artifact, version=(2, number, 0)), acme.build)
    assert counted(acme.version) == few


def test_a_row_that_was_dropped_is_in_runs_on_the_version_before_only(acme, shipped):
    release, _, _ = shipped
    second = second_version(acme, Changes(dropped={5}))
    later, _ = learnt(acme, second, "Without it")
    where = whereabouts(acme.owner, acme.version, 5)
    assert [place.version.pk for place in where.places] == [acme.version.pk]
    assert where.learnt == [acme.run]
    assert [(fate.version.pk, fate.what) for fate in where.fates] == [(second.pk, "dropped")]
    assert [node.pk for node in where.releases] == [release.pk]
    assert where.sentence == "1 release learnt from this row; it is live in in-house/support."
    kept = whereabouts(acme.owner, second, 5)  # the row that was the seventh
    assert [(place.version.pk, place.numbers) for place in kept.places] == [(acme.version.pk, [7]), (second.pk, [6])]
    assert set(kept.learnt) == {acme.run, later}


def test_a_row_that_was_edited_is_another_row_and_each_leads_to_the_other(acme):
    row = drafting.row_of(acme.version, 6)["row"]
    changed = {"messages": [row["messages"][0], {"role": "assistant", "content": "Corrected."}]}
    second = second_version(
        acme, Changes(edited={3: {"messages": [row["messages"][0], {"role": "assistant", "content": "Also."}]}, 6: changed})
    )
    later, _ = learnt(acme, second, "On the correction")
    where = whereabouts(acme.owner, acme.version, 6)
    assert where.learnt == [acme.run]
    (fate,) = where.fates
    assert (fate.version.pk, fate.what, fate.number) == (second.pk, "edited", 7)
    edited = whereabouts(acme.owner, second, 6)
    assert edited.row["row"] == changed
    assert edited.learnt == [later]
    assert (edited.former.version.pk, edited.former.number) == (acme.version.pk, 7)


def test_a_validation_row_was_measured_on_and_not_learnt_from(acme, shipped):
    where = whereabouts(acme.owner, acme.version, 0)
    assert (where.learnt, where.measured) == ([], [acme.run])
    assert where.sentence == "No run learnt from this row; 1 run was measured on it."
    assert where.graph.nodes == {}


def test_the_sentence_counts_releases_and_says_where_they_are_live(acme, shipped):
    for minor in (1, 2):
        make_release(acme.owner, acme.artifact, version=(1, minor, 0), stage="approved")
    assert whereabouts(acme.owner, acme.version, 5).sentence == "3 releases learnt from this row; 1 of them is live in in-house/support."
    deploying.clear(acme.owner, shipped[1])
    assert whereabouts(acme.owner, acme.version, 5).sentence == "3 releases learnt from this row; none of them is live."


def test_a_row_that_no_run_has_read(acme):
    alone = make_version(acme.owner, acme.project, name="Alone", count=20)
    assert whereabouts(acme.owner, alone, 15).sentence == "No run has read this row."
    where = whereabouts(acme.owner, alone, 5)
    assert where.sentence == "1 run learnt from this row; no release came of it."


def test_another_row_of_the_same_hash_is_another_row(acme):
    other = make_version(acme.owner, acme.project, name="Other")
    with rows.RowWriter(other.folder / "draft.parquet") as writer:
        for number in range(12):
            chat = [{"role": "user", "content": f"Else {number}?"}, {"role": "assistant", "content": "Yes."}]
            writer.add(line=number + 1, row=json.dumps({"messages": chat}))
    rows.finish(
        other.folder / "draft.parquet",
        other.folder / "rows.parquet",
        validation=np.zeros(12, dtype=bool),
        flags=np.zeros(12, dtype=np.uint32),
        hashes=np.arange(12, dtype=np.uint64),
    )
    assert [place.version.pk for place in whereabouts(acme.owner, acme.version, 5).places] == [acme.version.pk]


def test_a_version_whose_file_is_gone_or_that_is_too_long_is_named_and_not_passed_over(acme, monkeypatch):
    gone, long = (make_version(acme.owner, acme.project, name=name) for name in ("Gone", "Long"))
    gone.rows_path.unlink()
    long.facts = long.facts | {"rows": 10**9}
    long.save()
    assert {version.pk for version in whereabouts(acme.owner, acme.version, 5).unread} == {gone.pk, long.pk}


def test_the_page_of_a_row_answers_first_and_the_api_says_the_same(acme, ana, shipped):
    text = ana.get(f"/lineage/versions/{acme.version.pk}/rows/6/").content.decode()
    sentence = "1 release learnt from this row; it is live in in-house/support."
    assert sentence in text
    assert f"/deployments/{shipped[1].pk}/" in text
    assert "Their shop" in text
    told = Api(make_key(acme.owner, scopes=["read"])).get(f"dataset-versions/{acme.version.pk}/rows/5/lineage").json()
    assert (told["sentence"], told["line"], told["live"]) == (sentence, 6, [str(shipped[1].pk)])
    assert told["versions"] == [{"version": str(acme.version.pk), "name": "Replies v1", "indices": [5], "copies": 1, "split": "train"}]
    assert [run["id"] for run in told["learnt"]] == [str(acme.run.pk)]
    assert [release["name"] for release in told["releases"]] == [shipped[0].name]


def test_a_row_that_is_not_there_is_not_found(acme, ana):
    for number in (0, 13, 10**30):
        assert ana.get(f"/lineage/versions/{acme.version.pk}/rows/{number}/").status_code == 404
        assert acme.api.get(f"dataset-versions/{acme.version.pk}/rows/{number + 12}/lineage").status_code == 404


def test_a_row_is_asked_for_by_its_number_or_by_the_line_of_the_file(acme, ana):
    path = f"/lineage/versions/{acme.version.pk}/"
    assert ana.get(f"{path}?row=8&by=row")["Location"] == f"{path}rows/8/"
    second = second_version(acme, Changes(dropped={5}))
    other = f"/lineage/versions/{second.pk}/"
    assert ana.get(f"{other}?row=8&by=line")["Location"] == f"{other}rows/7/"
    assert "No row of this version comes from such a line." in ana.get(f"{other}?row=6&by=line").content.decode()
    for typed in ("0", "13", "many", "\x00"):
        answer = ana.get(path, {"row": typed})
        assert (answer.status_code, "This version has rows 1 to 12." in answer.content.decode()) == (200, True)


def test_every_page_of_a_thing_leads_to_its_lineage(acme, ana, shipped):
    for page, kind, thing in (
        (f"/artifacts/{acme.artifact.pk}/", "artifacts", acme.artifact),
        (f"/releases/{shipped[0].pk}/", "releases", shipped[0]),
        (f"/runs/{acme.run.pk}/", "runs", acme.run),
        (f"/datasets/versions/{acme.version.pk}/", "versions", acme.version),
    ):
        assert f"/lineage/{kind}/{thing.pk}/" in ana.get(page).content.decode(), page
        assert ana.get(f"/lineage/{kind}/{thing.pk}/").status_code == 200
    assert f"/lineage/versions/{acme.version.pk}/rows/3/" in ana.get(f"/datasets/versions/{acme.version.pk}/row/?row=3").content.decode()


def test_an_adapter_from_elsewhere_has_its_base_and_no_run(acme):
    order = make_order(acme.owner, kind="adapter", client=acme.client)
    artifact = make_artifact(order, acme.project, {"a": b"a"}, name="From elsewhere", base_model=acme.base)
    assert pairs(around(acme.owner, artifact)) == {(acme.base.name, "From elsewhere")}
