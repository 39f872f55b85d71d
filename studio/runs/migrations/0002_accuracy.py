from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("runs", "0001_initial")]

    operations = [
        migrations.AddField("run", "correction", models.JSONField(default=dict)),
        migrations.AddField("run", "measured", models.JSONField(null=True)),
    ]
