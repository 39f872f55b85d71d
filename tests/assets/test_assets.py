"""What the browser is served: pinned copies that nobody touched, and pages that keep to the policy against injected code."""

import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENDORED = json.loads((ROOT / "static/vendor/VENDORED.json").read_text())
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
SCRIPTS = sorted((ROOT / "static/js").glob("*.js"))


@pytest.mark.parametrize("copy", VENDORED["sha256"])
def test_a_vendored_copy_is_the_one_that_was_packed(copy):
    assert hashlib.sha256((ROOT / copy).read_bytes()).hexdigest() == VENDORED["sha256"][copy]


def test_nothing_is_vendored_without_a_checksum():
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "static/vendor").rglob("*") if path.is_file()}
    assert here - {"static/vendor/VENDORED.json"} == {name for name in VENDORED["sha256"] if name.startswith("static/")}


def test_every_icon_that_a_template_names_is_in_the_sprite():
    icons = set(re.findall(r'<symbol id="([\w-]+)"', (ROOT / "static/vendor/icons.svg").read_text()))
    named = {name for path in TEMPLATES for name in re.findall(r'icon\.html" with name="([\w-]+)"(?! ?\|)', path.read_text())}
    assert named - {"status-"} <= icons


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "templates")))
def test_a_template_has_no_inline_code_or_style(path):
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text), "a script without src"
    assert not re.search(r"\sstyle=|<style", text), "an inline style"
    assert not re.search(r"\son[a-z]+=|hx-on|javascript:", text), "an inline handler"
    assert not re.search(r"\|\s*safe\b|autoescape off", text), "unescaped text"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_never_makes_markup_or_code_of_text(path):
    assert not re.search(r"innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text())


def test_only_the_stylesheet_names_colours():
    for path in [*TEMPLATES, *SCRIPTS]:
        assert not re.search(r"oklch\(|rgba?\(|#[0-9a-f]{6}\b", path.read_text()), path
