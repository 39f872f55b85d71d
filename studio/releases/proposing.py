"""Which number the next release of a task gets, and why in a sentence. A person may choose a higher one, never a lower."""

from dataclasses import dataclass
from typing import Any

from studio.artifacts.models import Artifact
from studio.basemodels.models import BaseModel
from studio.errors import UserError
from studio.releases.asking import WORDS
from studio.releases.models import Release
from studio.workspaces.models import Project

BUMPS = (Release.Bump.PATCH, Release.Bump.MINOR, Release.Bump.MAJOR)
"""From the lowest to the highest."""
Version = tuple[int, int, int]


@dataclass(frozen=True)
class Proposal:
    """What the rule says. `bump` is empty where nothing changed: then there is nothing to release."""

    bump: str
    why: str
    previous: Release | None

    @property
    def allowed(self) -> list[str]:
        """The bumps that may be chosen, the proposed one first."""
        return [str(bump) for bump in BUMPS[BUMPS.index(Release.Bump(self.bump)) :]] if self.bump else []

    def version(self, bump: str = "") -> Version:
        return following(self.previous, bump or self.bump)


def latest(project: Project, task: str) -> Release | None:
    """The highest version of a task, whatever its stage."""
    found: Release | None = (
        Release.objects.filter(project=project, task=task)
        .select_related("artifact", "base_model")
        .order_by("-major", "-minor", "-patch")
        .first()
    )
    return found


def propose(previous: Release | None, *, artifact: Artifact, asked_with: dict[str, Any]) -> Proposal:
    """By the rule: major where the base changed, minor where it was trained anew, patch where only what it is asked with did."""
    if previous is None:
        return Proposal(Release.Bump.MAJOR, "The first release of this task.", None)
    if not same_base(previous.base_model, artifact.base_model):
        names = f"{base_name(artifact.base_model)} instead of {base_name(previous.base_model)}"
        return Proposal(Release.Bump.MAJOR, f"Major, since the base changed: {names}.", previous)
    if previous.artifact.sha256 != artifact.sha256:
        names = f"{worded(artifact)} instead of {previous.artifact.name}"
        return Proposal(Release.Bump.MINOR, f"Minor, since it was trained anew: {names}, on the same base.", previous)
    if changed := changed_settings(previous.asked_with, asked_with):
        words = ", ".join(WORDS[name] for name in changed)
        return Proposal(Release.Bump.PATCH, f"Patch, since only what it is asked with changed: {words}.", previous)
    return Proposal("", f"Nothing changed since {previous.name}: the same weights, asked in the same way.", previous)


def chosen_bump(proposal: Proposal, wanted: str) -> str:
    """The bump that a person wanted, or the proposed one. Raises UserError for one below the rule's, and where nothing changed."""
    if not proposal.bump:
        text = f"{proposal.why} Choose another adapter, or change a setting."
        raise UserError(text, fields={"artifact": "Nothing changed since the last release."}, code="nothing_changed")
    if not wanted:
        return proposal.bump
    if wanted not in BUMPS:
        raise UserError("The number cannot be chosen so.", fields={"bump": "Choose from major, minor and patch."})
    if wanted not in proposal.allowed:
        text = f"This is at least a {proposal.bump} release. {proposal.why}"
        raise UserError(text, fields={"bump": text})
    return wanted


def following(previous: Release | None, bump: str) -> Version:
    if previous is None:
        return (1, 0, 0)
    if bump == Release.Bump.MAJOR:
        return (previous.major + 1, 0, 0)
    if bump == Release.Bump.MINOR:
        return (previous.major, previous.minor + 1, 0)
    return (previous.major, previous.minor, previous.patch + 1)


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in WORDS if before.get(name) != after.get(name)]


def same_base(one: BaseModel | None, other: BaseModel | None) -> bool:
    """Also where the same files were registered twice."""
    if one is None or other is None:
        return one is other
    return one.pk == other.pk or (bool(one.sha256) and one.sha256 == other.sha256)


def base_name(base: BaseModel | None) -> str:
    return base.name if base else "none"


def worded(artifact: Artifact) -> str:
    return f"{artifact.get_kind_display().lower()} {artifact.name}"
