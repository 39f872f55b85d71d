from django.db import migrations
from django.db.models import OuterRef, Subquery, Value
from django.db.models.functions import Coalesce

from studio.audit import triggers


def name_them(apps, schema_editor):
    """What records say of clients and people by themselves, for those that were written before they did."""
    records = apps.get_model('audit', 'AuditRecord').objects
    clients = apps.get_model('workspaces', 'Client').objects.filter(pk=OuterRef('client')).values('name')[:1]
    users = apps.get_model('workspaces', 'User').objects.filter(pk=OuterRef('user')).values('email')[:1]
    records.filter(client__isnull=False).update(client_name=Coalesce(Subquery(clients), Value('')))
    records.filter(user__isnull=False).update(user_email=Coalesce(Subquery(users), Value('')))


def make(apps, schema_editor):
    triggers.make(schema_editor.connection)


def drop(apps, schema_editor):
    triggers.drop(schema_editor.connection)


class Migration(migrations.Migration):

    dependencies = [
        ('audit', '0002_kept_and_chained'),
    ]

    operations = [
        migrations.RunPython(name_them, migrations.RunPython.noop),
        migrations.RunPython(make, drop),
    ]
