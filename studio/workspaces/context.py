"""What the frame around every page needs: where one can go."""

from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from studio.workspaces.people import may_make_workspace, memberships_of


def pages(member: Any) -> list[dict[str, str]]:
    """The pages that the command palette reaches, `[{title, hint, url, kind}]`; things are asked for as one types."""
    known = [
        ("Home", "home", "home.view"),
        ("Projects", "projects:list", "project.view"),
        ("Clients", "clients:list", "client.view"),
        ("Runs", "runs:list", "run.view"),
        ("Queue", "runs:queue", "run.view"),
        ("New run", "runs:new", "run.create"),
        ("LoRA, QLoRA or full?", "advice:page", "run.estimate"),
        ("Comparisons", "comparisons:list", "comparison.view"),
        ("New comparison", "comparisons:new", "comparison.edit"),
        ("Artifacts", "artifacts:list", "artifact.view"),
        ("Releases", "releases:list", "release.view"),
        ("New release", "releases:new", "release.create"),
        ("Retraining", "retraining:list", "retraining.view"),
        ("Retrain with…", "retraining:new", "retraining.edit"),
        ("Deployments", "deployments:list", "deployment.view"),
        ("Traffic", "traffic:list", "traffic.view"),
        ("Deliveries", "deliveries:list", "delivery.view"),
        ("Playground", "serving:playground", "artifact.view"),
        ("Prompt sets", "prompts:list", "prompts.view"),
        ("Trials", "trials:list", "prompts.view"),
        ("Base models", "basemodels:list", "base_model.view"),
        ("Add a base model", "basemodels:new", "base_model.create"),
        ("Plugins", "plugins:list", "plugin.view"),
        ("Workers", "workers:list", "worker.view"),
        ("Models in memory", "serving:state", "worker.view"),
        ("Settings", "settings:index", "key.view"),
        ("People", "people:list", "member.view"),
        ("Roles", "settings:roles", "role.view"),
    ]
    return [{"title": title, "hint": "", "url": reverse(name), "kind": "page"} for title, name, action in known if member.may(action)]


def frame(request: HttpRequest) -> dict[str, Any]:
    member = getattr(request, "member", None)
    if request.headers.get("HX-Request"):
        return {}
    if member is None:
        return {"may_make_workspace": may_make_workspace([])}
    memberships = memberships_of(member.user)
    return {
        "palette": pages(member),
        "workspaces": [(each.workspace, each.get_role_display()) for each in memberships],
        "may_make_workspace": may_make_workspace(memberships),
    }
