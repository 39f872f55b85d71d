"""The policy table: which role and scope may do which action, and which action each route needs.

A route that is not in ROUTES does not exist: it answers 404 and fails the build.
"""

GUEST = {"home.view"}
VIEWER = {
    "home.view",
    "client.view",
    "project.view",
    "base_model.view",
    "plugin.view",
    "worker.view",
    "dataset.view",
    "run.view",
    "artifact.view",
    "artifact.download",
    "build.view",
    "chat.use",
}
MEMBER = VIEWER | {
    "project.edit",
    "dataset.create",
    "dataset.delete",
    "run.create",
    "run.stop",
    "run.pause",
    "run.resume",
    "run.estimate",
    "build.create",
    "base_model.create",
    "key.view",
    "key.create",
    "key.revoke",
}
ADMIN = MEMBER | {"client.edit", "base_model.delete", "settings.view", "audit.view"}
OWNER = ADMIN | {"workspace.edit"}

ROLE_ACTIONS: dict[str, set[str]] = {"guest": GUEST, "viewer": VIEWER, "member": MEMBER, "admin": ADMIN, "owner": OWNER}

SCOPE_ACTIONS: dict[str, set[str]] = {
    "read": VIEWER | {"audit.view", "key.view"},
    "write": {"project.edit", "dataset.create", "dataset.delete", "base_model.create", "client.edit"},
    "train": {"run.create", "run.stop", "run.pause", "run.resume", "run.estimate", "build.create"},
    "deploy": {"build.create"},
    "inference": {"chat.use"},
    "admin": OWNER,
}

PUBLIC = "public"
"""Open to everybody."""
SIGNED_IN = "signed in"
"""Open to every user, whether or not they are in a workspace."""

ROUTES: dict[str, dict[str, str]] = {
    "healthz": {"GET": PUBLIC},
    "login": {"GET": PUBLIC, "POST": PUBLIC},
    "logout": {"POST": SIGNED_IN},
    "setup": {"GET": PUBLIC, "POST": PUBLIC},
    "home": {"GET": "home.view"},
    "design:index": {"GET": "home.view"},
    "clients:list": {"GET": "client.view"},
    "clients:new": {"GET": "client.edit", "POST": "client.edit"},
    "clients:detail": {"GET": "client.view"},
    "projects:list": {"GET": "project.view"},
    "projects:new": {"GET": "project.edit", "POST": "project.edit"},
    "projects:detail": {"GET": "project.view"},
    "settings:index": {"GET": "key.view"},
    "settings:key_new": {"POST": "key.create"},
    "settings:key_revoke": {"POST": "key.revoke"},
    "settings:audit": {"GET": "audit.view"},
    "basemodels:list": {"GET": "base_model.view"},
    "basemodels:new": {"GET": "base_model.create", "POST": "base_model.create"},
    "basemodels:detail": {"GET": "base_model.view"},
    "basemodels:stop": {"POST": "base_model.create"},
    "plugins:list": {"GET": "plugin.view"},
    "plugins:detail": {"GET": "plugin.view"},
    "workers:list": {"GET": "worker.view"},
    "datasets:new": {"GET": "dataset.create", "POST": "dataset.create"},
    "datasets:detail": {"GET": "dataset.view"},
    "datasets:version_new": {"GET": "dataset.create", "POST": "dataset.create"},
    "datasets:version": {"GET": "dataset.view"},
    "datasets:refusals": {"GET": "dataset.view"},
    "datasets:map": {"POST": "dataset.create"},
    "datasets:stop": {"POST": "dataset.create"},
    "runs:list": {"GET": "run.view"},
    "runs:new": {"GET": "run.create", "POST": "run.create"},
    "runs:estimate": {"POST": "run.estimate"},
    "runs:detail": {"GET": "run.view"},
    "runs:log": {"GET": "run.view"},
    "runs:steps": {"GET": "run.view"},
    "runs:stop": {"POST": "run.stop"},
    "runs:pause": {"POST": "run.pause"},
    "runs:resume": {"POST": "run.resume"},
    "artifacts:list": {"GET": "artifact.view"},
    "artifacts:detail": {"GET": "artifact.view"},
    "artifacts:download": {"GET": "artifact.download", "HEAD": "artifact.download"},
    "builds:new": {"POST": "build.create"},
    "builds:detail": {"GET": "build.view"},
    "builds:stop": {"POST": "build.create"},
    "serving:playground": {"GET": "chat.use"},
    "serving:chat": {"POST": "chat.use"},
    "api:api-root": {"GET": SIGNED_IN},
    "api:openapi-json": {"GET": SIGNED_IN},
    "api:openapi-view": {"GET": SIGNED_IN},
    "api:me": {"GET": SIGNED_IN},
    "api:clients": {"GET": "client.view", "POST": "client.edit"},
    "api:client": {"GET": "client.view", "PATCH": "client.edit", "DELETE": "client.edit"},
    "api:projects": {"GET": "project.view", "POST": "project.edit"},
    "api:project": {"GET": "project.view", "PATCH": "project.edit"},
    "api:audit": {"GET": "audit.view"},
    "api:base_models": {"GET": "base_model.view", "POST": "base_model.create"},
    "api:base_model": {"GET": "base_model.view"},
    "api:datasets": {"GET": "dataset.view", "POST": "dataset.create"},
    "api:dataset": {"GET": "dataset.view", "PATCH": "dataset.create"},
    "api:dataset_versions": {"GET": "dataset.view", "POST": "dataset.create"},
    "api:dataset_version": {"GET": "dataset.view"},
    "api:dataset_rows": {"GET": "dataset.view"},
    "api:dataset_refusals": {"GET": "dataset.view"},
    "api:plugins": {"GET": "plugin.view"},
    "api:estimates": {"POST": "run.estimate"},
    "api:runs": {"GET": "run.view", "POST": "run.create"},
    "api:run": {"GET": "run.view"},
    "api:run_events": {"GET": "run.view"},
    "api:run_stop": {"POST": "run.stop"},
    "api:run_pause": {"POST": "run.pause"},
    "api:run_resume": {"POST": "run.resume"},
    "api:run_clone": {"POST": "run.create"},
    "api:artifacts": {"GET": "artifact.view"},
    "api:artifact": {"GET": "artifact.view"},
    "api:artifact_download": {"GET": "artifact.download", "HEAD": "artifact.download"},
    "api:artifact_file": {"GET": "artifact.download", "HEAD": "artifact.download"},
    "api:builds": {"POST": "build.create"},
    "api:build": {"GET": "build.view"},
    "api_nowhere": dict.fromkeys(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"), PUBLIC),
}

SOCKETS: dict[str, str] = {"ws/runs/<uuid:pk>/": "run.view", "ws/orders/<uuid:pk>/": "run.view"}
