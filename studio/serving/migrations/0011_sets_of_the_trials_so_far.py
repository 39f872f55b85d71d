import hashlib
import json
import uuid

from django.db import migrations


def known_by_their_prompts(apps, schema_editor):
    """The set of a trial so far is that of its client with the same prompts, else that of all clients; trials of none that is left share an
    id of their own."""
    sets, trials = apps.get_model("serving", "PromptSet"), apps.get_model("serving", "Trial")
    found = {}
    for each in sets.objects.order_by("-created_at").iterator():
        found[key(each, each.client_id)] = each.pk
    for pk in list(trials.objects.filter(prompt_set__isnull=True).values_list("pk", flat=True)):
        trial = trials.objects.only("workspace_id", "client_id", "prompts").get(pk=pk)
        of_client, of_all = key(trial, trial.client_id), key(trial, None)
        known = found.get(of_client) or found.get(of_all) or found.setdefault(of_client, uuid.uuid4())
        trials.objects.filter(pk=pk).update(prompt_set=known)


def key(row, client):
    return row.workspace_id, client, hashlib.sha256(json.dumps(row.prompts, sort_keys=True).encode()).hexdigest()


class Migration(migrations.Migration):
    dependencies = [("serving", "0010_the_set_of_a_trial")]
    operations = [migrations.RunPython(known_by_their_prompts, migrations.RunPython.noop)]
