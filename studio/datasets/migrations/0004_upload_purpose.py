from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('datasets', '0003_size'),
    ]

    operations = [
        migrations.AddField(
            model_name='upload',
            name='purpose',
            field=models.CharField(choices=[('dataset', 'Dataset'), ('adapter', 'Adapter')], default='dataset', max_length=10),
        ),
    ]
