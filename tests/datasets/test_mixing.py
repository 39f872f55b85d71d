"""A version made of others: what each part gives is told before, held-back rows stay held back, and no text is stored twice."""

import json

import pytest
from django.core.management import CommandError, call_command
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.datasets import mixing, rows, services, shaping
from studio.datasets.flags import Flag
from studio.datasets.mixing import Taken, Wish
from studio.datasets.models import DatasetVersion
from studio.errors import UserError
from studio.orders.models import Order
from studio.runs.recipe import recipe_of
from tests.fixtures import make_member, work_off
from tests.workspaces.conftest import world_of_another_client


def questions(count, word="client", **columns):
    return [{"question": f"{word} question {n}?", "answer": f"{word} answer {n}.", **columns} for n in range(count)]


def imported(world, name, records, *, percent=10, project=None):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    upload = services.Upload(filename=f"{name}.jsonl", chunks=[content], size=len(content), validation_percent=percent)
    version = services.create_with_version(world.owner, project=project or world.project, name=name, upload=upload)
    return finished(version)


def finished(version):
    order = work_off(version.order)
    assert order.status == "succeeded", order.error
    version.refresh_from_db()
    return version


def parts_of(*chosen):
    return [shaping.Part(version=version, **wish) for version, wish in chosen]


def contents(version, split=None):
    return [row["row"]["messages"][0]["content"] for row in rows.page(version.rows_path, split=split, limit=5000)]


@pytest.mark.parametrize(
    ("wishes", "taken"),
    [
        ([Wish(train=90, validation=10, times=1)], [Taken(90, 10)]),
        ([Wish(train=90, validation=10, times=0.5)], [Taken(45, 5)]),
        ([Wish(train=90, validation=10, times=3)], [Taken(270, 10)]),
        ([Wish(train=90, validation=10, times=1, most=50)], [Taken(45, 5)]),
        ([Wish(train=80, validation=0, times=1), Wish(train=1000, validation=100, share=20)], [Taken(80, 0), Taken(20, 2)]),
        ([Wish(train=80, validation=0, share=80), Wish(train=1000, validation=0, share=20)], [Taken(80, 0), Taken(20, 0)]),
        ([Wish(train=100, validation=0, times=1), Wish(train=10, validation=5, share=50)], [Taken(100, 0), Taken(100, 5)]),
    ],
)
def test_what_each_part_gives_is_told_before(wishes, taken):
    assert mixing.check(wishes) == taken


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ([], "Choose at least one part."),
        (
            [Wish(train=10, validation=1, share=60), Wish(train=10, validation=1, share=60)],
            "The shares come to 120 %. They must come to 100 %, or give one part a number of times instead.",
        ),
        (
            [Wish(train=10, validation=1, times=1), Wish(train=10, validation=1, share=100)],
            "The shares come to 100 %, so nothing is left for the other parts. They must come to less than 100 %.",
        ),
        ([Wish(train=10, validation=1, times=0)], "Times must be above 0 and at most 100."),
        ([Wish(train=10, validation=1, times=float("nan"))], "Times must be above 0 and at most 100."),
        ([Wish(train=10, validation=1)], "Give each part a number of times or a share, not both."),
        ([Wish(train=10, validation=1, times=1, most=0)], "At most must be from 1 to 20,000,000 rows."),
        (
            [Wish(train=10, validation=1, times=1), Wish(train=1, validation=1, share=99)],
            "A part would have to be repeated more than 100 times. Give it a smaller share.",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused_with_a_sentence(wishes, sentence):
    with pytest.raises(UserError) as refused:
        mixing.check(wishes)
    assert refused.value.fields["parts"] == sentence


def test_a_mix_has_of_each_part_what_was_planned_and_keeps_every_split(acme):
    client, general = imported(acme, "Client", questions(100)), imported(acme, "General", questions(200, "general"))
    parts = parts_of((client, {"times": 1}), (general, {"share": 25}))
    plan = shaping.planned(parts)
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Mixed", parts=parts))
    assert [(one.taken.train, one.taken.validation) for one in plan] == [(90, 10), (30, 3)]
    assert [(part["name"], part["train"], part["validation"]) for part in made.facts["parts"]] == [
        ("Client v1", 90, 10),
        ("General v1", 30, 3),
    ]
    assert made.facts["split"] == {"train": 120, "validation": 13}
    before = set(contents(client, "validation")) | set(contents(general, "validation"))
    assert set(contents(made, "validation")) <= before
    assert not set(contents(made, "train")) & before
    assert made.origin["kind"] == "mix"
    assert str(made) == "Mixed v1"
    assert AuditRecord.objects.filter(verb="dataset.add_version", object_id=str(made.pk)).count() == 1


def test_the_same_mix_asked_for_again_is_the_same_version_and_another_seed_takes_other_rows(acme):
    general = imported(acme, "General", questions(200, "general"))
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Half", parts=parts_of((general, {"times": 0.5}))))
    again = shaping.mix(acme.owner, project=acme.project, dataset=made.dataset, parts=parts_of((general, {"times": 0.5})))
    other = finished(shaping.mix(acme.owner, project=acme.project, dataset=made.dataset, parts=parts_of((general, {"times": 0.5})), seed=7))
    assert again == made
    assert (other.number, other.facts["rows"]) == (2, 100)
    assert set(contents(made)) != set(contents(other))


def test_rows_beyond_what_a_part_has_are_repeated_but_never_those_held_back(acme):
    client = imported(acme, "Client", questions(40))
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Thrice", parts=parts_of((client, {"times": 2.5}))))
    assert made.facts["split"] == {"train": 90, "validation": 4}
    assert sorted(contents(made, "validation")) == sorted(contents(client, "validation"))
    train = contents(made, "train")
    assert {train.count(question) for question in train} == {2, 3}
    assert made.facts["notices"] == ["Client v1 gives more rows than it has: 54 rows to train on repeat earlier ones of it."]


def test_texts_are_stored_once_and_never_in_a_chain(acme):
    one, two = imported(acme, "One", questions(30)), imported(acme, "Two", questions(30, "other"))
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Both", parts=parts_of((one, {"times": 1}), (two, {"times": 1}))))
    again = finished(shaping.mix(acme.owner, project=acme.project, name="Again", parts=parts_of((made, {"times": 1}))))
    stores = {path.stat().st_ino for path in again.folder.glob("rows-*.parquet")}
    assert {one.rows_path.stat().st_ino, two.rows_path.stat().st_ino} <= stores
    assert set(rows.column(again.rows_path, "store").tolist()) == {0, 1}
    assert contents(again) == contents(one) + contents(two)
    assert again.sha256 == made.sha256


def test_a_row_of_one_part_that_another_held_back_is_held_back_too(acme):
    one = imported(acme, "One", questions(40))
    held = set(contents(one, "validation"))
    two = imported(acme, "Two", questions(40)[::-1] + questions(5, "more"), percent=0)
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Both", parts=parts_of((one, {"times": 1}), (two, {"times": 1}))))
    assert not held & set(contents(made, "train"))
    assert made.facts["parts"][1]["moved"] == len(held) == 4
    assert "4 rows to train on resemble rows held back in another part. They are held back too." in made.facts["warnings"]


def test_findings_of_the_rows_come_along(acme):
    noted = imported(acme, "Noted", [*questions(20), {"question": "Dear {{name}}?", "answer": "Yes."}], percent=0)
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Mixed", parts=parts_of((noted, {"times": 1}))))
    found = rows.page(made.rows_path, flags=Flag.PLACEHOLDER)
    assert [row["row"]["messages"][0]["content"] for row in found] == ["Dear {{name}}?"]
    assert made.facts["findings"]["placeholder"] == 1


def test_only_versions_of_one_client_and_one_shape_are_mixed(acme):
    chats = imported(acme, "Chats", questions(20))
    texts = imported(acme, "Texts", [{"text": f"Text {n}"} for n in range(20)])
    with pytest.raises(UserError) as differ:
        shaping.mix(acme.owner, project=acme.project, name="Both", parts=parts_of((chats, {"times": 1}), (texts, {"times": 1})))
    assert differ.value.fields["parts"] == "They have chat and text rows. Mix versions of one kind."
    other = world_of_another_client(acme)
    with pytest.raises(UserError) as foreign:
        shaping.mix(acme.owner, project=acme.project, name="Both", parts=parts_of((chats, {"times": 1}), (other.version, {"times": 1})))
    assert foreign.value.fields["parts"] == "Choose versions of this client."


def test_a_version_is_split_again_with_another_share_and_seed(acme):
    version = imported(acme, "Client", questions(100))
    made = finished(shaping.split_again(acme.owner, version, percent=20, seed=7))
    assert (made.number, made.dataset, made.parent, made.origin["kind"]) == (2, version.dataset, version, "split")
    assert made.facts["split"] == {"train": 80, "validation": 20}
    assert contents(made) == contents(version)
    assert made.sha256 == version.sha256
    back = finished(shaping.split_again(acme.owner, made, percent=10, seed=42))
    assert set(contents(back, "validation")) == set(contents(version, "validation"))


@pytest.mark.parametrize(("percent", "seed"), [(51, 1), (-1, 1), (float("nan"), 1), (5, -1), (5, 2**32)])
def test_a_split_that_cannot_be_is_refused(acme, percent, seed):
    with pytest.raises(UserError):
        shaping.split_again(acme.owner, acme.version, percent=percent, seed=seed)


def test_a_held_out_dataset_is_no_part_and_its_rows_are_noticed_and_left_out(acme):
    gate = imported(acme, "Gate", questions(10), percent=0)
    version = imported(acme, "Client", questions(50), percent=10)
    assert shaping.overlaps(version) == []
    shaping.update_dataset(acme.owner, gate.dataset, held_out=True)
    shared = len(set(contents(gate)) & set(contents(version, "train")))
    assert [overlap.sentence for overlap in shaping.overlaps(version)] == [
        f"{shared} rows to train on are also in Gate, which is held out: what is measured with it would look better than it is."
    ]
    gate.refresh_from_db()
    with pytest.raises(UserError) as refused:
        shaping.mix(acme.owner, project=acme.project, name="Both", parts=parts_of((gate, {"times": 1})))
    assert refused.value.fields["parts"] == "Gate is held out, so it cannot be mixed in."
    made = finished(shaping.leave_out_held_out(acme.owner, version))
    assert made.facts["rows"] == 40
    assert not set(contents(made)) & set(contents(gate))
    assert set(contents(made, "validation")) <= set(contents(version, "validation"))
    assert made.facts["notices"] == ["10 rows of Client v1 left out, since a held-out set has them too."]
    assert shaping.overlaps(made) == []


def test_all_rows_left_out_is_a_sentence(acme):
    gate, version = imported(acme, "Gate", questions(30)), imported(acme, "Client", questions(30))
    shaping.update_dataset(acme.owner, gate.dataset, held_out=True)
    made = shaping.leave_out_held_out(acme.owner, version)
    order = work_off(made.order)
    assert (order.status, order.error) == ("failed", "No row is left. Take more of a part, or leave less out.")


@pytest.fixture
def ana(acme):
    opened = Browser()
    opened.force_login(acme.owner.user)
    return opened


def form_of(project, *lines, **fields):
    """The form of the page of mixes: (version, amount, unit) for each part."""
    form = {"project": str(project.pk), "seed": "42"} | fields
    for version, amount, unit in lines:
        key = version.dataset_id
        form |= {f"use_{key}": "on", f"version_{key}": str(version.pk), f"amount_{key}": amount, f"unit_{key}": unit, f"most_{key}": ""}
    return form


def test_a_person_sees_what_a_mix_gives_before_it_is_made(acme, ana):
    client, general = imported(acme, "Client", questions(100)), imported(acme, "General", questions(200, "general"))
    page = ana.get(f"/datasets/mix/?project={acme.project.pk}&part={client.pk}").content.decode()
    assert "100 rows, 90 to train on and 10 for validation" in page
    form = form_of(acme.project, (client, "1", "times"), (general, "25", "share"), name="Mixed")
    seen = ana.post("/datasets/mix/preview/", form).content.decode()
    assert "133 rows, 120 to train on and 13 for validation" in seen
    assert "<html" not in seen
    answer = ana.post("/datasets/mix/", form)
    made = finished(DatasetVersion.objects.get(dataset__name="Mixed"))
    assert answer["Location"] == f"/datasets/versions/{made.pk}/"
    assert made.facts["split"] == {"train": 120, "validation": 13}
    told = ana.get(f"/datasets/versions/{made.pk}/split/").content.decode()
    assert "Client v1" in told
    assert f"/datasets/versions/{made.pk}/rows/?row=34" in told


@pytest.mark.parametrize(
    ("amount", "unit", "sentence"),
    [("0", "times", "Times must be above 0"), ("x", "times", "say how much of it"), ("60", "share", "The shares come to 60 %")],
)
def test_a_mix_that_cannot_be_says_why_while_it_is_typed(acme, ana, amount, unit, sentence):
    form = form_of(acme.project, (acme.version, amount, unit), name="Mixed")
    seen = ana.post("/datasets/mix/preview/", form)
    assert seen.status_code == 200
    assert sentence in seen.content.decode()
    refused = ana.post("/datasets/mix/", form)
    assert (refused.status_code, DatasetVersion.objects.filter(dataset__name="Mixed").count()) == (422, 0)
    assert sentence in refused.content.decode()


def test_a_dataset_is_held_out_on_its_page_and_no_run_trains_on_it(acme, ana, slot):
    version = acme.version
    page = f"/datasets/versions/{version.pk}/split/"
    assert "Hold it out" in ana.get(page).content.decode()
    assert ana.post(f"/datasets/{version.dataset_id}/hold-out/", {"held_out": "true"})["Location"] == page
    assert [record.change for record in AuditRecord.objects.filter(verb="dataset.update")] == [{"held_out": [False, True]}]
    shown = ana.get(page).content.decode()
    assert "Let runs train on it again" in shown
    assert "Train on it" not in shown
    refused = ana.post("/runs/new/", {"project": acme.project.pk, "plugin": "rehearsal", "dataset_version": str(version.pk)})
    assert "This dataset is held out" in refused.content.decode()
    body = {"project": str(acme.project.pk), "plugin": "rehearsal", "base_model": str(acme.base.pk), "dataset_version": str(version.pk)}
    answer = acme.api.post("runs", body)
    assert (answer.status_code, answer.json()["error"]["fields"]) == (422, {"dataset_version": shaping.HELD_OUT})
    clone = acme.api.post(f"runs/{acme.run.pk}/clone", {"changes": {}})
    assert (clone.status_code, clone.json()["error"]["message"]) == (422, shaping.HELD_OUT)
    assert acme.api.post("estimates", body | {"config": {}}).status_code in (200, 422)
    ana.post(f"/datasets/{version.dataset_id}/hold-out/", {})
    assert acme.api.post("runs", body).status_code in (200, 201, 202)


def test_a_dataset_says_on_what_terms_its_rows_may_be_used(acme, ana):
    page = f"/datasets/versions/{acme.version.pk}/"
    assert 'name="license" value=""' in ana.get(page).content.decode()
    assert ana.post(f"/datasets/{acme.version.dataset_id}/license/", {"license": " cc-by-4.0 "})["Location"] == page
    assert 'name="license" value="cc-by-4.0"' in ana.get(page).content.decode()
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="vic@example.com").user)
    assert "<dd>cc-by-4.0</dd>" in viewer.get(page).content.decode()
    told = acme.api.patch(f"datasets/{acme.version.dataset_id}", {"license": "x" * 81})
    assert (told.status_code, told.json()["error"]["fields"]) == (422, {"license": "At most 80 characters: its short name."})
    assert acme.api.patch(f"datasets/{acme.version.dataset_id}", {"license": ""}).json()["license"] == ""
    changes = [record.change for record in AuditRecord.objects.filter(verb="dataset.update").order_by("at")]
    assert changes == [{"license": ["", "cc-by-4.0"]}, {"license": ["cc-by-4.0", ""]}]


def test_manage_train_refuses_what_is_held_out(acme, slot, tmp_path):
    shaping.update_dataset(acme.owner, acme.version.dataset, held_out=True)
    (tmp_path / "run.yaml").write_text(recipe_of(acme.run))
    with pytest.raises(CommandError, match="This dataset is held out"):
        call_command("train", str(tmp_path / "run.yaml"))


def test_a_dataset_that_a_run_is_training_on_is_not_held_out(acme):
    Order.objects.filter(pk=acme.run.order_id).update(status=Order.Status.RUNNING)
    refused = acme.api.patch(f"datasets/{acme.version.dataset_id}", {"held_out": True})
    assert (refused.status_code, refused.json()["error"]["message"]) == (422, shaping.IN_USE)
    Order.objects.filter(pk=acme.run.order_id).update(status=Order.Status.SUCCEEDED)
    assert acme.api.patch(f"datasets/{acme.version.dataset_id}", {"held_out": True, "name": "Gate"}).json()["held_out"] is True
    assert AuditRecord.objects.get(verb="dataset.update").change == {"name": ["Replies", "Gate"], "held_out": [False, True]}


def test_the_pages_say_that_rows_are_in_a_held_out_set_and_leave_them_out(acme, ana, slot):
    gate = imported(acme, "Gate", questions(10), percent=0)
    version = imported(acme, "Client", questions(50), percent=0)
    shaping.update_dataset(acme.owner, gate.dataset, held_out=True)
    sentence = "10 rows to train on are also in Gate, which is held out"
    assert sentence in ana.get(f"/datasets/versions/{version.pk}/split/").content.decode()
    form = f"/runs/new/?project={acme.project.pk}&plugin=rehearsal&dataset_version={version.pk}"
    assert sentence in ana.get(form).content.decode()
    answer = ana.post(f"/datasets/versions/{version.pk}/leave-out/")
    made = finished(DatasetVersion.objects.get(dataset=version.dataset, number=2))
    assert answer["Location"] == f"/datasets/versions/{made.pk}/"
    assert made.facts["rows"] == 40


def test_a_script_mixes_and_splits(acme):
    client = imported(acme, "Client", questions(100))
    body = {"project": str(acme.project.pk), "name": "Mixed", "parts": [{"version": str(client.pk), "times": 0.5}]}
    answer = acme.api.post("mixes", body)
    assert answer.status_code == 202, answer.content
    made = finished(DatasetVersion.objects.get(pk=answer.json()["id"]))
    assert made.facts["rows"] == 50
    again = acme.api.post(f"dataset-versions/{made.pk}/splits", {"validation_percent": 20, "seed": 3})
    assert again.status_code == 202
    split = finished(DatasetVersion.objects.get(pk=again.json()["id"]))
    assert split.facts["split"] == {"train": 40, "validation": 10}
    for wrong in ({"parts": []}, {"parts": [{"version": str(client.pk)}]}, {"parts": [{"version": str(client.pk), "times": -1}]}):
        assert acme.api.post("mixes", body | wrong).status_code == 422


def test_a_column_of_the_file_spreads_and_another_keeps_together(acme):
    records = [row | {"topic": f"topic {n % 4}", "ticket": n // 5} for n, row in enumerate(questions(200))]
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    rules = {"stratify": "topic", "together": "ticket"}
    upload = services.Upload(filename="tickets.jsonl", chunks=[content], size=len(content), validation_percent=10, rules=rules)
    version = finished(services.create_with_version(acme.owner, project=acme.project, name="Tickets", upload=upload))
    assert version.facts["split"]["validation"] == 20
    assert {stratum["name"] for stratum in version.facts["strata"]} == {f"topic {n}" for n in range(4)}
    tickets = [int(question.split()[2].strip("?")) // 5 for question in contents(version, "validation")]
    assert {tickets.count(ticket) for ticket in tickets} == {5}
    again = finished(shaping.split_again(acme.owner, version, percent=20, seed=3))
    tickets = [int(question.split()[2].strip("?")) // 5 for question in contents(again, "validation")]
    assert {tickets.count(ticket) for ticket in tickets} == {5}
    assert {stratum["name"] for stratum in again.facts["strata"]} == {f"topic {n}" for n in range(4)}


def test_what_is_left_out_of_a_repeated_part_is_not_made_up_for(acme):
    gate, version = imported(acme, "Gate", questions(10), percent=0), imported(acme, "Client", questions(50), percent=0)
    shaping.update_dataset(acme.owner, gate.dataset, held_out=True)
    parts = parts_of((version, {"times": 2}))
    made = finished(shaping.mix(acme.owner, project=acme.project, name="Twice", parts=parts, without_held_out=True))
    train = contents(made)
    assert {train.count(question) for question in train} == {2}
    assert made.facts["rows"] == 80
