"""Whatever a stranger's plugin does, its run ends in one clear state, its page says which, and the next run is as well as ever."""

import html
import json
import os
import time
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client as Browser
from django.urls import reverse

from studio.artifacts.models import Artifact
from studio.errors import UserError
from studio.orders import strays, supervising
from studio.orders.models import Order
from studio.orders.services import claim
from studio.runs.services import ask, stop_run
from studio.training.registry import load_plugins
from tests.fixtures import work_off
from tests.orders.conftest import events_of, work_while
from tests.orders.test_working_off import TO_THE_PIPE, is_alive

SAVED = ("(job.out / 'a').write_text('a')", "return job.out")


@pytest.fixture
def shown(acme):
    """`shown(order)` is what the run's page shows to its owner: words, and the events that its script draws."""
    browser = Browser()
    browser.force_login(acme.owner.user)

    def read(order):
        answer = browser.get(reverse("runs:detail", args=[order.run.pk]))
        assert answer.status_code == 200
        return html.unescape(answer.content.decode())

    return read


FAILURES = {
    "raises": ("raise ValueError('rank is odd')", "The training code failed: ValueError: rank is odd. The log has the details."),
    "raises what cannot be shown": (
        "raise type('Shy', (Exception,), {'__str__': lambda self: 1 / 0})()",
        "The training code failed with an error that cannot be shown (Shy). The log has the details.",
    ),
    "goes down for ever": (
        "def down(): down()\n        down()",
        "The training code failed: RecursionError: maximum recursion depth exceeded. The log has the details.",
    ),
    "calls sys.exit": ("import sys; sys.exit(0)", "The training code failed: SystemExit: 0. The log has the details."),
    "calls os._exit(0)": ("import os; os._exit(0)", "The process ended without a result (exit code 0). The log has its last words."),
    "overflows the stack": ("import ctypes; ctypes.string_at(1)", "The process crashed (signal 11). The log has its last words."),
    "closes its way to report": (
        "import os; [os.close(fd) for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}')]; import time; time.sleep(600)",
        "It broke off its reports without a result, so it was ended. The log has its last words.",
    ),
    "leaves a link": (
        "(job.out / 'key').symlink_to('/etc/hostname'); return job.out",
        "'key' in the result is a link. Copy the file itself into job.out.",
    ),
    "puts another folder in place of its own": (
        "job.out.rmdir(); job.out.symlink_to('/etc'); return job.out",
        "The folder for the result was replaced by something else. Write into job.out, and leave the folder itself alone.",
    ),
    "leaves a pipe": (
        "import os; os.mkfifo(job.out / 'pipe'); return job.out",
        "'pipe' in the result is no plain file. Copy the file itself into job.out.",
    ),
    "leaves a name that is none": (
        "import os; open(os.fsencode(job.out) + b'/\\xff\\n', 'w').close(); return job.out",
        "A file of the result cannot be called '\\udcff\\n'. Use letters, digits, dots and dashes.",
    ),
    "leaves thousands of files": (
        "[(job.out / f'{n}').touch() for n in range(5001)]; return job.out",
        "The result has 5001 files; at most 5000 are right. Pack what belongs together into one.",
    ),
    "leaves 100 GB": (
        "file = open(job.out / 'huge', 'wb'); file.truncate(10**11); return job.out",
        "The result takes 100 GB; at most 20 GB are right. Leave in job.out what is of use.",
    ),
    "reports more numbers than anybody reads": (
        "job.metric(step=1, total=1, **{f'n{n}': n for n in range(10_000)})",
        "The training code failed: ValueError: A metric has at most 200 numbers, not 10000. The log has the details.",
    ),
    "reports what is no number": (
        "job.metric(step=1, total=1, loss='low')",
        "The training code failed: ValueError: could not convert string to float: 'low'. The log has the details.",
    ),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_plugin_that_ends_badly_has_failed_with_a_sentence_on_its_page(strange, start, shown, how):
    body, sentence = FAILURES[how]
    strange("odd", body)
    order = work_off(start("odd"))
    assert (order.status, order.attempt, order.error) == ("failed", 1, sentence)
    assert sentence in shown(order)
    assert events_of(order)[-1].body == {"status": "failed", "error": sentence}
    assert not Artifact.objects.filter(order=order).exists()
    assert not (order.folder / "work").exists() and not (order.folder / "out").is_symlink()


def test_the_runs_after_a_plugin_that_dies_are_as_well_as_ever(strange, start, shown):
    strange("dying", "import os; os._exit(0)")
    waiting = [start(), start("dying"), start()]
    assert [work_off(order).status for order in waiting] == ["succeeded", "failed", "succeeded"]
    assert all(shown(order) for order in waiting)


ODD_BUT_WELL = {
    "garbage on both outputs": (
        "import os, sys; [os.write(fd, bytes(range(256)) * 400 + b'\\x1b[2J\\n') for fd in (1, 2)]",
        None,
    ),
    "a number that is none": ("job.metric(step=1, total=2, loss=float('nan'))", "loss is nan, which is no number."),
    "a name of a megabyte": ("job.metric(step=1, total=2, **{'x' * (1 << 20): 1.0})", None),
    "a text of a hundred megabytes": ("job.note('y' * 100_000_000)", None),
    "many metrics at once": (
        "[job.metric(step=n + 1, total=50_000, loss=1.0) for n in range(50_000)]",
        "Events of the type metric come faster than they can be shown, so only some of them are kept.",
    ),
    "many notes at once": (
        "[job.note(f'note {n}') for n in range(20_000)]",
        "Events of the type note come faster than they can be shown, so only some of them are kept.",
    ),
    "files in the folder where it stands": ("open('left.txt', 'w').write('x'); import os; os.mkdir('wandb')", None),
}


@pytest.mark.parametrize("what", ODD_BUT_WELL)
def test_what_a_plugin_says_and_leaves_is_bounded(strange, start, shown, what):
    body, sentence = ODD_BUT_WELL[what]
    before = set(Path.cwd().iterdir()) | set(settings.ROOT.iterdir())
    strange("odd", body, *SAVED)
    order = work_off(start("odd"))
    assert (order.status, order.error) == ("succeeded", "")
    assert sentence is None or sentence in shown(order)
    events = events_of(order)
    assert len(events) < 2100
    assert sum(len(json.dumps(event.body)) for event in events) < 1 << 20
    assert (order.folder / "events.jsonl").stat().st_size < 1 << 20
    if what == "many metrics at once":
        assert [event.body["step"] for event in events if event.type == "metric"][-1] == order.latest["step"] == 50_000
    assert before == set(Path.cwd().iterdir()) | set(settings.ROOT.iterdir())


def test_a_gigabyte_of_words_ends_as_a_small_log(strange, start, shown):
    strange(
        "babbling", "import os", "piece = b'x' * (1 << 20)", "for _ in range(1024): os.write(1, piece)", "raise RuntimeError('at last')"
    )
    order = work_off(start("babbling"))
    assert (order.status, order.error) == ("failed", "The training code failed: RuntimeError: at last. The log has the details.")
    assert order.error in shown(order)
    assert order.log_file.stat().st_size < 12 << 20


def test_a_flood_past_the_reporter_is_held_off_by_the_supervisor(strange, start, shown, monkeypatch):
    monkeypatch.setattr(supervising, "MAX_EVENTS", 500)
    strange(
        "flooding",
        *TO_THE_PIPE,
        'line = \'{"attempt": 1, "seq": %d, "type": "metric", "step": %d, "total": 20000, "loss": 1.0}\\n\'',
        "[forge((line % (n, n)).encode()) for n in range(10, 20_010)]",
        'forge(b\'{"attempt": 1, "seq": 30000, "type": "note", "text": "\' + b\'z\' * 1_000_000 + b\'"}\\n\')',
        "job._reporter.seq = 40_000",
        *SAVED,
    )
    order = work_off(start("flooding"))
    assert order.status == "succeeded"
    assert len(events_of(order)) < 520
    assert order.latest["step"] == 20_009
    text = shown(order)
    assert "It reports more than is kept: 500 events." in text
    assert "A report of 1000" in text and "is too large to be shown, and was left out." in text


def test_a_plugin_that_says_nothing_is_told_of_on_its_page_and_ended_after_a_while(strange, start, shown, monkeypatch):
    monkeypatch.setattr(supervising, "QUIET", 0.5)
    monkeypatch.setattr(supervising, "SILENCE", 1.5)
    strange("mute", "import time", "time.sleep(600)")
    order = work_off(start("mute"))
    assert order.status == "failed"
    assert order.error == "Nothing was heard of it for 2 seconds, so it was ended. The log may show where it stood."
    text = shown(order)
    assert order.error in text
    assert "Nothing was heard for 0 seconds. Its log does not grow either, so it may hang: look at it, or stop the run." in text


def test_a_plugin_that_only_prints_is_not_ended(strange, start, shown, monkeypatch):
    monkeypatch.setattr(supervising, "QUIET", 0.3)
    monkeypatch.setattr(supervising, "SILENCE", 0.9)
    strange("busy", "import time", "for _ in range(20): print('still at it', flush=True); time.sleep(0.1)", *SAVED)
    order = work_off(start("busy"))
    assert order.status == "succeeded"
    assert "Nothing was heard for 0 seconds. Its log still grows." in shown(order)


@pytest.mark.django_db(transaction=True)
def test_a_plugin_that_hangs_ends_by_a_stop(strange, start, acme, shown, monkeypatch):
    monkeypatch.setattr(supervising, "STOP_GRACE", 0.3)
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    strange("hanging", ignoring, "[job.phase('training') for _ in range(9)]", "while True: time.sleep(1)")
    order = start("hanging")
    work_while(order, lambda: stop_run(acme.owner, order.run))
    assert order.status == "stopped"
    assert "It did not stop in time and was ended; nothing was kept." in shown(order)


def test_a_plugin_that_fills_the_disk_is_ended_before_it_is_full(strange, start, shown, monkeypatch):
    monkeypatch.setattr(supervising, "LEAST_FREE", 1 << 62)
    strange("greedy", "import time", "(job.work / 'big').write_bytes(b'x' * 1000)", "time.sleep(600)")
    order = work_off(start("greedy"))
    assert order.status == "failed"
    assert "MB were left on the disk, so it was ended. Free some space, then start again." in shown(order)
    assert not (order.folder / "work").exists()


FORKS = {
    "a child": "pid = os.fork() or (time.sleep(600), os._exit(0))",
    "a child of a child in a session of its own": "pid = daemon()",
    "a program that goes its own way": "pid = subprocess.Popen(['setsid', 'sleep', '600']).pid",
}
DAEMON = """def daemon():
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(writer, str(os.getpid()).encode())
                    time.sleep(600)
                os._exit(0)
            os.wait()
            return int(os.read(reader, 20))"""


@pytest.mark.parametrize("ends", ["well", "at once"])
@pytest.mark.parametrize("how", FORKS)
def test_whatever_a_plugin_forked_ends_with_it(strange, start, shown, how, ends):
    strange(
        "forking",
        "import os, subprocess, time",
        DAEMON,
        FORKS[how],
        "job.note(f'child {pid}')",
        *(SAVED if ends == "well" else ["os._exit(0)"]),
    )
    order = work_off(start("forking"))
    assert order.status == ("succeeded" if ends == "well" else "failed")
    assert order.error in shown(order)
    child = next(int(event.body["text"].split()[1]) for event in events_of(order) if event.type == "note")
    assert not is_alive(child)


def test_what_a_killed_attempt_left_running_ends_before_the_next_one_begins(start):
    order = start()
    claimed = claim(str(order.pk), attempt=1, worker="killed")
    left = os.spawnvpe(os.P_NOWAIT, "sleep", ["sleep", "600"], os.environ | {strays.MARK: strays.mark(claimed.pk, 1)})
    other = os.spawnvpe(os.P_NOWAIT, "sleep", ["sleep", "600"], os.environ | {strays.MARK: strays.mark("another", 1)})
    try:
        while not any(each.startswith(strays.MARK.encode()) for each in strays.environment(left)):
            time.sleep(0.01)  # until then it is a copy of this process
        Order.objects.filter(pk=order.pk).update(status=Order.Status.QUEUED, attempt=2)
        order.refresh_from_db()
        assert work_off(order).status == "succeeded"
        assert not is_alive(left)
        assert is_alive(other)
    finally:
        for pid in (left, other):
            if is_alive(pid):
                os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_a_plugin_that_cannot_judge_a_case_refuses_the_run_and_breaks_no_page(strange, start, acme, site):
    strange("unwise", "pass")
    broken = "    def check(self, config, base, data, host): raise KeyError('vocabulary')\n    def train"
    path = site / "unwise_plugin.py"
    path.write_text(path.read_text().replace("    def train", broken))
    sentence = "unwise cannot judge these settings: KeyError: 'vocabulary'. Tell whoever wrote the plugin."
    with pytest.raises(UserError, match="cannot judge these settings"):
        start("unwise")
    browser = Browser()
    browser.force_login(acme.owner.user)
    form = {"project": acme.project.pk, "plugin": "unwise", "base_model": acme.base.pk, "dataset_version": acme.version.pk}
    answer = browser.post(reverse("runs:estimate"), form)
    assert answer.status_code == 200
    assert sentence in html.unescape(answer.content.decode())


@pytest.mark.parametrize("body", ["raise ZeroDivisionError('rows')", "return {'memory': 'much'}", "import sys; sys.exit(3)"])
def test_a_plugin_that_cannot_estimate_may_still_run(strange, start, acme, site, shown, body):
    strange("vague", *SAVED)
    path = site / "vague_plugin.py"
    path.write_text(
        path.read_text().replace("    def train", f"    def estimate(self, config, base, data, host):\n        {body}\n    def train")
    )
    outlook = ask("vague", {}, base=acme.base, version=acme.version)[1]
    assert outlook.estimate is None
    assert any("vague cannot estimate this run" in issue.message for issue in outlook.issues)
    order = work_off(start("vague"))
    assert order.status == "succeeded"
    shown(order)


@pytest.mark.parametrize(
    "line", ["raise OSError('no licence file')", "import sys; sys.exit(0)", "def down(): down()\ndown()", "import nowhere"]
)
def test_a_plugin_that_cannot_be_imported_any_more_fails_its_run_and_no_other(strange, start, shown, site, line):
    strange("late", *SAVED)
    order = start("late")
    path = site / "late_plugin.py"
    path.write_text(line + "\n" + path.read_text())
    work_off(order)
    assert order.status == "failed"
    assert order.error.startswith("The plugin late cannot be used: It ")
    assert order.error in shown(order)
    load_plugins.cache_clear()  # as after the next start of the studio
    assert work_off(start()).status == "succeeded"
    shown(order)
