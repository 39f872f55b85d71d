"""A model of the studio answers one question after another, for whoever has no page: rows are written by it."""

import json
import shutil
from pathlib import Path

import pytest

from studio.datasets import synthesizing
from studio.errors import UserError
from studio.ml.chatting import Chatter
from studio.storage import commit_folder

QUESTION = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    commit_folder(shutil.copytree(tiny_model, tmp_path / "base.part"), tmp_path / "base")
    return tmp_path / "base"


def test_it_answers_and_says_the_same_for_the_same_seed(base, tmp_path):
    chatter = Chatter(base=base, adapter=None, cache=tmp_path / "cache", context=256)
    settings = {"max_tokens": 12, "temperature": 1.0}
    first, again, other = (chatter.answer(QUESTION, seed=seed, **settings) for seed in (1, 1, 2))
    assert first == again and first != other


def test_a_conversation_that_is_too_long_is_refused_with_a_sentence(base, tmp_path):
    chatter = Chatter(base=base, adapter=None, cache=tmp_path / "cache", context=256)
    with pytest.raises(UserError, match="tokens, and 256 fit"):
        chatter.answer([{"role": "user", "content": "parcel " * 1000}], max_tokens=8, temperature=0.0, seed=1)


def test_rows_are_written_by_a_model_of_the_studio(base, tmp_path, listening_job):
    seeds = [{"text": f"A text about parcel {number}, which is late."} for number in range(4)]
    told = {"shape": "text", "seeds": seeds, "target": 2, "temperature": 1.5, "writer_name": "Tiny", "base": str(base)}
    facts = synthesizing.run(told | {"cache": str(tmp_path / "cache")}, listening_job)
    rows = [json.loads(line) for line in (listening_job.out / "rows.jsonl").read_text().splitlines()]
    assert facts["made"] == len(rows) == 2
    assert all(row["text"].strip() for row in rows) and rows[0] != rows[1]
