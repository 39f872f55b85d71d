import django.db.models.deletion
from django.db import migrations, models


def name_workspaces(apps, schema_editor):
    """A day belongs to the workspace of its client, which it may outlive from now on."""
    StoredDay, Client = apps.get_model("orders", "StoredDay"), apps.get_model("workspaces", "Client")
    whose = Client.objects.filter(pk=models.OuterRef("client")).values("workspace")[:1]
    StoredDay.objects.update(workspace=models.Subquery(whose))


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0006_found_by_status'),
        ('workspaces', '0005_addresses'),
    ]

    operations = [
        migrations.AddField(
            model_name='storedday',
            name='workspace',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='stored_days', to='workspaces.workspace'),
        ),
        migrations.RunPython(name_workspaces, migrations.RunPython.noop),
        migrations.AlterField(
            model_name='storedday',
            name='workspace',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='stored_days', to='workspaces.workspace'),
        ),
        migrations.AlterField(
            model_name='storedday',
            name='client',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='stored_days', to='workspaces.client'),
        ),
    ]
