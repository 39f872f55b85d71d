from django.db import migrations, models

from studio.serving.words import words_in


def find_words(apps, schema_editor):
    answers = apps.get_model("serving", "KeptAnswer").objects
    pks = list(answers.order_by("at").values_list("pk", flat=True))
    for begin in range(0, len(pks), 100):
        for pk, said in answers.filter(pk__in=pks[begin : begin + 100]).values_list("pk", "said"):
            answers.filter(pk=pk).update(words=words_in([said]))


class Migration(migrations.Migration):
    dependencies = [("serving", "0011_sets_of_the_trials_so_far")]
    operations = [
        migrations.AddField(model_name="keptanswer", name="words", field=models.TextField(blank=True, default=""), preserve_default=False),
        migrations.RunPython(find_words, migrations.RunPython.noop),
    ]
