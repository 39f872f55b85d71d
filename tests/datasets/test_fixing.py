"""What was found in a row can be taken out of it, and the rest of the row stays as it was."""

import copy

import pytest

from studio.datasets import fixing
from studio.datasets.flags import FINDINGS, Flag

KEY = "sk-" + "a1B2" * 8


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize(
    ("flag", "text", "fixed"),
    [
        (Flag.SECRET, f"Use {KEY}, then go on.", "Use [secret], then go on."),
        (Flag.SECRET, f"{KEY} and AKIA{'A1' * 8}", "[secret] and [secret]"),
        (
            Flag.SECRET,
            "Key:\n-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n-----END PRIVATE KEY-----\nDone.",
            "Key:\n[secret]\nDone.",
        ),
        (Flag.PERSONAL, "Write to ana@example.org or call +49 30 901820.", "Write to [e-mail] or call [phone]."),
        (Flag.PERSONAL, "From DE89 3704 0044 0532 0130 00 or 4111 1111 1111 1111.", "From [account] or [card]."),
        (Flag.CONTROL, "<|im_start|>user\nHello</s>", "user\nHello"),
        (Flag.HIDDEN, "a\u200bb\u202ec \x1b[31mred\x1b[0m", "abc red"),
        (Flag.HIDDEN, "Family 👨\u200d👩\u200d👧", "Family 👨\u200d👩\u200d👧"),
    ],
)
def test_what_was_found_is_masked_or_stripped(flag, text, fixed) -> None:
    row = chat(text, f"As you said: {text}")
    before = copy.deepcopy(row)
    assert fixing.fix(row, flag) == chat(fixed, f"As you said: {fixed}")
    assert row == before
    assert fixing.fix({"text": text}, flag) == {"text": fixed}


def test_all_answers_of_a_preference_are_fixed() -> None:
    row = {
        "prompt": [{"role": "user", "content": "Who?"}],
        "chosen": [{"role": "assistant", "content": "ana@example.org", "weight": 0.5}],
        "rejected": [{"role": "assistant", "content": "bob@example.org"}],
    }
    fixed = fixing.fix(row, Flag.PERSONAL)
    assert fixed["chosen"] == [{"role": "assistant", "content": "[e-mail]", "weight": 0.5}]
    assert fixed["rejected"] == [{"role": "assistant", "content": "[e-mail]"}]


def test_what_a_tool_is_called_with_is_fixed_and_the_tools_stay() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "send", "arguments": {"to": ["ana@example.org"], "times": 2}}}
    row = {
        "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "tools": [{"type": "function", "function": {"name": "send"}}],
    }
    fixed = fixing.fix(row, Flag.PERSONAL)
    assert fixed["messages"][0]["tool_calls"][0]["function"]["arguments"] == {"to": ["[e-mail]"], "times": 2}
    assert fixed["tools"] == row["tools"]


def test_placeholders_are_filled_with_what_a_person_typed() -> None:
    row = chat("Hello", "I am {{ name }} of {{Company Name}}, {{other}}. [Your Name]")
    assert fixing.names(row) == ["name", "Company Name", "other", "Your Name"]
    filled = fixing.fill(row, {"Name": "Ada", "company name": "Acme {{name}} \\1", "Your Name": "Bo"})
    assert filled == chat("Hello", "I am Ada of Acme {{name}} \\1, {{other}}. Bo")
    assert fixing.fix(row, Flag.PLACEHOLDER) == row


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.name)
def test_only_what_can_be_fixed_is_offered_to_be_fixed(finding) -> None:
    assert ("fix" in finding.remedies) == (finding.flag in fixing.FIXES or finding.flag is Flag.PLACEHOLDER)
