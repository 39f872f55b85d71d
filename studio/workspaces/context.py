"""What the frame around every page needs: where one can go."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from studio.workspaces.people import may_make_workspace, memberships_of

SOURCES: list[Callable[[Any], list[dict[str, str]]]] = []
"""Apps add what the palette reaches of theirs: each answers `[{title, hint, url, kind}]` for a member."""


def palette(member: Any) -> list[dict[str, str]]:
    """The pages and things that the command palette reaches: `[{title, hint, url, kind}]`."""
    from studio.workspaces.models import Client, Project

    pages = [
        ("Home", "home", "home.view"),
        ("Projects", "projects:list", "project.view"),
        ("Clients", "clients:list", "client.view"),
        ("Runs", "runs:list", "run.view"),
        ("Queue", "runs:queue", "run.view"),
        ("New run", "runs:new", "run.create"),
        ("Artifacts", "artifacts:list", "artifact.view"),
        ("Releases", "releases:list", "release.view"),
        ("New release", "releases:new", "release.create"),
        ("Deployments", "deployments:list", "deployment.view"),
        ("Deliveries", "deliveries:list", "delivery.view"),
        ("Playground", "serving:playground", "artifact.view"),
        ("Base models", "basemodels:list", "base_model.view"),
        ("Add a base model", "basemodels:new", "base_model.create"),
        ("Plugins", "plugins:list", "plugin.view"),
        ("Workers", "workers:list", "worker.view"),
        ("Settings", "settings:index", "key.view"),
        ("People", "people:list", "member.view"),
        ("Roles", "settings:roles", "role.view"),
    ]
    found = [{"title": title, "hint": "", "url": reverse(name), "kind": "page"} for title, name, action in pages if member.may(action)]
    for project in Project.objects.for_action(member, "project.view").current().select_related("client")[:200]:
        found.append(
            {"title": project.name, "hint": project.client.name, "url": reverse("projects:detail", args=[project.pk]), "kind": "project"}
        )
    found += [entry for source in SOURCES for entry in source(member)]
    for client in Client.objects.for_action(member, "client.view").current()[:200]:
        found.append({"title": client.name, "hint": "", "url": reverse("clients:detail", args=[client.pk]), "kind": "client"})
    return found


def frame(request: HttpRequest) -> dict[str, Any]:
    member = getattr(request, "member", None)
    if member is None or request.headers.get("HX-Request"):
        return {}
    memberships = memberships_of(member.user)
    return {
        "palette": palette(member),
        "workspaces": [(each.workspace, each.get_role_display()) for each in memberships],
        "may_make_workspace": may_make_workspace(memberships),
    }
