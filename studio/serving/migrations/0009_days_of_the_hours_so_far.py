from collections import Counter
from datetime import UTC

from django.db import migrations

PLAIN = ("calls", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds_sum", "first_sum")


def add_up(apps, schema_editor):
    hours, days = apps.get_model("serving", "CallHour"), apps.get_model("serving", "CallDay")
    moments = hours.objects.filter(client__isnull=False).order_by("hour").values_list("hour", flat=True).distinct()
    for day in sorted({moment.astimezone(UTC).replace(hour=0) for moment in moments.iterator()}):
        found = {}
        for hour in hours.objects.filter(client__isnull=False, hour__gte=day, hour__lte=day.replace(hour=23)).iterator():
            key = (hour.client_id, hour.deployment_id, hour.release_id, hour.canary)
            if key not in found:
                columns = dict(zip(("client_id", "deployment_id", "release_id", "canary"), key, strict=True))
                found[key] = days(workspace_id=hour.workspace_id, day=day, **columns)
            add(found[key], hour)
        days.objects.bulk_create(found.values(), 500)


def add(day, hour):
    for name in PLAIN:
        setattr(day, name, getattr(day, name) + getattr(hour, name))
    day.outcomes = dict(Counter(day.outcomes) + Counter(hour.outcomes))
    for name in ("seconds", "first"):
        longest = max(len(getattr(day, name)), len(getattr(hour, name)))
        both = (getattr(each, name) + [0] * (longest - len(getattr(each, name))) for each in (day, hour))
        setattr(day, name, [one + other for one, other in zip(*both, strict=True)])


class Migration(migrations.Migration):
    dependencies = [("serving", "0008_calls_by_the_day")]
    operations = [migrations.RunPython(add_up, migrations.RunPython.noop)]
