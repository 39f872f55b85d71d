"""Bad files get a clear sentence, and what is good in them is not lost."""

import pytest

from studio.datasets.peeking import peek
from studio.errors import UserError
from tests.datasets.corpus import FILES, GOOD, LINES


@pytest.mark.parametrize(("name", "content", "sentence"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(write, import_file, name, content, sentence) -> None:
    with pytest.raises(UserError) as refused:
        import_file(write(name, content))
    assert refused.value.message == sentence


@pytest.mark.parametrize(("name", "content", "sentence"), [case[1:] for case in LINES], ids=[case[0] for case in LINES])
def test_a_bad_line_is_refused_and_the_next_one_is_taken(write, import_file, refusals, name, content, sentence) -> None:
    path = write(name, content + GOOD if name.endswith(".jsonl") and b"role" not in content else content)
    result = import_file(path)
    (refusal,) = refusals()
    assert refusal["reason"] == sentence
    assert (result["rows"], result["refused"]) == (1, 1)
    assert len(refusal["excerpt"]) < 300


@pytest.mark.parametrize(("name", "content"), [case[1:3] for case in FILES + LINES], ids=[case[0] for case in FILES + LINES])
def test_a_first_look_never_fails_otherwise_than_with_a_sentence(write, name, content) -> None:
    try:
        peek(write(name, content), name)
    except UserError as refused:
        assert refused.message.endswith((".", "?"))
