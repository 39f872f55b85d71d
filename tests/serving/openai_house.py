"""A studio with small models that were really made, its web process and the process that answers: what callers of the endpoint ask."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings
from openai import OpenAI

from studio.artifacts.models import Artifact
from studio.releases.models import Release
from studio.serving.models import Call, Deployment
from studio.storage import commit_folder
from studio.workspaces.models import Client, Member, Project
from studio.workspaces.services import create_client, create_project
from tests.fixtures import make_artifact, make_base_model, make_deployment, make_key, make_order, make_owner, make_release
from tests.ml.conftest import make_tiny_model
from tests.serving.engine_process import engine_process

WITH_TOOLS = """\
{% if tools %}<|im_start|>system
{{ tools|tojson }}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] or '' }}{% for call in message['tool_calls'] or [] %}
<tool_call>
{"name": "{{ call['function']['name'] }}", "arguments": {{ call['function']['arguments']|tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@contextmanager
def engine_at(configured: Any, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that answers, where the settings say that it is."""
    socket = folder / "e.sock"
    configured.ENGINE_SOCKET = str(socket)
    with engine_process(folder, socket) as process:
        yield process


@dataclass
class House:
    """A workspace with the client Acme, whose project has releases; `address` is the web server's."""

    address: str
    owner: Member
    client: Client
    project: Project
    models: dict[str, Path]

    @classmethod
    def made(cls, address: str, models: dict[str, Path]) -> "House":
        owner = make_owner()
        client = create_client(owner, name="Acme")
        return cls(address, owner, client, create_project(owner, client=client, name="Support"), models)

    def release(self, name: str = "first", *, version: int = 1, adapter: Path | None = None, **asked_with: Any) -> Release:
        """Of the model of that name, or of an adapter of it; approved."""
        base = make_base_model(self.owner, name=f"{name} {version}")
        base.facts = base.facts | {"takes_tools": name == "tools"}
        if adapter is not None:
            base.folder.parent.mkdir(exist_ok=True)
            temp = Path(settings.DATA_DIR, "temp", base.folder.name)
            base.sha256 = commit_folder(Path(shutil.copytree(self.models[name], temp)), base.folder)["sha256"]
        base.save()
        files = {path.name: path.read_bytes() for path in (adapter or self.models[name]).iterdir() if path.is_file()}
        kind = Artifact.Kind.ADAPTER if adapter else Artifact.Kind.MODEL
        artifact = make_artifact(make_order(self.owner, kind="train", client=self.client), self.project, files, kind=kind, base_model=base)
        release = make_release(self.owner, artifact, version=(version, 0, 0), stage=Release.Stage.APPROVED)
        release.asked_with = asked_with
        release.save()
        return release

    def deployment(self, release: Release | None, slug: str = "support") -> Deployment:
        return make_deployment(self.project, release, slug=slug)

    def key(self, **columns: Any) -> str:
        return make_key(self.owner, scopes=["inference"], **columns)

    def openai(self, **options: Any) -> OpenAI:
        """The official client. Nothing is tried again, so that each test sees what the first answer was."""
        return OpenAI(**{"base_url": f"{self.address}/v1", "api_key": self.key(), "max_retries": 0, "timeout": 120} | options)

    def plain(self) -> httpx.Client:
        """HTTP without anybody's client library."""
        return httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {self.key()}"}, timeout=120)


def tiny_models(folder: Path) -> dict[str, Path]:
    """Random Llamas: two that differ, and one whose template writes tools."""
    return {
        "first": make_tiny_model(folder / "first", context=2048),
        "second": make_tiny_model(folder / "second", context=2048, seed=7),
        "tools": make_tiny_model(folder / "tools", context=2048, template=WITH_TOOLS, seed=3),
    }


def calls(count: int, *, patience: float = 10) -> list[Call]:
    """The records, the oldest first, once there are so many: that of a caller who left is written after they did."""
    until = time.monotonic() + patience
    while len(found := list(Call.objects.order_by("at"))) < count:
        assert time.monotonic() < until, f"{len(found)} of {count}"
        time.sleep(0.05)
    assert len(found) == count
    return found
