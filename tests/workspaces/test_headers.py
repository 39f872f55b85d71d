"""What every page is sent with, so that a browser holds to the policy whatever gets into a page."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client as Browser

from studio.workspaces.models import User
from tests.fixtures import make_owner

POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "font-src 'self'",
    "connect-src 'self'",
    "manifest-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "object-src 'none'",
}


@pytest.fixture
def window(db):
    opened = Browser()
    opened.force_login(make_owner().user)
    return opened


@pytest.mark.parametrize(
    "path", ["/", "/runs/", "/settings/", "/nowhere/", "/runs/6b1f6a8e-1111-4222-8333-444455556666/", "/login/", "/healthz/"]
)
def test_every_page_has_the_same_strict_policy(window, path):
    answer = window.get(path)
    assert {part.strip() for part in answer["Content-Security-Policy"].split(";")} == POLICY
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"


def test_cookies_are_kept_from_scripts_and_other_sites(db):
    User.objects.create_user("max@example.com", "a long enough sentence")
    window = Browser()
    window.get("/login/")
    window.post("/login/", {"login": "max@example.com", "password": "a long enough sentence"})
    for name in (settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME):
        cookie = window.cookies[name]
        assert cookie["httponly"], name
        assert (cookie["samesite"], cookie["path"], cookie["domain"]) == ("Lax", "/", ""), name


def test_a_host_that_is_not_ours_is_refused(window):
    assert window.get("/", HTTP_HOST="evil.example").status_code == 400
    assert window.get("/", HTTP_X_FORWARDED_HOST="evil.example").status_code == 200  # of no meaning here


def settings_with(tmp_path, **environment):
    """Settings in a process of its own: (exit code, what it says)."""
    code = (
        "from studio import settings as s; print(s.SESSION_COOKIE_NAME, s.CSRF_COOKIE_NAME, s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE,"
        " s.SECURE_SSL_REDIRECT, s.SECURE_HSTS_SECONDS > 0, s.DEBUG, s.CSRF_TRUSTED_ORIGINS)"
    )
    given = {f"STUDIO_{name}": value for name, value in environment.items()} | {"STUDIO_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run([sys.executable, "-c", code], cwd=settings.ROOT, env=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_with_https_the_cookies_are_bound_to_it(tmp_path):
    assert settings_with(tmp_path, HTTPS="1", PUBLIC_HOST="studio.example") == (
        0,
        "__Host-session __Host-csrf True True True True False ['https://studio.example']",
    )
    key = tmp_path / "data" / "secret_key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_text()) >= 50
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PUBLIC_HOST", "*", "STUDIO_PUBLIC_HOST must name one host."),
        ("SECRET_KEY", "short", "STUDIO_SECRET_KEY must have at least 50 characters."),
        ("DEBUG", "maybe", "STUDIO_DEBUG must be true or false, not 'maybe'."),
        ("DATABASE_URL", "mysql://x", "STUDIO_DATABASE_URL must start with postgres://."),
    ],
)
def test_a_setting_that_would_open_the_studio_is_refused(tmp_path, name, value, sentence):
    code, said = settings_with(tmp_path, **{name: value})
    assert code == 1
    assert said.endswith(sentence)


def test_no_code_declares_text_to_be_safe_markup():
    for path in sorted(Path(settings.ROOT, "studio").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
            assert name not in ("mark_safe", "SafeString", "SafeText", "html_safe"), path
