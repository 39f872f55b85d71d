"""How long every list and page takes in a workspace with very many things, and how many queries it makes.

    python benchmarks/pages.py [--rounds 30] [--clients 200 --projects 2000 --runs 20000 --artifacts 50000]
    scripts/with_postgres python benchmarks/pages.py

A studio in a folder of its own is filled (`manage.py fill`), then each address is asked for `--rounds` times, each time another object,
through Django's whole stack in this process. Printed are the median and the 95th percentile of the seconds on the clock, the median of
this process's own processor time, and the most queries of any round. The target is 150 ms.
"""

import argparse
import importlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TARGET = 0.150
Address = Callable[[random.Random], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="addresses that hold this text")
    parser.add_argument("--data-dir", help="a studio that was filled before")
    for name, amount in (("clients", 200), ("projects", 2000), ("runs", 20_000), ("artifacts", 50_000)):
        parser.add_argument(f"--{name}", type=int, default=amount)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDIO_DATA_DIR"] = given.data_dir or folder
        os.environ["DJANGO_SETTINGS_MODULE"] = "studio.settings"
        import django

        django.setup()
        measure(given)


def measure(given: argparse.Namespace) -> None:
    from django.core.management import call_command
    from django.db import connection

    from studio.clients.filling import Amounts, fill
    from studio.orders.planning import look_at_tables
    from studio.workspaces.models import Member, User

    call_command("migrate", verbosity=0)
    member = Member.objects.filter(workspace__name="Very many").select_related("user", "workspace").first()
    if member is None:
        user = User.objects.create_user("owner@example.com")
        amounts = Amounts(given.clients, given.projects, given.runs, given.artifacts)
        member = fill(user, "Very many", amounts)
        look_at_tables()  # as the rounds do every hour
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("VACUUM ANALYZE")  # as autovacuum does after a while
    ask_all(addresses(member), member, given)


def ask_all(found: dict[str, Address], member: Any, given: argparse.Namespace) -> None:
    """Prints the table, and which of the addresses are too slow."""
    from django.db import connection

    importlib.import_module("studio.asgi")  # it leaves what stays loaded out of the collection of garbage, as the web process does
    print(f"{connection.vendor}, {given.rounds} rounds, seconds on the clock\n")
    print(f"{'address':44} {'median':>8} {'p95':>8} {'CPU':>8} {'queries':>9} {'KB':>6}")
    slow = [name for name, address in found.items() if given.only in name and not ask(name, address, member, given)]
    print(f"\n{len(slow)} above {TARGET * 1000:.0f} ms: {', '.join(slow) or 'none'}")


def addresses(member: Any) -> dict[str, Address]:
    """By what it is called, where a round goes."""
    from studio.artifacts.models import Artifact, Build
    from studio.basemodels.models import BaseModel
    from studio.datasets.models import DatasetVersion
    from studio.releases.models import Release
    from studio.runs.models import Run
    from studio.serving.models import Deployment
    from studio.workspaces.models import Client, Project

    actions = {
        Client: "client.view", Project: "project.view", Run: "run.view", Artifact: "artifact.view", Release: "release.view",
        Deployment: "deployment.view", Build: "build.view", DatasetVersion: "dataset.view", BaseModel: "base_model.view",
    }  # fmt: skip
    ids = {
        model: list(model.objects.for_action(member, action).order_by("pk").values_list("pk", flat=True)[:5000])
        for model, action in actions.items()
    }

    def of(model: Any, pattern: str) -> Address:
        return lambda chance: pattern.format(chance.choice(ids[model]))

    hashes = list(Artifact.objects.for_action(member, "artifact.view").values_list("sha256", flat=True)[:500])
    words = ("bakery", "support", "smollm2", "minutes 7", "hotel 3 letters", "nothing like it")
    fixed = [
        "/", "/clients/", "/projects/", "/projects/?page=20", "/runs/", "/runs/?page=100", "/runs/?status=failed", "/runs/queue/",
        "/artifacts/", "/artifacts/?page=200", "/artifacts/?kind=gguf", "/releases/", "/deployments/", "/base-models/", "/playground/",
        "/usage/", "/traffic/", "/traffic/?period=month", "/settings/", "/settings/audit/", "/settings/people/", "/runs/new/",
        "/adapters/new/", "/account/", "/advice/", "/answers/", "/comparisons/", "/comparisons/new/", "/deliveries/", "/deployments/new/",
        "/playground/talks/", "/playground/votes/", "/plugins/", "/projects/new/", "/prompts/", "/prompts/new/", "/releases/new/",
        "/retraining/", "/retraining/new/", "/settings/roles/", "/settings/usage/", "/trials/", "/trials/new/", "/workers/",
        "/api/v1/clients", "/api/v1/projects", "/api/v1/runs", "/api/v1/artifacts", "/api/v1/releases", "/api/v1/deployments",
        "/api/v1/audit", "/api/v1/datasets", "/api/v1/usage", "/api/v1/traffic", "/api/v1/metrics",
    ]  # fmt: skip
    named: dict[str, Address] = {path: (lambda chance, path=path: path) for path in fixed}
    named |= {
        "/clients/<id>/": of(Client, "/clients/{}/"),
        "/clients/<id>/erase/": of(Client, "/clients/{}/erase/"),
        "/clients/<id>/export/": of(Client, "/clients/{}/export/"),
        "/projects/<id>/": of(Project, "/projects/{}/"),
        "/projects/<id>/gate/": of(Project, "/projects/{}/gate/"),
        "/releases/new/?project=<id>": of(Project, "/releases/new/?project={}"),
        "/runs/?client=<id>": of(Client, "/runs/?client={}"),
        "/runs/<id>/": of(Run, "/runs/{}/"),
        "/runs/new/?project=<id>": of(Project, "/runs/new/?project={}"),
        "/datasets/new/?project=<id>": of(Project, "/datasets/new/?project={}"),
        "/artifacts/<id>/": of(Artifact, "/artifacts/{}/"),
        "/builds/<id>/": of(Build, "/builds/{}/"),
        "/releases/<id>/": of(Release, "/releases/{}/"),
        "/deployments/<id>/": of(Deployment, "/deployments/{}/"),
        "/base-models/<id>/": of(BaseModel, "/base-models/{}/"),
        "/search/?q=name": lambda chance: f"/search/?q={chance.choice(words)}",
        "/search/?q=hash": lambda chance: f"/search/?q={chance.choice(hashes)[:10]}",
        "/lineage/artifacts/<id>/": of(Artifact, "/lineage/artifacts/{}/"),
        "/lineage/releases/<id>/": of(Release, "/lineage/releases/{}/"),
        "/lineage/runs/<id>/": of(Run, "/lineage/runs/{}/"),
        "/datasets/versions/<id>/write/": of(DatasetVersion, "/datasets/versions/{}/write/"),
        "/lineage/versions/<id>/": of(DatasetVersion, "/lineage/versions/{}/"),
    }
    return named


class Asked:
    """Counts queries."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        self.count += 1
        return execute(sql, params, many, context)


def ask(name: str, address: Address, member: Any, given: argparse.Namespace) -> bool:
    """Prints a line; False where the address is too slow."""
    from django.db import connection

    browser, headers = signed_in(member, api=name.startswith("/api/"))
    chance, walls, processor, queries, size = random.Random(name), [], [], 0, 0
    for number in range(given.rounds + 3):
        path = address(chance)
        asked = Asked()
        with connection.execute_wrapper(asked):  # Django's own log of queries would spell out each with all its parameters
            started, before = time.perf_counter(), time.process_time()
            answer = browser.get(path, headers=headers, SERVER_NAME="localhost")
            body = answer.getvalue()
            took, worked = time.perf_counter() - started, time.process_time() - before
        if answer.status_code != 200:
            print(f"{name:44} answered {answer.status_code} at {path}")
            return False
        if number >= 3:  # the first ones compile templates
            walls.append(took)
            processor.append(worked)
            queries, size = max(queries, asked.count), max(size, len(body))
    p95 = statistics.quantiles(walls, n=20)[-1]
    print(
        f"{name:44} {statistics.median(walls):8.3f} {p95:8.3f} {statistics.median(processor):8.3f} {queries:9d} {size >> 10:6d}", flush=True
    )
    return p95 < TARGET


def signed_in(member: Any, *, api: bool) -> tuple[Any, dict[str, str]]:
    from django.test import Client as Browser

    from studio.workspaces import keys
    from studio.workspaces.policy import SCOPE_ACTIONS

    browser = Browser()
    if api:
        _, secret = keys.create(member, name="pages", scopes=[*SCOPE_ACTIONS])
        member.key = None
        return browser, {"Authorization": f"Bearer {secret}"}
    browser.force_login(member.user)
    session = browser.session
    session["workspace"] = str(member.workspace_id)
    session.save()
    return browser, {}


if __name__ == "__main__":
    main()
