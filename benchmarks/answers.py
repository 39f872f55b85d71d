"""How long it takes to find a word among very many kept answers, on the page and through the API; and what keeping one more costs.

    python benchmarks/answers.py [--answers 50000] [--rounds 15] [--data-dir FOLDER]
    scripts/with_postgres python benchmarks/answers.py

A studio in a folder of its own keeps so many answers, in five projects of each of two clients, of words as frequent as a language has
them. Each search is asked for `--rounds` times through Django's whole stack in this process. Printed are the median and the 95th percentile
of the seconds on the clock, and the median of this process's own processor time; PostgreSQL works in processes of its own, which only the
clock sees. The target is 150 ms.
"""

import argparse
import os
import random
import sys
import tempfile
import time
import uuid
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))
AT_ONCE = 500
VOCABULARY = 30_000
QUESTION, ANSWER = 25, 160
"""Words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="addresses that hold this text")
    parser.add_argument("--data-dir", help="a studio that was filled before")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STUDIO_DATA_DIR"] = given.data_dir or folder
        os.environ["DJANGO_SETTINGS_MODULE"] = "studio.settings"
        import django

        django.setup()
        measure(given)


def measure(given: argparse.Namespace) -> None:
    from django.core.management import call_command
    from django.db import connection
    from pages import ask_all

    from studio.orders.planning import look_at_tables
    from studio.workspaces.models import Member, User
    from studio.workspaces.services import create_workspace

    call_command("migrate", verbosity=0)
    member = Member.objects.filter(workspace__name="Very many").select_related("user", "workspace").first()
    if member is None:
        member = create_workspace(user=User.objects.create_user("owner@example.com"), name="Very many")
        began = time.process_time()
        fill(member, given.answers)
        print(f"{given.answers} answers: {(time.process_time() - began) / given.answers * 1000:.2f} ms of this process for each")
        look_at_tables()  # as the rounds do every hour
        if connection.vendor == "postgresql":
            connection.cursor().execute("ANALYZE")  # as autovacuum does after a while
            connection.cursor().execute("VACUUM serving_keptanswer")
    ask_all(addresses(member), member, given)
    keep_more(member)


def word(number: int) -> str:
    """A pronounceable one for each number."""
    letters, place = [], number + 40
    while place:
        place, at = divmod(place, 60)
        letters.append("bdfgklmnprst"[at % 12] + "aeiou"[at // 12])
    return "".join(letters)


class Speech:
    """Texts whose words are as often as in a language: the n-th about 1/n as often as the first."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.words = [word(number) for number in range(VOCABULARY)]
        self.weights = list(accumulate(1 / (number + 3) for number in range(VOCABULARY)))

    def text(self, count: int) -> str:
        return " ".join(self.chance.choices(self.words, cum_weights=self.weights, k=count)).capitalize() + "."


def fill(member: Any, count: int) -> None:
    from studio.serving.models import Keeping, KeptAnswer
    from studio.workspaces.services import create_client, create_project

    chance = random.Random(7)
    speech, client = Speech(chance), create_client(member, name="Globex")
    clients = [member.workspace.clients.exclude(pk=client.pk).get(), client]
    projects = [create_project(member, client=each, name=f"Task {number}") for each in clients for number in range(5)]
    Keeping.objects.bulk_create([Keeping(project=project, days=365) for project in projects])
    for begin in range(0, count, AT_ONCE):
        rows = [answer(chance.choice(projects), speech, number, count) for number in range(begin, min(count, begin + AT_ONCE))]
        KeptAnswer.objects.bulk_create(rows)


def answer(project: Any, speech: Speech, number: int, count: int) -> Any:
    from django.utils import timezone

    from studio.serving.keeping import in_words
    from studio.serving.models import KeptAnswer

    asked = [{"role": "user", "content": speech.text(QUESTION)}]
    answered = {"role": "assistant", "content": f"{speech.text(ANSWER)} AB-{number:06d}"}
    at = timezone.now() - timedelta(days=300 * (1 - number / count))
    told = {"messages": asked, "answer": answered, "at": at, "until": at + timedelta(days=365)}
    return KeptAnswer(pk=uuid.uuid4(), project=project, thumb=number % 3 - 1, **told, **in_words(asked, answered))


def addresses(member: Any) -> dict[str, Any]:
    from studio.serving.models import KeptAnswer

    project = KeptAnswer.objects.order_by("at").values_list("project", flat=True)[0]
    some = list(KeptAnswer.objects.order_by("at").values_list("pk", flat=True)[::997])
    typed = {
        "every answer": word(0),
        "one in six": word(120),
        "one in 200": word(4000),
        "one": "ab-012345",
        "a beginning": word(1)[:2],
        "one letter": word(0)[:1],
        "two words": f"{word(0)} {word(2500)}",
        "six words": " ".join(word(number) for number in range(6)),
        "nothing": "nothinglikeit",
    }
    found: dict[str, Any] = {"/answers/": lambda chance: "/answers/"}
    for name, text in typed.items():
        found[f"/answers/ {name}"] = lambda chance, text=text: f"/answers/?q={text.replace(' ', '+')}"
        found[f"/api/v1/answers {name}"] = lambda chance, text=text: f"/api/v1/answers?q={text.replace(' ', '+')}"
        found[f"of a project, {name}"] = lambda chance, text=text: f"/answers/?project={project}&judged=good&q={text.replace(' ', '+')}"
    for name in ("every answer", "one in 200", "one"):
        found[f"one answer among {name}"] = lambda chance, text=typed[name]: f"/answers/{chance.choice(some)}/?q={text}"
    return found


def keep_more(member: Any) -> None:
    """As the endpoint does after an answer."""
    from django.db import transaction

    from studio.serving.models import KeptAnswer

    chance = random.Random(8)
    speech, project = Speech(chance), member.workspace.clients.first().projects.first()
    rows = [answer(project, speech, number, 200) for number in range(200)]
    began, before = time.perf_counter(), time.process_time()
    for row in rows:
        with transaction.atomic():
            row.save(force_insert=True)
    wall, processor = time.perf_counter() - began, time.process_time() - before
    print(f"to keep one more: {wall / 200 * 1000:.2f} ms on the clock, {processor / 200 * 1000:.2f} of the processor")
    KeptAnswer.objects.filter(pk__in=[row.pk for row in rows]).delete()


if __name__ == "__main__":
    main()
