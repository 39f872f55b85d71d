"""Kept answers are found by how their words begin, in any script, and no word outlives its answer in the index."""

import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from studio.serving import keeping
from studio.serving.answers import Wanted
from studio.serving.models import Keeping, KeptAnswer
from studio.serving.words import INDEX, LETTERS, MOST, beginnings, words_in
from tests.fixtures import World


@pytest.fixture
def keep(acme: World) -> Any:
    Keeping.objects.create(project=acme.project, days=30)

    def kept(*said: str, at: Any = None) -> KeptAnswer:
        messages = [{"role": "user", "content": text} for text in said]
        told: dict[str, Any] = {"deployment": acme.deployment, "release": acme.release, "key": None, "at": at or timezone.now()}
        made = keeping.keep(pk=uuid.uuid4(), messages=messages, answer={"role": "assistant", "content": ""}, **told)
        assert made is not None
        return made

    return kept


def found(acme: World, typed: str) -> set[Any]:
    return set(Wanted(typed=typed).of(KeptAnswer.objects.all(), acme.owner).values_list("pk", flat=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Is it here? It IS.", {"is", "it", "here"}),
        ("order_id=AB-1234, ok", {"order", "id", "ab", "1234", "ok"}),
        ("Straße für ΑΘΗΝΑ", {"straße", "für", "αθηνα"}),
        ("हिन्दी में", {"हिन्दी", "में"}),
        ("iPhone手机退货", {"iphone", "手机", "机退", "退货", "货"}),
        ("🙂 %", set()),
    ],
)
def test_a_word_is_a_run_of_letters_and_where_there_are_no_spaces_each_pair(text: str, words: set[str]) -> None:
    assert set(words_in([text]).split()) == words


def test_of_an_endless_conversation_what_was_said_last_is_found() -> None:
    long = " ".join(f"{chr(0x20000)}w{number}" for number in range(3 * MOST))
    words = words_in([long, "𐍈" * 1000, "the end"])
    assert words.startswith("the end ")
    assert len(words.split()) == MOST
    assert max(map(len, words.split())) == LETTERS
    assert MOST * LETTERS * 4 < 1 << 20


def test_answers_are_found_by_how_all_the_words_begin(acme: World, keep: Any) -> None:
    parcel, chinese = keep("Where is my parcel?", "Parcel AB-1234."), keep("我想退货。", "हिन्दी ครับขอบคุณ")
    long = keep("Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz")
    for typed, expected in (
        ("parc", {parcel}),
        ("PARCEL where", {parcel}),
        ("ab-12", {parcel}),
        ("arcel", set()),
        ("parcel nothing", set()),
        ("退货", {chinese}),
        ("货", {chinese}),
        ("货退", set()),
        ("ขอบคุณ", {chinese}),
        ("हिन्दी", {chinese}),
        ("rindfleischetikettierungsüberwachungsaufgaben", {long}),
        ("'; drop", set()),
        ('"parcel" OR where NOT', set()),
        ("par* :*", {parcel}),
        ("?!", set()),
        ("  ", {parcel, chinese, long}),
        ("\x00", set()),
    ):
        assert found(acme, typed) == {kept.pk for kept in expected}, typed


def test_what_is_typed_is_cut_like_every_search() -> None:
    assert beginnings("a b c d e f g h") == ["a", "b", "c", "d", "e", "f"]
    assert beginnings("x" * 1000) == ["x" * LETTERS]


def test_the_index_follows_whoever_writes_changes_or_deletes(acme: World, keep: Any) -> None:
    first, second = keep("alpha"), keep("beta")
    first.words = "gamma"
    first.save()
    assert (found(acme, "alpha"), found(acme, "gamma")) == (set(), {first.pk})
    first.thumb = 1
    first.save()
    assert found(acme, "gamma") == {first.pk}
    columns = {field.attname: getattr(second, field.attname) for field in KeptAnswer._meta.concrete_fields if field.attname != "id"}
    (third,) = KeptAnswer.objects.bulk_create([KeptAnswer(**columns)])
    assert found(acme, "beta") == {second.pk, third.pk}
    second.delete()
    KeptAnswer.objects.filter(pk=first.pk).delete()
    assert (found(acme, "beta"), found(acme, "gamma")) == ({third.pk}, set())
    fourth = keep("delta")
    assert (found(acme, "delta"), found(acme, "beta")) == ({fourth.pk}, {third.pk})


@pytest.mark.parametrize("by", ["time", "hand"])
def test_what_has_gone_leaves_no_word_in_the_index(acme: World, keep: Any, by: str) -> None:
    goes = keep("zanzibar", at=timezone.now() - timedelta(days=31 if by == "time" else 1))
    stays = keep("zeppelin")
    if by == "hand":
        keeping.delete(acme.owner, goes)
    keeping.expire()
    assert (found(acme, "zanzibar"), found(acme, "zeppelin")) == (set(), {stays.pk})
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT block FROM {INDEX}_data")
            index = b"".join(bytes(block) for (block,) in cursor.fetchall())
        assert re.search(b"eppelin", index)
        assert not re.search(b"anzibar", index)
