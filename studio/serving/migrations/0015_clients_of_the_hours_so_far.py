from collections import Counter

from django.db import migrations

PLAIN = ("calls", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds_sum", "first_sum")


def add_up(apps, schema_editor):
    for workspace in apps.get_model("workspaces", "Workspace").objects.values_list("pk", flat=True):
        for source, target, column in (("CallHour", "ClientHour", "hour"), ("CallDay", "ClientDay", "day")):
            rows, sums = apps.get_model("serving", source), apps.get_model("serving", target)
            mine = rows.objects.filter(workspace=workspace, client__isnull=False)
            for moment in list(mine.order_by(column).values_list(column, flat=True).distinct()):
                found = {}
                for row in mine.filter(**{column: moment}).order_by().iterator():
                    if row.client_id not in found:
                        found[row.client_id] = sums(workspace_id=workspace, client_id=row.client_id, **{column: moment})
                    add(found[row.client_id], row)
                sums.objects.bulk_create(found.values(), 500)


def add(sums, row):
    for name in PLAIN:
        setattr(sums, name, getattr(sums, name) + getattr(row, name))
    sums.outcomes = dict(Counter(sums.outcomes) + Counter(row.outcomes))
    for name in ("seconds", "first"):
        longest = max(len(getattr(sums, name)), len(getattr(row, name)))
        both = (getattr(each, name) + [0] * (longest - len(getattr(each, name))) for each in (sums, row))
        setattr(sums, name, [one + other for one, other in zip(*both, strict=True)])


class Migration(migrations.Migration):
    dependencies = [("serving", "0014_clients_by_the_hour")]
    operations = [migrations.RunPython(add_up, migrations.RunPython.noop)]
