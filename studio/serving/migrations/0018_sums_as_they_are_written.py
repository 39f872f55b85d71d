from django.db import migrations

import studio.serving.fields

MODELS = ('callhour', 'callday', 'calltotal', 'clienthour', 'clientday')
COLUMNS = {'outcomes': dict, 'seconds': list, 'first': list}


def to(kind):
    """The columns of each table at once, so that it is written anew only once. SQLite has texts already."""

    def change(apps, schema_editor):
        if schema_editor.connection.vendor == 'postgresql':
            for model in MODELS:
                table = schema_editor.quote_name(apps.get_model('serving', model)._meta.db_table)
                columns = ', '.join(f'ALTER COLUMN "{name}" TYPE {kind} USING "{name}"::{kind}' for name in COLUMNS)
                schema_editor.execute(f'ALTER TABLE {table} {columns}')

    return change


class Migration(migrations.Migration):

    dependencies = [
        ('serving', '0017_calls_of_deployments'),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            [migrations.RunPython(to('json'), to('jsonb'))],
            [
                migrations.AlterField(model, name, studio.serving.fields.WrittenJSON(default=empty))
                for model in MODELS
                for name, empty in COLUMNS.items()
            ],
        ),
    ]
