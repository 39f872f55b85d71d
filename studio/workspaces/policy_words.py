"""The policy table as people read it: each action in plain words, and who may do it. The answers come from the table alone."""

from dataclasses import dataclass

from studio.workspaces.policy import ROLE_ACTIONS, SCOPE_ACTIONS

WORDS: dict[str, dict[str, str]] = {
    "Everyday": {
        "home.view": "Open the home page",
        "project.view": "See projects",
        "project.edit": "Make and rename projects",
        "base_model.view": "See base models",
        "base_model.create": "Add base models",
        "base_model.delete": "Remove base models",
        "plugin.view": "See the ways to train",
        "worker.view": "See workers",
    },
    "Data": {
        "dataset.view": "Read datasets and their rows",
        "dataset.export": "Download datasets",
        "dataset.create": "Upload, correct and make datasets",
        "dataset.delete": "Delete datasets",
    },
    "Training": {
        "run.view": "See runs",
        "run.estimate": "Estimate time, memory and cost of a run",
        "run.create": "Start runs",
        "run.stop": "Stop runs",
        "run.pause": "Pause runs",
        "run.resume": "Resume runs",
        "run.queue": "Move runs in the queue",
        "queue.edit": "Set the rules of the queue",
        "comparison.view": "See comparisons and their verdicts",
        "comparison.edit": "Make, stop and delete comparisons, and share them with a client's guests",
        "comparison.rate": "Say which of two answers is better, without knowing whose they are",
        "retraining.view": "See which releases are trained anew on another base model",
        "retraining.edit": "Train releases anew on another base model",
    },
    "Artifacts and builds": {
        "artifact.view": "See artifacts",
        "artifact.download": "Download artifacts",
        "artifact.upload": "Upload adapters",
        "build.view": "See builds",
        "build.create": "Build GGUF files",
        "chat.use": "Chat with models",
        "prompts.view": "See prompt sets, trials and shared conversations",
        "prompts.edit": "Make prompt sets, ask them, and share conversations",
    },
    "Releases and what runs": {
        "release.view": "See releases",
        "release.create": "Make releases",
        "release.evaluate": "Evaluate releases",
        "release.approve": "Approve and retire releases",
        "release.sign_off": "Sign off a release as its client",
        "gate.edit": "Set what a release must pass",
        "shared.view": "See what was shared with a client, as its guests do",
        "delivery.view": "See deliveries",
        "delivery.download": "Download deliveries",
        "delivery.create": "Deliver a release to its client",
        "deployment.view": "See what runs where",
        "deployment.create": "Make deployments",
        "deployment.promote": "Promote and roll back",
        "traffic.view": "See how much the endpoint is asked, and how quickly it answers",
        "answer.view": "Read what the endpoint was asked and answered, where a project keeps it",
        "answer.judge": "Say which kept answers are good, and correct them",
        "answer.keep": "Say whether a project keeps answers, and for how long",
    },
    "Clients": {
        "client.view": "See clients",
        "client.edit": "Make, rename, limit, archive and restore clients",
        "client.logo": "Set the logos of clients",
        "client.export": "Export everything of a client",
        "client.erase": "Erase a client",
        "usage.view": "See usage and cost",
        "usage.edit": "Set rates and prices",
    },
    "People and the workspace": {
        "role.view": "Read this page",
        "member.view": "See who is here",
        "member.edit": "Invite people, change their roles and clients, remove them",
        "key.view": "See their own API keys",
        "key.create": "Make API keys",
        "key.revoke": "Revoke API keys",
        "connection.edit": "Set up connections to other services",
        "settings.view": "See the workspace's settings",
        "workspace.edit": "Change the workspace's settings",
        "audit.view": "Read the audit log",
    },
}


@dataclass(frozen=True)
class Line:
    """One action, with whether each role or scope has it, in the table's order."""

    words: str
    roles: list[bool]
    scopes: list[bool]


def policy_lines() -> dict[str, list[Line]]:
    """The table by groups."""
    return {
        group: [
            Line(words, [action in mine for mine in ROLE_ACTIONS.values()], [action in mine for mine in SCOPE_ACTIONS.values()])
            for action, words in actions.items()
        ]
        for group, actions in WORDS.items()
    }
