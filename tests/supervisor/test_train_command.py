"""A run as YAML: written so that it reads back the same, started from the command line, and refused where somebody means harm."""

import json
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import Client as Browser
from django.urls import reverse

from studio.errors import UserError
from studio.orders.models import Event, Order
from studio.runs.models import Run
from studio.runs.plainyaml import LARGEST, read_plain, scalar
from studio.runs.recipe import read_recipe, recipe_of
from studio.runs.services import create_run
from tests.fixtures import World, make_member, make_version, work_off

SETTINGS = {"max_steps": 4, "seconds_per_step": 0.01, "learning_rate": 2e-5, "gradient_checkpointing": "on"}


@pytest.fixture
def run(slot: Any, acme: World) -> Run:
    return create_run(
        acme.owner,
        project=acme.project,
        name="Replies: the 2nd",
        plugin_name="rehearsal",
        config=SETTINGS,
        base=acme.base,
        version=acme.version,
        prompts=["Wo ist \u201emein\u201c Paket? # 7", "yes"],
    )


@pytest.fixture
def file(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(recipe_of(run), encoding="utf-8")
    return path


def train(*words: Any) -> str:
    out = StringIO()
    call_command("train", *map(str, words), stdout=out)
    return out.getvalue()


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file


def refused(file: Path, *words: str) -> str:
    before = Run.objects.count()
    with pytest.raises(CommandError) as caught:
        train(file, *words)
    assert Run.objects.count() == before
    return str(caught.value)


def test_the_file_says_what_each_setting_means(run: Run) -> None:
    lines = recipe_of(run).splitlines()
    assert 'name: "Replies: the 2nd"' in lines
    assert "  learning_rate: 0.00002" in " ".join(lines)
    assert '  gradient_checkpointing: "on"' in " ".join(lines)
    (length,) = [line for line in lines if line.startswith("  max_length: 512 ")]
    assert length.endswith("# In tokens. Tokens kept of each row; the rest is cut.")


def test_the_same_run_is_started_from_the_command_line(run: Run, file: Path, acme: World) -> None:
    said = train(file)
    copy = Run.objects.exclude(pk__in=[run.pk, acme.run.pk]).get()
    assert said.splitlines()[0] == f"Run {copy.pk}: Replies: the 2nd is queued, as ana@example.com."
    same = ("project", "plugin", "config", "base_model", "dataset_version", "prompts", "name")
    assert [getattr(copy, name) for name in same] == [getattr(run, name) for name in same]
    assert copy.order.status == "queued" and copy.order.created_by == acme.owner.user


def test_settings_that_are_left_out_keep_their_defaults(file: Path) -> None:
    text = file.read_text().split("settings:")[0] + "settings:\n  max_steps: 2\n"
    file.write_text(text)
    train(file)
    newest = Run.objects.order_by("-created_at")[0]
    assert (newest.config["max_steps"], newest.config["epochs"]) == (2, 3.0)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("fail_at", "code", "last"), [(0, 0, "Done."), (2, 1, "Failed. ")])
def test_it_is_followed_to_its_end(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, code: int, last: str) -> None:
    monkeypatch.setattr("studio.runs.management.commands.train.LOOK", 0.05)
    changed(file, "fail_at: 0", f"fail_at: {fail_at}")
    worker = threading.Thread(target=work_off_the_newest, args=(Run.objects.count(),))
    worker.start()
    out, ended = StringIO(), 0
    try:
        call_command("train", str(file), "--follow", stdout=out)
    except SystemExit as error:
        ended = error.code
    worker.join(20)
    lines = out.getvalue().splitlines()
    assert (ended, lines[-1].startswith(last)) == (code, True), lines
    assert any(line.startswith("step ") and "loss" in line for line in lines)


def work_off_the_newest(there: int) -> None:
    """A worker that takes the run as soon as the command has placed it."""
    try:
        for _ in range(200):
            if Run.objects.count() > there:
                work_off(Run.objects.order_by("-created_at")[0].order)
                return
            time.sleep(0.02)
    finally:
        connections.close_all()


def test_bad_values_are_told_as_the_form_tells_them(file: Path) -> None:
    changed(file, "learning_rate: 0.00002", "learning_rate: 7")
    changed(file, "batch_size: 8", 'batch_size: "8"')
    said = refused(file)
    assert "  learning_rate: Must be above 0 and at most 0.1." in said
    assert "  batch_size: Batch size must be a whole number from 1 to 1024." in said


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  batch_size: 8", "  batch_sise: 8", 'batch_sise: There is no setting "batch_sise". Did you mean batch_size?'),
        ("plugin: rehearsal", "plugin: rehersal", "There is no plugin named 'rehersal'."),
        ("client: In-house", "klient: In-house", 'klient: There is no "klient" in a run\'s file.'),
        ("client: In-house", "client: Nobody", 'project: There is no project "First project" of a client "Nobody" here.'),
        ("  version: 1", "  version: 2", 'dataset: There is no version 2 of a dataset "Replies" here.'),
        ("  version: 1", '  version: "1"', "dataset.version: Input should be a valid integer."),
        ('  sha256: "0', '  sha256: "f', 'base_model: The files of "Tiny" here have another SHA-256.'),
        ('  sha256: "2', '  sha256: "f', "dataset: The rows of Replies v1 here have another SHA-256."),
        ("name: ", "settings: {}\nname: ", "says \"settings\" a second time."),
        ("prompts:", "prompts: []\nmore:", 'more: There is no "more"'),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(file: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in refused(changed(file, old, new))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"!!python/object/apply:os.system ['true']", "Line 1 has the tag"),
        (b"name: !!binary aGk=", "Line 1 has the tag"),
        (b"a: &a [x]\nb: *a", "Line 1 has an anchor or an alias"),
        (b"a: b\n<<: *a", "Line 2 has an anchor or an alias"),
        (b"[" * 5000, "Line 1 is nested too deeply."),
        (b"a: " + b"{a: " * 20, "Line 1 is nested too deeply."),
        (b"a: 1\na: 2", 'Line 2 says "a" a second time.'),
        (b"1: 2", "Line 1 needs a word before its colon."),
        (b"? [a]\n: 1", "Line 1 needs a word before its colon."),
        (b'name: "\\ud800"', "Line 1 has a control character."),
        (b'name: "a\\e[2J"', "Line 1 has a control character."),
        (b"name: a\n\tb: c", "This file is no YAML: line 2"),
        (b"a\x00b", "This file is no YAML: "),
        (b"\xff\xfe", "This file is not text in UTF-8."),
        (b"a: b\n---\nc: d", "This file is no YAML: line 2"),
        (b"x" * (LARGEST + 1), "This file is larger than 128 KiB."),
    ],
)
def test_hostile_yaml_is_refused_with_its_line(content: bytes, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_plain(content)
    assert sentence in caught.value.message


@pytest.mark.parametrize("content", [b"", b"just words", b"[]", b"7", b"null"])
def test_what_is_no_runs_file_says_so(content: bytes) -> None:
    with pytest.raises(UserError, match="not a run's"):
        read_recipe(content)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("true", True), ("on", "on"), ("no", "no"), ("null", None), ("~", None),
        ("1:30", "1:30"), ("0x10", "0x10"), ("1_000", "1_000"), ("2026-01-01", "2026-01-01"), (".inf", ".inf"), ("=", "="), ("", None),
    ],
)  # fmt: skip
def test_words_and_numbers_mean_what_they_look_like(text: str, value: Any) -> None:
    found = read_plain(f"a: {text}".encode())["a"]
    assert (found, type(found)) == (value, type(value))


ODD = [
    "",
    "on",
    "NULL",
    "2e-5",
    "1:30",
    "a: b # c",
    "- x",
    'it\'s "so"',
    "zwei\nZeilen\t",
    "\u2028\u00a0\ufeff",
    "x" * 3000,
    "\U0001f600",
    "~",
]


@pytest.mark.parametrize("value", [*ODD, True, None, 3, 0.00002, 1e300, [1, "on"], [], {"q_proj": 8, "on: x": 0.5}, {}])
def test_every_value_survives_the_file(value: Any) -> None:
    line = scalar(value)
    found = read_plain(f"a: {line}  # told".encode())["a"]
    assert found == value and "\n" not in line


def test_a_meaning_that_ends_its_line_adds_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's own words stand in the comments; whatever they are, the file says what the run was."""
    from training_plugins.rehearsal import Rehearsal

    info = Rehearsal.Config.model_fields["fail_at"]
    monkeypatch.setattr(info, "description", "Fails.\nfail_at: 1\x07\u2028x: y")
    monkeypatch.setitem(info.json_schema_extra, "unit", "steps\nplugin: other")
    recipe = read_recipe(recipe_of(run).encode())
    assert (recipe.plugin, recipe.settings) == ("rehearsal", run.config)


def test_somebody_must_say_who_where_several_may(file: Path, acme: World) -> None:
    make_member(acme.workspace, role="member", email="max@example.com")
    make_member(acme.workspace, role="viewer", email="bob@example.com")
    assert "ana@example.com in Acme, max@example.com in Acme" in refused(file)
    assert "is queued, as max@example.com." in train(file, "--as", "max@example.com")
    assert "Nobody of that name may start runs here." in refused(file, "--as", "bob@example.com")


def test_names_are_looked_up_in_the_workspace_of_the_one_who_starts_it(file: Path, acme: World, rival: World) -> None:
    make_version(rival.owner, rival.project, name="Theirs")
    changed(file, "  name: Replies", "  name: Theirs")
    assert 'There is no version 1 of a dataset "Theirs" here.' in refused(file, "--workspace", "Acme")


def test_a_file_that_is_not_there_is_told(acme: World, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "none.yaml")
    assert "cannot be read" in refused(tmp_path)


def test_the_page_and_the_api_give_the_file_and_every_event(run: Run, acme: World) -> None:
    work_off(run.order)
    browser = Browser()
    browser.force_login(acme.owner.user)
    shown = browser.get(reverse("runs:recipe", args=[run.pk]))
    assert shown.content.decode() == recipe_of(run)
    assert (shown["Content-Type"], shown["X-Content-Type-Options"]) == ("text/plain; charset=utf-8", "nosniff")
    saved = browser.get(reverse("runs:recipe", args=[run.pk]), {"download": 1})
    assert saved["Content-Disposition"] == 'attachment; filename="run.yaml"'
    assert acme.api.get(f"runs/{run.pk}/run.yaml").content == shown.content
    assert "The same run as a file" in browser.get(reverse("runs:detail", args=[run.pk])).content.decode()

    stored = [event.wire() for event in Event.objects.filter(order=run.order_id)]
    for answer in (browser.get(reverse("runs:events", args=[run.pk])), acme.api.get(f"runs/{run.pk}/events.jsonl")):
        assert answer["Content-Disposition"] == 'attachment; filename="events.jsonl"'
        assert [json.loads(line) for line in body(answer).splitlines()] == stored


def test_a_long_run_is_sent_in_pieces(run: Run, acme: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.runs.exports.PIECE", 3)
    work_off(run.order)
    stored = Event.objects.filter(order=run.order_id).count()
    answer = acme.api.get(f"runs/{run.pk}/events.jsonl")
    numbers = [json.loads(line)["seq"] for line in body(answer).splitlines()]
    assert numbers == list(range(1, stored + 1))


def test_a_run_that_waits_has_no_events_yet(run: Run, acme: World) -> None:
    assert Order.objects.get(pk=run.order_id).last_seq == 0
    assert body(acme.api.get(f"runs/{run.pk}/events.jsonl")) == b""


def body(response: Any) -> bytes:
    from asgiref.sync import async_to_sync

    async def everything() -> bytes:
        return b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(everything)()
