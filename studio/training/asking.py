"""Asks a plugin about a case. It is a stranger's code: whatever it raises or answers becomes a sentence, and harms no page."""

from typing import Any

from studio.training.facts import DatasetFacts, Estimate, HostFacts, Issue, ModelFacts
from studio.training.plugin import TrainingPlugin

Case = tuple[Any, ModelFacts, DatasetFacts, HostFacts]
"""Settings, base model, rows and machine, in the order in which a plugin is asked about them."""


def issues_of(plugin: TrainingPlugin, case: Case) -> list[Issue]:
    """What speaks against a run; where the plugin cannot say it, that it cannot, as an error."""
    try:
        issues = [Issue.model_validate(issue) for issue in plugin.check(*case)]
    except (Exception, SystemExit) as error:
        issues = [Issue(level="error", message=f"{plugin.title} cannot judge these settings: {said(error)}")]
    return [*host_issues_of(plugin, case[-1]), *issues]


def host_issues_of(plugin: TrainingPlugin, host: HostFacts) -> list[Issue]:
    """What speaks against a machine; where the plugin cannot say it, that it cannot, as an error."""
    try:
        return [Issue.model_validate(issue) for issue in plugin.host_issues(host)]
    except (Exception, SystemExit) as error:
        return [Issue(level="error", message=f"{plugin.title} cannot judge this machine: {said(error)}")]


def estimate_of(plugin: TrainingPlugin, case: Case) -> tuple[Estimate | None, list[Issue]]:
    """What a run will take. Where the plugin fails to say it there is none, and a warning says why: the run itself may be well."""
    try:
        return Estimate.model_validate(plugin.estimate(*case)), []
    except (Exception, SystemExit) as error:
        return None, [Issue(level="warning", message=f"{plugin.title} cannot estimate this run: {said(error)}")]


def said(error: BaseException) -> str:
    """An exception on one line, as far as it can be shown."""
    try:
        text = " ".join(str(error).split())[:300].rstrip(".")
    except Exception:  # it is the stranger's as well
        text = ""
    return f"{type(error).__name__[:80]}{': ' if text else ''}{text}. Tell whoever wrote the plugin."
