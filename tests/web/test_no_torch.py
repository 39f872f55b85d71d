"""The web process is light: it loads every plugin and every page, and nothing that trains."""

import json
import os
import subprocess
import sys

from django.conf import settings

HEAVY = {"torch", "transformers", "peft", "safetensors", "gguf", "xllamacpp", "llama_cpp", "bitsandbytes", "unsloth", "huggingface_hub"}
WEB = """
import json, os, sys
import studio.asgi
from django.core.management import call_command
from django.test import Client
from django.urls import get_resolver
from studio.training.registry import load_plugins
from studio.training.form import form_fields

call_command("migrate", verbosity=0)
from studio.workspaces.models import User
from studio.workspaces.services import create_workspace
member = create_workspace(user=User.objects.create_user("ana@example.com"), name="Acme")
browser = Client(HTTP_HOST="localhost")
browser.force_login(member.user)
plugins = load_plugins()
paths = ["/", "/runs/", "/plugins/", "/base-models/", "/playground/", "/artifacts/", *(f"/plugins/{name}/" for name in plugins)]
opened = [path for path in paths if browser.get(path).status_code == 200]
print(json.dumps({"modules": sorted({name.partition(".")[0] for name in sys.modules}), "plugins": sorted(plugins), "opened": opened,
                  "ours": [name for name in sys.modules if name.startswith(("studio.ml", "studio.serving.engines.llamacpp"))]}))
"""


def test_a_fresh_web_process_loads_nothing_that_trains(tmp_path):
    environment = os.environ | {"STUDIO_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "studio.settings"}
    done = subprocess.run([sys.executable, "-c", WEB], cwd=settings.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert HEAVY & set(seen["modules"]) == set()
    assert seen["ours"] == []
    assert {"peft_lora", "rehearsal"} <= set(seen["plugins"])
    assert len(seen["opened"]) == 6 + len(seen["plugins"])
