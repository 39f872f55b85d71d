"""How the studio is set up for a public server, asked of Django itself and of the disk."""

import os
import stat
import subprocess
import sys
from pathlib import Path

from django.test import Client as Browser

from studio.audit.models import AuditRecord
from studio.workspaces import throttle
from tests.fixtures import World

ROOT = Path(__file__).resolve().parents[2]


def manage(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "STUDIO_DATA_DIR": str(folder),
        "STUDIO_DATABASE_URL": "",
        "STUDIO_HTTPS": "1",
        "STUDIO_PUBLIC_HOST": "studio.example.com",
        "DJANGO_SETTINGS_MODULE": "studio.settings",
    }
    return subprocess.run([sys.executable, "-m", "django", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_django_has_nothing_to_say_against_it(tmp_path: Path):
    checked = manage(tmp_path / "data", "check", "--deploy", "--fail-level", "WARNING")
    assert checked.returncode == 0, checked.stderr


def test_nobody_else_on_the_machine_reads_what_it_keeps(tmp_path: Path):
    """Also where the folder was there before, and open."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    assert manage(folder, "migrate").returncode == 0
    open_to_others = [path.name for path in folder.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert (folder / "db.sqlite3").exists()
    assert not open_to_others


def test_other_names_do_not_push_out_the_one_that_is_guessed_at():
    for _ in range(throttle.TRIES):
        throttle.failed("login", "ana")
    for number in range(1000):
        throttle.failed("login", f"somebody {number}")
    assert throttle.is_blocked("login", "ana")
    throttle.forget("login", "ana")


def test_an_address_that_is_none_is_not_recorded(acme: World):
    for address, recorded in {"203.0.113.9": "203.0.113.9", "fe80::1%eth0": "fe80::1", "who knows": None, "": None}.items():
        browser = Browser(REMOTE_ADDR=address)
        browser.force_login(acme.owner.user)
        assert browser.post("/clients/new/", {"name": f"From {address}"}).status_code == 302
        assert AuditRecord.objects.first().ip == recorded
