from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("basemodels", "0001_initial")]

    operations = [
        migrations.AddField(model_name="basemodel", name="new_tokens", field=models.JSONField(default=list)),
    ]
