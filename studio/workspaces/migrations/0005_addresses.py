"""Everybody's e-mail address as the sign-in looks it up."""

from django.db import migrations


def add_addresses(apps, schema_editor):
    user, address = apps.get_model("workspaces", "User"), apps.get_model("account", "EmailAddress")
    known = set(address.objects.values_list("user_id", flat=True))
    address.objects.bulk_create(
        address(user_id=pk, email=email.lower(), verified=True, primary=True)
        for pk, email in user.objects.values_list("pk", "email")
        if pk not in known
    )


class Migration(migrations.Migration):
    dependencies = [
        ("workspaces", "0004_erasures"),
        ("account", "0009_emailaddress_unique_primary_email"),
    ]

    operations = [migrations.RunPython(add_addresses, migrations.RunPython.noop)]
