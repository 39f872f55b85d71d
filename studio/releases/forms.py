"""The forms of releases as they were typed: a new release with its proposal, and a project's gate."""

from dataclasses import dataclass, field
from typing import Any

from django.http import HttpRequest, QueryDict
from django.utils.text import slugify

from studio.artifacts.models import Artifact
from studio.datasets.models import Dataset
from studio.errors import UserError
from studio.releases import gating, releasing
from studio.releases.models import Gate, Release
from studio.releases.proposing import Proposal, latest
from studio.workspaces.models import Project

BUMP_WORDS = {
    "major": "The base changed, or what it answers is no longer comparable.",
    "minor": "It was trained anew on the same base.",
    "patch": "Only what it is asked with changed.",
}


@dataclass
class ReleaseForm:
    """What somebody typed, or what the release before it says; and what the rule says of it."""

    project: Project
    artifacts: list[Artifact]
    artifact: Artifact | None
    task: str
    bump: str
    typed: dict[str, str]
    """The settings, as texts."""
    notes: str
    error: UserError | None = None
    proposal: Proposal | None = None

    @classmethod
    def read(cls, request: HttpRequest, project: Project, artifacts: list[Artifact], artifact: Artifact | None) -> "ReleaseForm":
        sent, task = request.POST, request.POST.get("task") or slugify(request.GET.get("task", ""))[:60] or project.slug
        if request.method == "POST":
            typed = {name: sent.get(name, "") for name in ("system", "temperature", "top_p", "max_tokens", "stop")}
        else:
            previous = latest(project, task)
            typed = as_typed(previous.asked_with if previous else {})
        form = cls(project, artifacts, artifact, task, sent.get("bump", ""), typed, sent.get("notes", ""))
        form.propose()
        return form

    def propose(self) -> None:
        """Keeps what the rule says, or beside its field what stops it from saying anything."""
        if self.artifact is None:
            return
        try:
            self.proposal = releasing.proposed(self.project, self.artifact, task=self.task, asked_with=self.asked)
        except UserError as problem:
            self.error = problem

    @property
    def asked(self) -> dict[str, Any]:
        """Raises UserError beside each number that is none."""
        told: dict[str, Any] = {
            "system": self.typed["system"].replace("\r\n", "\n").strip(),
            "stop": [line for line in self.typed["stop"].replace("\r\n", "\n").split("\n") if line.strip()],
        }
        faults = {}
        for name, kind in (("temperature", float), ("top_p", float), ("max_tokens", int)):
            if text := self.typed[name].strip():
                try:
                    told[name] = kind(text)
                except ValueError:
                    faults[name] = "Must be a number." if kind is float else "Must be a whole number."
        if faults:
            raise UserError("Some settings cannot be used.", fields=faults)
        return told

    @property
    def chosen(self) -> str:
        """The bump that is chosen and allowed, else the rule's."""
        if self.proposal is None:
            return ""
        return self.bump if self.bump in self.proposal.allowed else self.proposal.bump

    @property
    def bumps(self) -> list[dict[str, Any]]:
        """The numbers that it may get, from the rule's upwards, each with the name that it would have."""
        if self.proposal is None or self.artifact is None:
            return []
        slug = releasing.task_slug(self.project, self.task)
        return [
            {
                "value": bump,
                "title": Release.Bump(bump).label,
                "text": "" if self.proposal.previous is None else BUMP_WORDS[bump],
                "checked": bump == self.chosen,
                "badge": "by the rule" if bump == self.proposal.bump else "",
                "name": releasing.name_of(self.project, slug, self.artifact, self.proposal.version(bump)),
            }
            for bump in (self.proposal.allowed if self.proposal.previous else self.proposal.allowed[:1])
        ]

    @property
    def name(self) -> str:
        return next((bump["name"] for bump in self.bumps if bump["checked"]), "")

    @property
    def fields(self) -> dict[str, str]:
        return self.error.fields if self.error else {}


def as_typed(asked: dict[str, Any]) -> dict[str, str]:
    numbers = {name: "" if asked.get(name) is None else f"{asked[name]:g}" for name in ("temperature", "top_p", "max_tokens")}
    return {"system": asked.get("system", ""), "stop": "\n".join(asked.get("stop", []))} | numbers


@dataclass
class GateForm:
    project: Project
    gate: Gate
    datasets: list[Dataset]
    """What is held out for the client."""
    typed: QueryDict | None = None
    error: UserError | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """What stands in the fields: what was typed, else what holds."""
        if self.typed is None:
            gate = self.gate
            held_out = str(gate.held_out_id) if gate.held_out_id else ""
            own = {"evaluated": gate.evaluated, "guest_sign_off": gate.guest_sign_off, "roles": gate.roles}
            return own | {"held_out": held_out, "margin": f"{gate.margin:g}", "approvals": gate.approvals}
        ticked = {name: name in self.typed for name in ("evaluated", "guest_sign_off")}
        texts = {name: self.typed.get(name, "") for name in ("held_out", "margin", "approvals")}
        return ticked | texts | {"roles": self.typed.getlist("roles")}

    @property
    def roles(self) -> list[tuple[str, bool]]:
        return [(role, role in self.shown["roles"]) for role in gating.ROLES]

    @property
    def fields(self) -> dict[str, str]:
        return self.error.fields if self.error else {}


@dataclass
class Typed:
    """A gate as it was typed, read into values. Raises UserError beside each number that is none."""

    sent: QueryDict
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = {}
        for name, kind, words in (("margin", float, "a number"), ("approvals", int, "a whole number")):
            try:
                self.values[name] = kind(self.sent.get(name, "").strip() or 0)
            except ValueError:
                faults[name] = f"Must be {words}."
        if faults:
            raise UserError("Some values cannot be used.", fields=faults)
        self.values |= {name: name in self.sent for name in ("evaluated", "guest_sign_off")}
        self.values["roles"] = self.sent.getlist("roles")
