"""What a release changed since the one before it: base, weights, data, config, and what it is asked with."""

from dataclasses import dataclass
from typing import Any

from studio.artifacts.models import Artifact
from studio.releases.asking import WORDS
from studio.releases.models import Release

LONGEST = 600
"""Characters of one value that are shown."""


@dataclass(frozen=True)
class Change:
    what: str
    before: str
    """Empty where there was none."""
    after: str


def changes(before: Release, after: Release) -> list[Change]:
    """In the order in which people ask: from what, by what, and how it is asked."""
    pairs = [
        Change("weights", weights_of(before.artifact), weights_of(after.artifact)),
        Change("base", base_of(before), base_of(after)),
        Change("data", data_of(before.artifact), data_of(after.artifact)),
        *config_changes(before.artifact, after.artifact),
        *setting_changes(before.asked_with, after.asked_with),
    ]
    return [change for change in pairs if change.before != change.after]


def weights_of(artifact: Artifact) -> str:
    return f"{artifact.get_kind_display().lower()} {artifact.name} ({artifact.sha256[:12]})"


def base_of(release: Release) -> str:
    base = release.base_model
    return f"{base.name} ({base.sha256[:12]})" if base else ""


def data_of(artifact: Artifact) -> str:
    version = artifact.dataset_version
    return f"{version} ({version.sha256[:12]})" if version else ""


def config_changes(before: Artifact, after: Artifact) -> list[Change]:
    one, other = (config_of(artifact) for artifact in (before, after))
    return [Change(name, shown(one.get(name)), shown(other.get(name))) for name in sorted(one.keys() | other.keys())]


def config_of(artifact: Artifact) -> dict[str, Any]:
    config = artifact.lineage.get("config")
    plugin = {"method": artifact.lineage["plugin"]} if artifact.lineage.get("plugin") else {}
    return plugin | (config if isinstance(config, dict) else {})


def setting_changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    return [Change(word, shown(before.get(name)), shown(after.get(name))) for name, word in WORDS.items()]


def shown(value: Any) -> str:
    if value is None:
        return ""
    text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"
