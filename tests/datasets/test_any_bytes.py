"""Whatever bytes are uploaded: rows, refused rows or a sentence; never a traceback, never past the limits."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from studio.datasets.peeking import peek
from studio.errors import UserError
from tests.datasets.hostile import TOKENS, VALID, answer, can_be_damaged_inside, check_sentence, damaged, damaged_inside

# The same examples each time: a failure is one of the commit that it appears in. `scripts/nightly` looks for new ones.
bounded = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
NAMES = ["a", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.md", "a.parquet", "a.arrow", "a.xlsx", "a.gz", "a.jsonl.zst", "a.zip"]
ENCODINGS = ["", "utf-8", "cp1252"]
pieces = st.sampled_from(TOKENS) | st.binary(max_size=12) | st.text(max_size=12).map(lambda text: text.encode(errors="replace"))
anything = st.binary(max_size=400) | st.lists(pieces, max_size=30).map(b"".join)
"""Bytes, and heaps of what parsers stumble over."""
names = st.text(max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=10)


@settings(bounded, max_examples=600)
@given(content=anything, name=st.sampled_from(NAMES), encoding=st.sampled_from(ENCODINGS))
def test_any_bytes_become_rows_or_a_sentence(tmp_path: Path, content: bytes, name: str, encoding: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(content)
    answer(path, name, encoding=encoding, work=tmp_path)


@pytest.mark.parametrize("kind", VALID)
def test_a_valid_file_gives_its_rows(tmp_path: Path, kind: str) -> None:
    name, content = VALID[kind]
    path = tmp_path / "upload"
    path.write_bytes(content)
    assert answer(path, name, encoding="cp1252" if kind == "Windows-1252" else "", work=tmp_path) != "refused"


@pytest.mark.parametrize("kind", VALID)
@settings(bounded, max_examples=150)
@given(seed=st.integers(0, 2**32), encoding=st.sampled_from(ENCODINGS), inside=st.booleans())
def test_a_damaged_file_gives_rows_or_a_sentence(tmp_path: Path, kind: str, seed: int, encoding: str, inside: bool) -> None:
    name, content = VALID[kind]
    path = tmp_path / "upload"
    hurt = damaged_inside if inside and can_be_damaged_inside(content) else damaged
    path.write_bytes(hurt(content, random.Random(seed)))
    answer(path, name, encoding=encoding, work=tmp_path)


@settings(bounded, max_examples=200)
@given(rows=st.lists(st.dictionaries(names, json_values, max_size=4), max_size=5))
def test_any_json_becomes_rows_or_a_sentence(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "upload"
    for name, text in (("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), ("a.json", json.dumps(rows, ensure_ascii=False))):
        path.write_bytes(text.encode(errors="replace"))
        answer(path, name)


@settings(bounded, max_examples=60)
@given(kind=st.sampled_from(sorted(VALID)), seed=st.integers(0, 2**32))
def test_a_look_at_a_damaged_file_ends_in_a_sentence_too(tmp_path: Path, kind: str, seed: int) -> None:
    name, content = VALID[kind]
    path = tmp_path / "upload"
    path.write_bytes(damaged(content, random.Random(seed)))
    try:
        peek(path, name, work=tmp_path)
    except UserError as refused:
        check_sentence(refused.message)
