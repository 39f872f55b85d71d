from django.db import migrations

from studio.serving import words


def make(apps, schema_editor):
    words.make(schema_editor.connection)


def drop(apps, schema_editor):
    words.drop(schema_editor.connection)


class Migration(migrations.Migration):
    dependencies = [("serving", "0012_words_of_answers")]
    operations = [
        migrations.RemoveField(model_name="keptanswer", name="said"),
        migrations.RunPython(make, drop),
    ]
