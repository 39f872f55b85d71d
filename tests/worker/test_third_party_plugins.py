"""A package from elsewhere is found, drawn, run and refused like ours."""

import json

import pytest

from studio.errors import UserError
from studio.training.form import form_fields, parse_form
from studio.training.registry import find, load_plugins
from studio.training.testing import check_plugin


def test_an_installed_package_is_found_and_drawn(install):
    install("adapter_studio_echo")
    echo = load_plugins()["echo"]
    assert (echo.title, echo.origin, echo.available) == ("Echo", "adapter-studio-echo 0.3.0", True)
    keep = next(field for field in form_fields(echo.plugin.Config) if field.name == "keep")
    assert (keep.label, keep.kind, keep.default, keep.help) == (
        "Words to keep",
        "integer",
        100,
        "The most frequent words that the result holds.",
    )


def test_an_installed_package_trains(install, attempt):
    install("adapter_studio_echo")
    tried = attempt("echo", config={"keep": 5})
    assert tried.end["status"] == "succeeded"
    assert len(json.loads((tried.target / "words.json").read_text())) == 5


def test_an_installed_package_keeps_the_contract(install):
    install("adapter_studio_echo")
    check_plugin(type(find("echo")))


def test_its_settings_are_refused_like_ours(install, attempt):
    install("adapter_studio_echo")
    assert parse_form(find("echo").Config, {"keep": "0"})[1] == {"keep": "Words to keep must be a whole number from 1 to 10\u202f000."}
    tried = attempt("echo", config={"keep": 0})
    assert tried.end["status"] == "failed"
    assert tried.end["error"] == "The settings are not valid. keep: Words to keep must be a whole number from 1 to 10\u202f000."
    assert not tried.target.exists()


def test_packages_that_are_broken_are_shown_with_their_reason(install):
    install("adapter_studio_broken")
    install("adapter_studio_echo")
    plugins = load_plugins()
    assert plugins["needs_more"].reason == "It needs the package adapter_studio_package_that_nobody_has, which is not installed."
    assert plugins["no_plugin"].reason == "It is not a class that extends TrainingPlugin."
    assert plugins["needs_more"].origin == "adapter-studio-broken 1.0"
    assert plugins["echo"].available
    assert plugins["rehearsal"].available
    with pytest.raises(UserError, match="cannot be used"):
        find("needs_more")


def test_a_run_with_a_broken_package_says_why(install, attempt):
    install("adapter_studio_broken")
    end = attempt("needs_more").end
    assert end["status"] == "failed"
    assert end["error"].startswith("The plugin needs_more cannot be used: It needs the package")
