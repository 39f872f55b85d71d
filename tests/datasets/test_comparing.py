"""Rows that repeat each other nearly, contradict each other or stand on both sides of the split are found, and nothing else is."""

import random

import numpy as np
import pytest

from studio.datasets import comparing, looking, rows, splitting
from studio.datasets.flags import Flag
from studio.datasets.rows import ALONE
from studio.training.job import Stopped

THINGS = [
    f"{one}{two}"
    for one in ("ba", "ko", "lu", "me", "ri", "to", "va", "zu")
    for two in ("dan", "fel", "gor", "kim", "nop", "sta", "tur", "wex")
]


def sentence(chance, words=40):
    return " ".join(chance.choice(THINGS) for _ in range(words))


def chat(question, answer, system=""):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *said] if system else said}


def near(text, chance, changed=1):
    """The text with a few other words in it."""
    words = text.split()
    for place in chance.sample(range(len(words)), changed):
        words[place] = "elsewhere"
    return " ".join(words)


def column(job, name):
    return rows.column(job.out / "rows.parquet", name).tolist()


def flagged(job, flag):
    return np.flatnonzero(rows.column(job.out / "rows.parquet", "flags") & np.uint32(flag)).tolist()


def test_rows_that_differ_in_a_few_words_form_a_group(write, import_file, job) -> None:
    chance = random.Random(1)
    texts = [sentence(chance) for _ in range(50)]
    texts += [near(texts[3], chance), texts[3].upper() + "!", near(texts[10], chance)]
    result = import_file(write("a.jsonl", [{"text": text} for text in texts]))
    assert result["findings"] == {"near_duplicate": 3}
    assert flagged(job, Flag.NEAR_DUPLICATE) == [50, 51, 52]
    groups = column(job, "group")
    assert [groups[index] for index in (3, 50, 51, 10, 52)] == [3, 3, 3, 10, 10]
    assert set(groups) == {3, 10, ALONE}


def test_exact_repetitions_belong_to_the_group_and_are_no_near_duplicates(write, import_file, job) -> None:
    chance = random.Random(2)
    one = sentence(chance)
    texts = [sentence(chance) for _ in range(20)] + [one, one, near(one, chance), one]
    assert import_file(write("a.jsonl", [{"text": text} for text in texts]))["findings"] == {"duplicate": 2, "near_duplicate": 1}
    assert column(job, "group")[20:] == [20] * 4
    assert (flagged(job, Flag.DUPLICATE), flagged(job, Flag.NEAR_DUPLICATE)) == ([21, 23], [22])


def test_nothing_is_missed_or_made_up_among_many_rows(tmp_path) -> None:
    chance = random.Random(3)
    texts = [sentence(chance, chance.randrange(20, 80)) for _ in range(3000)]
    planted = [near(texts[index], chance) for index in range(500)]
    with comparing.Sketches(tmp_path / "signatures", comparing.common_pairs(texts)) as sketches:
        for text in texts + planted:
            sketches.add(text)
    roots = comparing.clusters(tmp_path / "signatures", sketches.count)
    pairs = [set(comparing.word_pairs([text])[0].tolist()) for text in texts[:500] + planted]
    alike = [len(pairs[n] & pairs[n + 500]) / len(pairs[n] | pairs[n + 500]) for n in range(500)]
    clear = [n for n in range(500) if alike[n] > 0.87]
    found = {n for n in range(500) if roots[3000 + n] == n}
    assert len(clear) > 300
    assert len(found & set(clear)) >= 0.98 * len(clear)
    assert all(alike[n] > 0.65 for n in found)
    assert (roots[:3000] == np.arange(3000)).all()


def test_short_questions_of_one_kind_are_no_near_duplicates(write, import_file) -> None:
    lines = [chat(f"What is {number} + 1?", str(number + 1)) for number in range(300)]
    assert import_file(write("a.jsonl", lines))["findings"] == {}


def test_what_a_template_says_in_every_row_does_not_count(write, import_file) -> None:
    """Else rows of a classifier, whose instruction is longer than what it is about, would all be one group and never be split."""
    chance = random.Random(4)
    told, asked = sentence(chance, 60), sentence(chance, 60)
    lines = [chat(f"{asked} Review: {sentence(chance, 12)}", "good" if number % 2 else "bad", system=told) for number in range(200)]
    result = import_file(write("a.jsonl", lines))
    assert result["findings"] == {}
    assert result["split"] == {"train": 190, "validation": 10}


@pytest.mark.parametrize(
    "language",
    [
        "日本語の長い文章です。今日は天気がよくて、駅まで歩きました。{}それから友だちと昼ごはんを食べ、夕方に家へ帰りました。本を読みました。"
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(write, import_file, language) -> None:
    lines = [
        {"text": language.format("花を買い。")},
        {"text": language.format("花を買う。")},
        {"text": "まったく別の話で、何の関係もない短い文です。"},
    ]
    assert import_file(write("a.jsonl", lines))["findings"] == {"near_duplicate": 1}


def test_texts_without_words_resemble_nothing(write, import_file) -> None:
    assert (
        import_file(write("a.jsonl", [{"text": sign} for sign in ("+", "→", "😀😀", "==", "§", "( )")]))["findings"].get("near_duplicate")
        is None
    )


def test_different_answers_to_one_question_are_a_conflict(write, import_file, job) -> None:
    chance = random.Random(5)
    lines = [chat(sentence(chance, 12), sentence(chance)) for _ in range(30)]
    lines[4] = chat("When do you open?", sentence(chance))
    lines[9] = chat("when do you  open", sentence(chance))
    lines[12] = chat("When do you close?", "At six.")
    lines[13] = chat("When do you close?", "at  six")
    lines[20] = chat("When do you open?", sentence(chance), system="You speak for another shop.")
    import_file(write("a.jsonl", lines))
    assert flagged(job, Flag.CONFLICT) == [4, 9]


def test_sums_that_differ_in_their_sign_are_no_conflict(write, import_file) -> None:
    lines = [chat("What is 2 + 3?", "5"), chat("What is 2 * 3?", "6"), chat("What is 2 - 3?", "-1")]
    assert import_file(write("a.jsonl", lines))["findings"] == {}


def test_a_conflict_of_preferences_is_told_by_the_better_answer(write, import_file, job) -> None:
    lines = [{"prompt": "Where?", "chosen": "Here.", "rejected": "No."}, {"prompt": "Where?", "chosen": "There.", "rejected": "No."}]
    import_file(write("a.jsonl", lines))
    assert flagged(job, Flag.CONFLICT) == [0, 1]


def test_near_duplicates_are_never_parted_and_so_do_not_leak(write, import_file, job) -> None:
    chance = random.Random(6)
    texts = [sentence(chance) for _ in range(100)]
    texts += [near(text, chance) for text in texts]
    result = import_file(write("a.jsonl", [{"text": text} for text in texts]), validation_percent=30)
    groups, splits = column(job, "group"), column(job, "split")
    assert len({(group, split) for group, split in zip(groups, splits, strict=True)}) == len(set(groups))
    assert result["split"]["validation"] == 60
    assert "leakage" not in result["findings"]


def test_rows_that_leak_are_found_where_they_may_be_parted(write, import_file, job) -> None:
    chance = random.Random(7)
    texts = [sentence(chance) for _ in range(100)]
    texts += [near(text, chance) for text in texts]
    result = import_file(write("a.jsonl", [{"text": text} for text in texts]), validation_percent=30, rules={"near_duplicates": False})
    splits = column(job, "split")
    leaked = flagged(job, Flag.LEAKAGE)
    assert leaked == [n for n in range(200) if splits[n] == "validation" and splits[(n + 100) % 200] == "train"]
    assert f"{len(leaked)} eval rows are also in training: the validation loss looks better than it is." in result["warnings"]


def test_a_question_on_both_sides_is_a_leak() -> None:
    held_back = np.array([False, True, True, False])
    hashes = np.arange(4, dtype=np.uint64)
    questions = np.array([7, 7, 0, 0], dtype=np.uint64)
    groups = np.full(4, ALONE)
    assert comparing.leaked(held_back, hashes=hashes, questions=questions, groups=groups).tolist() == [False, True, False, False]


def test_a_thousand_copies_of_one_row_are_one_group(write, import_file, job) -> None:
    chance = random.Random(8)
    one, other = sentence(chance), sentence(chance)
    import_file(write("a.jsonl", [{"text": one}] * 1000 + [{"text": other}] * 500 + [{"text": near(one, chance)}]))
    groups = column(job, "group")
    assert (set(groups[:1000]), set(groups[1000:1500]), groups[1500]) == ({0}, {1000}, 0)


def test_a_stop_is_heeded_while_rows_are_compared(write, import_file, job, tmp_path) -> None:
    draft = job.work / "draft.parquet"
    with rows.RowWriter(draft) as writer:
        for number in range(3000):
            writer.add(line=number, row=f'{{"text":"row {number}"}}')
    job.stop_asked = True
    with pytest.raises(Stopped):
        looking.look(job, draft, tmp_path, np.arange(3000, dtype=np.uint64))


def test_words_are_the_same_wherever_they_stand() -> None:
    pairs, bounds = comparing.word_pairs(["Hello, World!", "", "so: hello world", "HELLO—WORLD"])
    assert bounds.tolist() == [0, 2, 2, 5, 7]
    assert pairs[0:2].tolist() == pairs[3:5].tolist() == pairs[5:7].tolist()


def test_groups_name_their_first_row() -> None:
    hashes = np.array([5, 6, 5, 7, 8], dtype=np.uint64)
    firsts = comparing.Firsts.among(hashes)
    assert firsts.different.tolist() == (~splitting.duplicates(hashes)).tolist()
    assert firsts.groups(np.array([0, 1, 1, 3])).tolist() == [0, 1, 0, 1, ALONE]
