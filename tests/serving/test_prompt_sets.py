"""Prompt sets: made of what was pasted, of files and of held-out rows; changed, copied, deleted and taken home."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.errors import UserError
from studio.serving import prompt_files, prompts
from studio.serving.models import PromptSet
from studio.workspaces.services import create_client
from tests.fixtures import Api, World, make_key, make_member

BESIDE = Path(settings.ROOT).parent / "shared" / "data" / "mt_bench_question.jsonl"
TWO_TURNS = {"question_id": 81, "category": "writing", "turns": ["Write a blog post.", "Rewrite it."], "reference": ["", ""]}


@pytest.fixture
def browser(acme: World) -> Browser:
    browser = Browser()
    browser.force_login(acme.owner.user)
    return browser


def made(browser: Browser, **form: Any) -> PromptSet:
    response = browser.post("/prompts/new/", {"name": "Support", **form})
    assert response.status_code == 302, response.content.decode()[:3000]
    return PromptSet.objects.latest("created_at")


def test_prompts_are_pasted_one_a_line(acme, browser):
    found = made(browser, prompts="Where is my parcel?\r\n\r\n  How do I return shoes?  \n")
    assert [prompt["turns"] for prompt in found.prompts] == [["Where is my parcel?"], ["How do I return shoes?"]]
    assert (found.client, found.user) == (None, acme.owner.user)
    assert AuditRecord.objects.latest("at").verb == "prompt_set.create"
    assert "Where is my parcel?" in browser.get(f"/prompts/{found.pk}/").content.decode()


def test_a_file_as_mt_bench_writes_it_is_taken_as_it_is(acme, browser):
    lines = b"".join(json.dumps(TWO_TURNS | {"question_id": number}).encode() + b"\n" for number in range(80))
    found = made(browser, client=acme.client.pk, file=SimpleUploadedFile("question.jsonl", lines))
    assert (len(found.prompts), found.questions, found.client) == (80, 160, acme.client)
    assert found.prompts[0] == {"turns": ["Write a blog post.", "Rewrite it."], "category": "writing"}
    page = browser.get(f"/prompts/{found.pk}/").content.decode()
    assert "80 prompts, 160 questions" in page
    assert "1–25 of 80" in page


def test_all_of_mt_bench_is_taken_also_as_it_is_published():
    categories = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
    alike = b"".join(json.dumps(TWO_TURNS | {"question_id": n, "category": categories[n % 8]}).encode() + b"\n" for n in range(80))
    for content in [alike, *([BESIDE.read_bytes()] if BESIDE.is_file() else [])]:
        found = prompt_files.read(content, filename=BESIDE.name)
        assert (len(found.prompts), {len(prompt["turns"]) for prompt in found.prompts}) == (80, {2})
        assert {prompt["category"] for prompt in found.prompts} == set(categories)


def test_a_table_and_other_shapes_of_lines_are_read():
    table = prompt_files.read(b'prompt;category\n"Where; when?";parcels\nWhy?;\n', filename="a.csv")
    assert table.prompts == [{"turns": ["Where; when?"], "category": "parcels"}, {"turns": ["Why?"], "category": ""}]
    lines = [
        {"prompt": "One?"},
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Two?"},
                {"role": "assistant", "content": "Yes."},
            ]
        },
        {"instruction": "Three."},
    ]
    found = prompt_files.read("\n".join(map(json.dumps, lines)).encode())
    assert [prompt["turns"] for prompt in found.prompts] == [["One?"], ["Two?"], ["Three."]]
    assert found.notes == [prompt_files.SYSTEM_LEFT_OUT]
    assert prompt_files.read("\ufeffÜber?\n".encode()).prompts[0]["turns"] == ["Über?"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"turns": ["One?"]}\n{"turns": []}', "Line 2: A question is empty."),
        ('{"turns": ["One?"]}\n{"turns": [1]}', "Line 2: The questions must be a list of texts."),
        ('{"turns": ["One?"]}\n{"answer": "x"}', "Line 2: no question."),
        ('{"turns": ["One?"]}\n{"turns": ["One?"]', "Line 2 is cut off"),
        ('{"turns": ["a"], "turns": ["b"]}', "appears twice"),
        ('{"prompt": "\\ud800"}', "Line 1"),
        ('{"prompt": "\\u0000x"}', "control characters"),
        ('{"messages": "x"}', "messages must be a list"),
        ('{"turns": ["' + '", "'.join("abcdefghi") + '"]}', "at most 8"),
        ('{"prompt": "' + "x" * 20_001 + '"}', "at most 20,000 fit"),
        ("[" * 5000, "This is a list in JSON."),
        ('{"prompt": ' + "[" * 5000 + "]" * 5000 + "}", "nested deeper"),
        ("", "There is no prompt in it."),
        ("a\x00b", "NUL"),
        ("why?\n" * 201, "more than 200 prompts"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line(content, sentence):
    with pytest.raises(UserError) as caught:
        prompt_files.read(content.encode())
    assert sentence in " ".join([caught.value.message, *caught.value.fields.values()])


def test_bytes_that_are_no_text_are_named_by_their_line():
    with pytest.raises(UserError) as caught:
        prompt_files.read(b"Good?\n\xff\xfe bad\n")
    assert list(caught.value.fields.values()) == ["Line 2 is not UTF-8. Save the file as UTF-8."]
    with pytest.raises(UserError, match="too large"):
        prompt_files.read(b"x" * (prompt_files.LARGEST + 1))


def test_a_refused_form_keeps_what_was_typed(browser):
    response = browser.post("/prompts/new/", {"name": "", "prompts": "Where?"})
    page = response.content.decode()
    assert response.status_code == 422
    assert "Write a name of at most 80 characters." in page
    assert "Where?</textarea>" in page
    assert not PromptSet.objects.exists()


def test_a_set_holds_no_more_than_it_may():
    with pytest.raises(UserError, match="too long"):
        prompts.judged_all([{"turns": ["x" * 20_000], "category": ""}] * 51)
    with pytest.raises(UserError) as caught:
        prompts.judged_all([{"turns": ["Fine?"]}, {"turns": [" "]}, {"turns": "no"}])
    assert list(caught.value.fields.values()) == ["Prompt 2: A question is empty.", "Prompt 3: The questions must be a list of texts."]


def test_held_out_rows_give_their_first_questions(acme, browser):
    page = browser.get(f"/prompts/new/?client={acme.client.pk}").content.decode()
    assert f'<option value="{acme.version.pk}"' in page
    found = made(browser, client=acme.client.pk, version=acme.version.pk)
    assert [prompt["turns"] for prompt in found.prompts] == [["Question 0?"], ["Question 1?"]]


def test_rows_of_a_client_make_no_set_of_the_whole_workspace(acme, browser):
    response = browser.post("/prompts/new/", {"name": "x", "version": acme.version.pk})
    assert response.status_code == 422
    assert "These rows belong to a client." in response.content.decode()


def test_a_prompt_is_edited_and_another_one_asked_after_it(acme, browser):
    found = acme.prompt_set
    form = browser.get(f"/prompts/{found.pk}/?edit=1").content.decode()
    assert "And when?</textarea>" in form
    turns = ["Where is it?", "And when?", "And how?"]
    browser.post(f"/prompts/{found.pk}/edit/", {"do": "save", "number": "1", "turn": [*turns, " "], "category": "post"})
    found.refresh_from_db()
    assert found.prompts[0] == {"turns": turns, "category": "post"}
    assert AuditRecord.objects.latest("at").change == {"prompts": [2, 2], "changed": 1}


def test_an_edit_that_changes_nothing_leaves_no_record(acme, browser):
    found = acme.prompt_set
    before = AuditRecord.objects.count()
    browser.post(f"/prompts/{found.pk}/edit/", {"do": "save", "number": "2", "turn": ["Why?"], "category": ""})
    browser.post(f"/prompts/{found.pk}/edit/", {"do": "rename", "name": " Support "})
    assert AuditRecord.objects.count() == before


def test_a_prompt_that_cannot_be_so_stays_in_its_form(acme, browser):
    response = browser.post(f"/prompts/{acme.prompt_set.pk}/edit/", {"do": "save", "number": "1", "turn": ["x" * 20_001], "category": "c"})
    assert response.status_code == 422
    assert "at most 20,000 fit" in response.content.decode()
    assert 'name="do" value="save"' in response.content.decode()


def test_prompts_are_removed_and_added_but_never_the_last(acme, browser):
    found = acme.prompt_set
    address = f"/prompts/{found.pk}/edit/"
    browser.post(address, {"do": "drop", "number": "1"})
    assert browser.post(address, {"do": "drop", "number": "1"}).status_code == 422
    browser.post(address, {"do": "add", "prompts": "Who?\nWhat?"})
    found.refresh_from_db()
    assert [prompt["turns"][0] for prompt in found.prompts] == ["Why?", "Who?", "What?"]
    assert browser.post(address, {"do": "drop", "number": "9"}).status_code == 422
    assert browser.post(address, {"do": "dance"}).status_code == 422


def test_a_set_is_copied_renamed_and_deleted(acme, browser):
    found = acme.prompt_set
    browser.post(f"/prompts/{found.pk}/copy/")
    copy = PromptSet.objects.get(name="Support copy")
    assert (copy.prompts, copy.client) == (found.prompts, found.client)
    browser.post(f"/prompts/{copy.pk}/edit/", {"do": "rename", "name": "Other"})
    browser.post(f"/prompts/{found.pk}/delete/")
    assert [each.name for each in PromptSet.objects.all()] == ["Other"]


def test_a_set_is_downloaded_as_it_would_be_uploaded(acme, browser):
    body = browser.get(f"/prompts/{acme.prompt_set.pk}/prompts.jsonl").content
    assert prompt_files.read(body).prompts == acme.prompt_set.prompts


def test_lists_are_searched_and_show_what_a_client_has(acme, browser):
    shared = PromptSet.objects.create(workspace=acme.workspace, name="Shared", prompts=[{"turns": ["Hi?"], "category": ""}])
    assert acme.prompt_set
    page = browser.get("/prompts/?q=shar").content.decode()
    assert f"/prompts/{shared.pk}/" in page
    assert f"/prompts/{acme.prompt_set.pk}/" not in page
    assert f"/prompts/{acme.prompt_set.pk}/" in browser.get(f"/prompts/?client={acme.client.pk}").content.decode()


def test_a_viewer_reads_sets_and_changes_none(acme):
    viewer = Browser()
    viewer.force_login(make_member(acme.workspace, role="viewer", email="bob@example.com").user)
    page = viewer.get(f"/prompts/{acme.prompt_set.pk}/")
    assert page.status_code == 200
    assert "Add prompts" not in page.content.decode()
    assert viewer.post(f"/prompts/{acme.prompt_set.pk}/delete/").status_code == 404
    assert viewer.get("/prompts/new/").status_code == 404


def test_who_sees_one_client_sees_its_sets_and_the_shared_ones(acme):
    other = create_client(acme.owner, name="Globex")
    PromptSet.objects.create(workspace=acme.workspace, name="Shared", prompts=[{"turns": ["Hi?"], "category": ""}])
    assert acme.prompt_set
    narrow = Api(make_key(make_member(acme.workspace, role="member", email="max@example.com", clients=[other])))
    assert [item["name"] for item in narrow.get("prompt-sets").json()["items"]] == ["Shared"]


def test_the_api_makes_changes_and_deletes_sets(acme):
    told = {"name": "By script", "client": str(acme.client.pk), "prompts": [{"turns": ["One?", "Two?"], "category": "a"}]}
    made = acme.api.post("prompt-sets", told).json()
    assert (made["count"], made["prompts"]) == (1, told["prompts"])
    assert acme.api.post("prompt-sets", {"name": "Text", "text": "One?\nTwo?"}).json()["count"] == 2
    assert [item["count"] for item in acme.api.get("prompt-sets").json()["items"]] == [2, 1]
    changed = acme.api.patch(f"prompt-sets/{made['id']}", {"name": "New", "prompts": [{"turns": ["Three?"]}]}).json()
    assert (changed["name"], changed["prompts"]) == ("New", [{"turns": ["Three?"], "category": ""}])
    assert acme.api.delete(f"prompt-sets/{made['id']}").status_code == 204
    assert acme.api.get(f"prompt-sets/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "prompts"),
        ({"name": "x", "prompts": [{"turns": [" "]}]}, "prompts.1"),
        ({"name": "x", "text": "a", "prompts": [{"turns": ["b"]}]}, "text"),
        ({"name": " ", "text": "a"}, "name"),
        ({"name": "x", "text": '{"turns": []}'}, "line 1"),
    ],
)
def test_the_api_names_the_field_that_cannot_be_so(acme, body, field):
    refused = acme.api.post("prompt-sets", body)
    assert refused.status_code == 422
    assert field in refused.json()["error"]["fields"]
