"""The words of kept answers: what is one, and the index by which each database finds answers that have words with a given beginning.

An answer's words stand in its row, each once. PostgreSQL has an index of that column; SQLite has one in a table of its own (FTS5), which
triggers keep in step, whoever writes or deletes. A later migration that remakes the table of kept answers on SQLite drops these triggers:
it ends with `make`.
"""

import re
from collections.abc import Iterable
from typing import Any

from django.db.models import BooleanField, F, Func

from studio.workspaces.searching import LONGEST, MOST_WORDS

MOST, LETTERS = 10_000, 25
"""Words of one answer that are found, of an endless conversation those said last, and letters of a word that count: together below
the megabyte that PostgreSQL takes of one row, whatever the letters."""
PIECE = 500
"""Pages of SQLite's index that are written at once, for others write meanwhile."""

ANSWERS, PLACES, INDEX, FUNCTION = "serving_keptanswer", "serving_answerplace", "serving_answerwords", "serving_words"

POINTS = "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff"
"""Accents and vowels that stand with a letter, which are no letters for `\\w`: a word does not end there."""
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Thai, Khmer, Chinese, Japanese and the like: words without a space between them."""
RUN = re.compile(f"(?:[^\\W_]|[{POINTS}{UNSPACED}])+")
PART = re.compile(f"[{UNSPACED}]+|[^{UNSPACED}]+")
IS_UNSPACED = re.compile(f"[{UNSPACED}]")


def words_in(texts: Iterable[str]) -> str:
    """Every word of what was said, in small letters, each once and with a space between them."""
    found: dict[str, None] = {}
    for text in reversed(list(texts)):
        for part in parts_of(text):
            if IS_UNSPACED.match(part):
                found |= dict.fromkeys([*pairs_of(part), part[-1]])
            else:
                found[part[:LETTERS]] = None
        if len(found) > MOST:
            break
    return " ".join(list(found)[:MOST])


def beginnings(typed: str) -> list[str]:
    """How the words begin that somebody looks for."""
    parts = parts_of(typed[:LONGEST])[:MOST_WORDS]
    return [word for part in parts for word in (pairs_of(part) if IS_UNSPACED.match(part) else [part[:LETTERS]])]


def parts_of(text: str) -> list[str]:
    """Runs of letters and digits, cut where words begin to have no spaces between them."""
    runs: list[str] = RUN.findall(text.lower())
    return [part for run in runs for part in ([run] if run.isascii() else PART.findall(run))]


def pairs_of(part: str) -> list[str]:
    """Each letter with the one after it: so what stands within a text without spaces is found, too."""
    return [part[at : at + 2] for at in range(max(1, len(part) - 1))]


class Found(Func):
    """Whether an answer has a word with each of these beginnings."""

    output_field = BooleanField()

    def __init__(self, *words: str) -> None:
        super().__init__(F("pk"), F("words"))
        self.words = words

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:
        pk, params = compiler.compile(self.source_expressions[0])
        found = f"SELECT answer_id FROM {INDEX} CROSS JOIN {PLACES} p ON p.id = {INDEX}.rowid WHERE {INDEX} MATCH %s"
        return f"{pk} IN ({found})", (*params, " AND ".join(f'"{word}"*' for word in self.words))

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, tuple[Any, ...]]:
        words, params = compiler.compile(self.source_expressions[1])
        return f"{FUNCTION}({words}) @@ %s::tsquery", (*params, " & ".join(f"'{word}':*" for word in self.words))


PUT = f"INSERT INTO {INDEX} (rowid, words) SELECT id, NEW.words FROM {PLACES} WHERE answer_id = NEW.id;"
TAKE = f"INSERT INTO {INDEX} ({INDEX}, rowid, words) SELECT 'delete', id, OLD.words FROM {PLACES} WHERE answer_id = OLD.id;"
SQLITE = [
    # The rows have no number of their own that VACUUM leaves alone.
    f"CREATE TABLE {PLACES} (id INTEGER PRIMARY KEY, answer_id CHAR(32) NOT NULL UNIQUE)",
    f"INSERT INTO {PLACES} (answer_id) SELECT id FROM {ANSWERS} ORDER BY at",
    f"CREATE VIRTUAL TABLE {INDEX} USING fts5(words, content='', detail=none, tokenize='ascii')",
    f"INSERT INTO {INDEX} (rowid, words) SELECT place.id, words FROM {PLACES} place JOIN {ANSWERS} a ON a.id = answer_id ORDER BY place.id",
    f"CREATE TRIGGER answer_words_insert AFTER INSERT ON {ANSWERS} BEGIN INSERT INTO {PLACES} (answer_id) VALUES (NEW.id); {PUT} END",
    f"CREATE TRIGGER answer_words_delete AFTER DELETE ON {ANSWERS} BEGIN {TAKE} DELETE FROM {PLACES} WHERE answer_id = OLD.id; END",
    f"CREATE TRIGGER answer_words_update AFTER UPDATE OF words ON {ANSWERS} WHEN OLD.words IS NOT NEW.words BEGIN {TAKE} {PUT} END",
]
POSTGRESQL = [
    # Our words as they are, for its own parser has other opinions of what is one. It is dear, or it would be worked out for every row
    # rather than read from the index where many rows fit.
    f"""CREATE OR REPLACE FUNCTION {FUNCTION}(said text) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 10000
        AS $$ BEGIN RETURN array_to_tsvector(string_to_array(said, ' ')); END $$""",
    f"CREATE INDEX {INDEX} ON {ANSWERS} USING gin ({FUNCTION}(words))",
]
TRIGGERS = ("answer_words_insert", "answer_words_delete", "answer_words_update")


def make(connection: Any) -> None:
    """Also of the answers that are there already."""
    drop(connection)
    with connection.cursor() as cursor:
        for statement in POSTGRESQL if connection.vendor == "postgresql" else SQLITE:
            cursor.execute(statement)


def drop(connection: Any) -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"DROP INDEX IF EXISTS {INDEX}")
            cursor.execute(f"DROP FUNCTION IF EXISTS {FUNCTION}")
            return
        for name in TRIGGERS:
            cursor.execute(f"DROP TRIGGER IF EXISTS {name}")
        cursor.execute(f"DROP TABLE IF EXISTS {INDEX}")
        cursor.execute(f"DROP TABLE IF EXISTS {PLACES}")


def let_go(connection: Any) -> None:
    """Takes the words of deleted answers out of SQLite's index: until its parts are written anew they stand there, marked as gone.

    In pieces, each a transaction where there is none around it.
    """
    if connection.vendor != "sqlite":
        return
    pages = -PIECE  # all parts are to become one
    with connection.cursor() as cursor:
        while True:
            before = connection.connection.total_changes
            cursor.execute(f"INSERT INTO {INDEX} ({INDEX}, rank) VALUES ('merge', %s)", [pages])
            if connection.connection.total_changes - before < 2:  # nothing was left to do
                return
            pages = PIECE


def write_anew(connection: Any) -> None:
    """PostgreSQL's index without a word of what was deleted: it never takes one out of an index that stands."""
    with connection.cursor() as cursor:
        cursor.execute(f"REINDEX INDEX {INDEX}")
