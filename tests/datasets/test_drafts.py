"""What a person changes in rows is kept at once, bounded, judged by the import's rules, and saved as the next version."""

import json
import shutil

import pytest
from django.urls import reverse

from studio.audit.models import AuditRecord
from studio.datasets import changing, drafting, rows
from studio.datasets.changing import Changes
from studio.datasets.models import DatasetVersion, Draft
from studio.errors import UserError
from tests.datasets.made import browser_of, upload
from tests.datasets.test_rows_page import SECRET, address, chat, numbers
from tests.fixtures import make_member, work_off


@pytest.fixture
def ana(acme):
    return browser_of(acme.owner.user)


@pytest.fixture
def version(acme):
    """30 rows; row 3 holds a key, row 10 a placeholder, row 30 repeats row 1."""
    lines = [chat(f"Question {number}?", f"Answer {number}.") for number in range(1, 31)]
    lines[2] = chat("What is the key?", f"It is {SECRET}.")
    lines[9] = chat("Hello {{name}}?", "Hello.")
    lines[29] = chat("Question 1?", "Answer 1.")
    return upload(acme, lines, name="Questions")


def form(*said, name="messages"):
    """A row as its form sends it: pairs of role and text."""
    fields = {"do": "save"}
    for number, (role, text) in enumerate(said):
        fields |= {f"{name}-{number}-role": role, f"{name}-{number}-content": text, f"{name}-{number}-from": str(number)}
    return fields


def changes(version):
    return drafting.changes_of(Draft.objects.filter(version=version).first())


def saved(version):
    """The version that was saved last, after a worker has written it."""
    made = DatasetVersion.objects.filter(dataset=version.dataset).order_by("-number").first()
    work_off(made.order)
    made.refresh_from_db()
    return made


def all_rows(version):
    return list(rows.read(version.rows_path))


def test_a_row_is_edited_kept_and_saved_as_the_next_version(ana, acme, version):
    before = AuditRecord.objects.count()
    answer = ana.post(address("row_edit", version, "row=4"), form(("user", "Better\r\nquestion?"), ("assistant", "Better answer.")))
    assert (answer.status_code, answer.headers["Location"]) == (302, f"{address('rows', version)}?#row-4")
    assert AuditRecord.objects.count() == before + 1
    page = ana.get(address("rows", version)).content.decode()
    assert "1 changed" in page
    assert "Better question?" in page
    assert numbers(ana.get(address("rows", version, "draft=1"))) == [4]
    answer = ana.post(address("draft_save", version), {"note": "  Friendlier \n"})
    made = saved(version)
    assert answer.headers["Location"] == address("version", made)
    assert (made.number, made.parent, made.note, made.status) == (2, version, "Friendlier", "ready")
    assert made.facts["changes"] == {"added": 0, "changed": 1, "dropped": 0}
    assert all_rows(made)[3] == chat("Better\nquestion?", "Better answer.")
    assert all_rows(made)[4:] == all_rows(version)[4:]
    assert not Draft.objects.exists()
    page = ana.get(address("version", made)).content.decode()
    assert "Edited from" in page
    assert "Friendlier" in page
    assert all_rows(version)[3] == chat("Question 4?", "Answer 4.")


def test_rows_are_dropped_and_brought_back_one_by_one_or_together(ana, version):
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    ana.post(address("draft_rows", version), {"do": "drop", "chosen": ["7", "8", "9"]})
    assert changes(version).dropped == {4, 6, 7, 8}
    ana.post(address("draft_rows", version), {"do": "restore:5"})
    ana.post(address("draft_rows", version), {"do": "restore", "chosen": ["8"]})
    assert changes(version).dropped == {6, 8}
    ana.post(address("draft_rows", version), {"do": "restore", "chosen": ["7", "9"]})
    assert not Draft.objects.exists()


def test_bringing_back_undoes_the_last_thing_first(ana, version):
    ana.post(address("row_edit", version, "row=4"), form(("user", "Other?"), ("assistant", "Yes.")))
    ana.post(address("draft_rows", version), {"do": "drop:4"})
    ana.post(address("draft_rows", version), {"do": "restore:4"})
    assert changes(version).edited == {3: chat("Other?", "Yes.")}
    ana.post(address("draft_rows", version), {"do": "restore:4"})
    assert not Draft.objects.exists()


def test_a_row_typed_as_it_was_is_no_change(ana, version):
    ana.post(address("row_edit", version, "row=4"), form(("user", "Question 4?"), ("assistant", "Answer 4.")))
    assert not changes(version)


def test_rows_are_added_copied_edited_and_taken_out_again(ana, version):
    ana.post(address("row_edit", version), form(("user", "New?"), ("assistant", "Yes.")))
    copy = ana.get(address("row_edit", version, "copy=4")).content.decode()
    assert "Question 4?" in copy
    ana.post(address("row_edit", version, "copy=4"), form(("user", "Question 4?"), ("assistant", "Answer 4, again.")))
    assert changes(version).added == [chat("New?", "Yes."), chat("Question 4?", "Answer 4, again.")]
    assert "New?" in ana.get(address("row", version, "added=0")).content.decode()
    ana.post(address("row_edit", version, "added=0"), form(("user", "Newer?"), ("assistant", "Yes.")))
    ana.post(address("draft_rows", version), {"do": "drop-added:1"})
    assert changes(version).added == [chat("Newer?", "Yes.")]
    ana.post(address("draft_save", version))
    assert all_rows(saved(version))[-1] == chat("Newer?", "Yes.")


@pytest.mark.parametrize(
    ("said", "field", "sentence"),
    [
        ([("user", "Why?")], "messages-0", "Ends with a question. Every chat must end with an answer."),
        ([("user", "Why?"), ("assistant", " ")], "messages-1", "The assistant message is empty, there is nothing to learn."),
        ([("user", "Why?"), ("user", "Why?"), ("assistant", "So.")], "messages-1", "Expected assistant after user."),
        ([("user", "Why?"), ("robot", "So.")], "messages-1", 'Role "robot" is unknown. Use system, user, assistant or tool.'),
        ([], "messages-0", "No messages."),
    ],
)
def test_a_row_that_the_import_would_refuse_is_refused_beside_its_field(ana, version, said, field, sentence):
    answer = ana.post(address("row_edit", version, "row=4"), form(*said))
    assert answer.status_code == 422
    assert answer.context["error"].fields == {field: sentence}
    assert not Draft.objects.exists()


def test_a_message_is_added_or_removed_without_keeping_anything(ana, version):
    typed = form(("user", "Why?"), ("assistant", "So."))
    more = ana.post(address("row_edit", version, "row=4"), typed | {"do": "add:messages"})
    assert [message["role"] for message in more.context["parts"][0]["messages"]] == ["user", "assistant", "user"]
    less = ana.post(address("row_edit", version, "row=4"), typed | {"do": "remove:messages-0"})
    assert [message["content"] for message in less.context["parts"][0]["messages"]] == ["So."]
    assert not Draft.objects.exists()


def test_preference_rows_and_texts_are_edited_in_their_own_fields(ana, acme):
    pair = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    version = upload(acme, [pair] * 2, name="Pairs")
    same = form(("user", "Why?"), name="prompt") | form(("assistant", "No."), name="chosen") | form(("assistant", "No."), name="rejected")
    answer = ana.post(address("row_edit", version, "row=1"), same)
    assert answer.context["error"].fields == {"rejected-0": "Chosen and rejected are identical, they teach nothing."}
    ana.post(address("row_edit", version, "row=1"), same | {"chosen-0-content": "So it is."})
    assert changes(version).edited[0]["chosen"] == [{"role": "assistant", "content": "So it is."}]
    texts = upload(acme, [{"text": "One."}, {"text": "Two."}], name="Texts")
    assert ana.post(address("row_edit", texts, "row=2"), {"do": "save", "text": " "}).context["error"].fields == {
        "text": "Text is empty, there is nothing to learn."
    }
    ana.post(address("row_edit", texts, "row=2"), {"do": "save", "text": "Three."})
    assert changes(texts).edited == {1: {"text": "Three."}}


def test_what_a_form_has_no_field_for_stays_with_its_message(ana, acme):
    weighed = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "weight": 0.5}]}
    version = upload(acme, [weighed, chat("Who?", "Me.")], name="Weighed")
    ana.post(address("row_edit", version, "row=1"), form(("user", "Why not?"), ("assistant", "So.")))
    assert changes(version).edited[0]["messages"][1]["weight"] == 0.5


def test_all_rows_with_a_finding_are_dropped_at_once_and_one_is_kept(ana, version):
    ana.post(address("draft_rule", version), {"finding": "secret", "do": "drop"})
    ana.post(address("draft_rule", version), {"finding": "placeholder", "do": "drop"})
    page = ana.get(address("rows", version))
    assert page.context["desk"].counts == drafting.Counts(dropped=2)
    ana.post(address("draft_rows", version), {"do": "restore:10"})
    assert numbers(ana.get(address("rows", version, "draft=1"))) == [3]
    ana.post(address("draft_save", version))
    made = saved(version)
    assert made.facts["changes"]["dropped"] == 1
    assert made.facts["findings"].get("secret") is None
    assert made.facts["findings"]["placeholder"] == 1


def test_a_rule_is_taken_back_by_keeping_the_rows(ana, version):
    ana.post(address("draft_rule", version), {"finding": "secret", "do": "drop"})
    ana.post(address("draft_rule", version), {"finding": "secret", "do": "keep"})
    assert not Draft.objects.exists()


@pytest.mark.parametrize(
    "sent", [{"finding": "nothing", "do": "drop"}, {"finding": "duplicate", "do": "fix"}, {"finding": "secret", "do": "x"}]
)
def test_a_rule_that_is_none_changes_nothing(ana, version, sent):
    ana.post(address("draft_rule", version), sent)
    assert not Draft.objects.exists()


def test_discarding_asks_first_and_leaves_the_version_as_it_was(ana, version):
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    assert "Discard your changes?" in ana.get(address("rows", version)).content.decode()
    ana.post(address("draft_discard", version))
    assert not Draft.objects.exists()
    assert rows.count(version.rows_path) == 30


def test_nothing_changed_is_not_saved(ana, version):
    answer = ana.post(address("draft_save", version))
    assert answer.status_code == 422
    assert version.dataset.versions.count() == 1


def test_each_person_has_a_draft_of_their_own(ana, acme, version):
    ben = browser_of(make_member(acme.workspace, role="member", email="ben@example.com").user)
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    assert "dropped" not in ben.get(address("rows", version)).content.decode()
    ben.post(address("draft_rows", version), {"do": "drop:6"})
    assert Draft.objects.count() == 2


def test_whoever_saves_after_somebody_else_is_told_and_may_go_on(ana, acme, version):
    ben = browser_of(make_member(acme.workspace, role="member", email="ben@example.com").user)
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    ben.post(address("draft_rows", version), {"do": "drop:6"})
    ana.post(address("draft_save", version))
    saved(version)
    answer = ben.post(address("draft_save", version), {"note": "Mine"})
    assert answer.status_code == 422
    assert "v2 was made by ana@example.com meanwhile." in answer.content.decode()
    assert Draft.objects.count() == 1
    ben.post(address("draft_save", version), {"note": "Mine", "newer": "2"})
    assert (saved(version).number, saved_numbers(version)) == (3, [3, 2, 1])


def saved_numbers(version):
    return list(version.dataset.versions.order_by("-number").values_list("number", flat=True))


def test_while_a_draft_is_saved_it_is_not_changed_and_it_stays_where_that_fails(ana, version):
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    ana.post(address("draft_save", version))
    ana.post(address("draft_rows", version), {"do": "drop:6"})
    assert changes(version).dropped == {4}
    assert "being saved as" in ana.get(address("rows", version)).content.decode()
    made = version.dataset.versions.get(number=2)
    version.rows_path.rename(version.rows_path.with_name("away"))
    work_off(made.order)
    version.rows_path.with_name("away").rename(version.rows_path)
    made.refresh_from_db()
    assert made.status == "refused"
    assert "The changes were not saved." in ana.get(address("version", made)).content.decode()
    page = ana.get(address("rows", version)).content.decode()
    assert "Saving v2 failed" in page
    assert "1 dropped" in page
    ana.post(address("draft_rows", version), {"do": "drop:6"})
    assert changes(version).dropped == {4, 5}


def test_a_draft_holds_so_much_and_no_more(acme, version, monkeypatch):
    monkeypatch.setattr(changing, "MOST_CHANGES", 3)
    drafting.drop_rows(acme.owner, version, [0, 1, 2])
    with pytest.raises(UserError, match="One draft holds 3 changed rows"):
        drafting.drop_rows(acme.owner, version, [3])
    assert changes(version).dropped == {0, 1, 2}


def test_an_older_version_is_restored_and_known_as_the_same(ana, version):
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    ana.post(address("draft_save", version))
    saved(version)
    assert "Restore this version" in ana.get(address("version", version)).content.decode()
    ana.post(address("restore", version))
    made = saved(version)
    assert (made.number, made.sha256, made.facts["same_as"]) == (3, version.sha256, 1)
    assert "This is the same as v1." in ana.get(address("version", made)).content.decode()
    assert "Restored from" in ana.get(address("version", made)).content.decode()
    assert ana.post(address("restore", made)).status_code == 400


def test_what_changed_is_shown_word_by_word_with_the_note(ana, version):
    ana.post(address("row_edit", version, "row=4"), form(("user", "Question four?"), ("assistant", "Answer 4.")))
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    ana.post(address("row_edit", version), form(("user", "New?"), ("assistant", "Yes.")))
    ana.post(address("draft_save", version), {"note": "Cleaner"})
    made = saved(version)
    page = ana.get(address("changes", made))
    text = page.content.decode()
    assert page.context["counts"] == [("changed", 1), ("added", 1), ("dropped", 1)]
    assert "Cleaner" in text
    assert "ana@example.com" in text
    pieces = [(piece.kind, piece.text) for piece in page.context["rows"][0]["difference"][0].pieces]
    assert pieces == [("same", "Question "), ("removed", "4"), ("added", "four"), ("same", "?")]
    assert "Question 5?" in ana.get(address("changes", made, "kind=dropped")).content.decode()
    assert "New?" in ana.get(address("changes", made, "kind=added")).content.decode()
    assert numbers(ana.get(address("rows", made, "change=changed"))) == [4]
    assert numbers(ana.get(address("rows", made, "change=added"))) == [30]
    assert "Nothing to compare with" in ana.get(address("changes", version)).content.decode()


def test_the_child_stands_when_its_parent_and_orders_are_gone(ana, version):
    ana.post(address("draft_rows", version), {"do": "drop:5"})
    ana.post(address("draft_save", version))
    made = saved(version)
    before = all_rows(made)
    folder = version.folder
    version.delete()
    shutil.rmtree(folder)
    drafting.changes_path(made).unlink()
    assert all_rows(made) == before
    assert ana.get(address("version", made)).status_code == 200
    assert ana.get(address("changes", made)).status_code == 200
    assert numbers(ana.get(address("rows", made)))[-1] == 29


def test_what_fills_a_placeholder_is_bounded(ana, version):
    ana.post(address("draft_rule", version), {"finding": "placeholder", "do": "fix", "value_name": "x" * 1001})
    assert not Draft.objects.exists()
    ana.post(address("draft_rule", version), {"finding": "placeholder", "do": "fix", "value_name": "Ana"})
    ana.post(address("draft_save", version))
    assert all_rows(saved(version))[9] == chat("Hello Ana?", "Hello.")


def test_changes_read_back_as_they_were_written():
    kept = Changes(edited={3: chat("a", "b")}, dropped={1}, kept={2}, added=[chat("c", "d")])
    assert Changes.read(json.loads(json.dumps(kept.as_dict()))) == kept


def test_an_address_in_a_form_leads_nowhere_else(ana, version):
    answer = ana.post(address("draft_rows", version), {"do": "drop:5", "back": "//evil.example?q=x&after=3"})
    assert answer.headers["Location"].startswith(reverse("datasets:rows", args=[version.pk]))
