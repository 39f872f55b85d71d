from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orders', '0007_days_outlive_clients'),
        ('comparisons', '0003_extraction_keeps_tables'),
    ]

    operations = [
        migrations.AddField(
            model_name='comparison',
            name='before',
            field=models.OneToOneField(null=True, on_delete=models.deletion.PROTECT, related_name='+', to='orders.order'),
        ),
    ]
