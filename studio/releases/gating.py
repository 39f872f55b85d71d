"""Sets what a project asks of a release before it is approved. What was approved stays so."""

import math
from typing import Any

from django.db import transaction

from studio.audit.services import record
from studio.datasets.models import Dataset
from studio.errors import UserError
from studio.releases.models import Gate
from studio.workspaces.models import Member, Project, hold
from studio.workspaces.policy import ROLE_ACTIONS

ROLES = tuple(role for role in ("owner", "admin", "member", "guest") if {"release.approve", "release.sign_off"} & ROLE_ACTIONS[role])
"""Whose approval a project may ask for."""
MOST_APPROVALS, LARGEST_MARGIN = 20, 100.0


def gate_for(project: Project) -> Gate:
    """As it stands, or one that asks for nothing and is not stored."""
    return Gate.objects.filter(project=project).select_related("held_out").first() or Gate(project=project)


def edit_gate(member: Member, project: Project, **wanted: Any) -> Gate:
    """Changes what is named of `evaluated`, `held_out`, `margin`, `approvals`, `roles` and `guest_sign_off`. Raises UserError by field."""
    refuse_impossible(project, wanted)
    if "roles" in wanted:
        wanted["roles"] = [role for role in ROLES if role in wanted["roles"]]
    with transaction.atomic():
        hold(project)
        gate = gate_for(project)
        change = {name: [told(getattr(gate, name)), told(value)] for name, value in wanted.items() if getattr(gate, name) != value}
        if not change:
            return gate
        for name in change:
            setattr(gate, name, wanted[name])
        gate.save()
        record(member, "gate.edit", gate, change=change)
    return gate


def told(value: Any) -> Any:
    return value.name if isinstance(value, Dataset) else value


def refuse_impossible(project: Project, wanted: dict[str, Any]) -> None:
    faults = {}
    margin, approvals = wanted.get("margin", 0.0), wanted.get("approvals", 0)
    if not math.isfinite(margin) or not 0 <= margin <= LARGEST_MARGIN:
        faults["margin"] = "Must be from 0 to 100 per cent."
    if not 0 <= approvals <= MOST_APPROVALS:
        faults["approvals"] = f"Must be from 0 to {MOST_APPROVALS}."
    if unknown := [role for role in wanted.get("roles", []) if role not in ROLES]:
        faults["roles"] = f"{unknown[0][:40]} approves nothing. Choose from {', '.join(ROLES)}."
    held_out: Dataset | None = wanted.get("held_out")
    if held_out is not None and held_out.project.client_id != project.client_id:
        faults["held_out"] = "Choose rows of this client."
    elif held_out is not None and not held_out.held_out:
        faults["held_out"] = f"{held_out} is not held out, so runs may train on it. Hold it out first, on its page."
    if faults:
        raise UserError("Some values cannot be used.", fields=faults)
