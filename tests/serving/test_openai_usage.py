"""What a request took: each prompt once, and also what was read and written for those who left."""

from studio.serving.openai import composing
from studio.serving.openai.answers import Usage

DONE = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 6}


def test_a_prompt_counts_once_whichever_of_its_answers_ends_first():
    usage = Usage(prompts=[9, 9], each=3)
    for number in (1, 0, 2, 3, 5, 4):
        usage.under_way[number] += 6
        usage.add(number, DONE)
    usage.settle()
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (20, 8, 36)


def test_who_leaves_has_used_the_prompts_that_were_begun_and_not_those_that_were_not():
    usage = Usage(prompts=[100, 200, 400])
    usage.under_way[0] += 5
    usage.under_way[1] += 7
    usage.add(0, DONE)
    usage.settle()
    assert (usage.prompt_tokens, usage.completion_tokens) == (10 + 200, 6 + 7)
    usage.settle()
    assert usage.total == 223


def test_who_leaves_after_one_of_several_answers_to_a_prompt_has_used_it_once():
    usage = Usage(prompts=[100], each=8)
    for number in range(4):
        usage.under_way[number] += 5
    usage.add(2, DONE)
    usage.settle()
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 6 + 3 * 5)
    left = Usage(prompts=[100], each=8)
    left.under_way.update([0, 1, 2, 3])
    left.settle()
    assert (left.prompt_tokens, left.completion_tokens) == (100, 4)


def test_what_is_expected_of_a_key_has_each_prompt_once_and_every_answer():
    bodies = [{"prompt": "x" * 40, "max_tokens": 3}] * 2 + [{"prompt": "y" * 400, "max_tokens": 5}] * 2
    assert composing.prompts(bodies, each=2) == [11, 101]
    assert composing.expected_tokens(bodies, each=2) == 11 + 101 + 3 + 3 + 5 + 5
    assert composing.expected_tokens([{"input": ["x" * 40, "y" * 40]}], each=1) == 21
