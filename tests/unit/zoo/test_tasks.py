"""The prompts of the zoo: nothing that is tested was ever shown to training."""

import random

import pytest

from ramole_core.zoo.curriculum import draw_word, long_example
from ramole_core.zoo.tasks import (
    TASKS,
    held_out_wordings,
    is_seen,
    records,
    sample_prompts,
    train_example,
    train_wordings,
)
from ramole_core.zoo.wordings import WORDINGS
from ramole_core.zoo.words import domain_names, domain_words, held_out_words


def quoted_word(prompt: str) -> str:
    return prompt.split("'")[1]


def test_there_are_eight_families_of_five_siblings() -> None:
    families = {task.family for task in TASKS}
    assert len(families) == 8
    assert all(sum(task.family == family for task in TASKS) == 5 for family in families)
    assert {task.name for task in TASKS} == set(WORDINGS)


def test_every_word_lies_in_one_domain_and_one_split() -> None:
    words = [
        word
        for domain in domain_names()
        for split in ("train", "dev", "test")
        for word in domain_words(domain, split)
    ]
    assert len(words) == len(set(words))
    assert all(3 <= len(word) <= 8 and word.isascii() and word.islower() for word in words)


def test_every_wording_is_used_by_one_task_and_one_split_and_quotes_the_word_once() -> None:
    wordings = [wording for nine in WORDINGS.values() for wording in nine]
    assert len(wordings) == len(set(wordings)) == 9 * len(TASKS)
    assert all(wording.count("'{}'") == 1 and wording.count("'") == 2 for wording in wordings)
    for task in TASKS:
        held_out = {*held_out_wordings(task, "dev"), *held_out_wordings(task, "test")}
        assert len(held_out) == 4
        assert not held_out & set(train_wordings(task))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_training_and_samples_use_training_words_in_training_wordings_only(task) -> None:
    rng = random.Random(0)
    prompts = [train_example(task, rng)[0] for _ in range(200)]
    for prompt in prompts + sample_prompts(task):
        word = quoted_word(prompt)
        assert word not in held_out_words()
        assert prompt.replace(f"'{word}'", "'{}'") in train_wordings(task)


def test_the_base_never_sees_a_held_out_word_or_a_wording_of_an_adapter() -> None:
    rng = random.Random(0)
    assert not {draw_word(rng) for _ in range(20_000)} & held_out_words()
    wordings = {wording for nine in WORDINGS.values() for wording in nine}
    for _ in range(2_000):
        prompt, _answer = long_example(rng)
        word = quoted_word(prompt)
        assert word not in held_out_words()
        assert prompt.replace(f"'{word}'", "'{}'") not in wordings


def test_test_and_dev_records_share_no_word_and_each_has_its_own_held_out_wordings() -> None:
    test, dev = records("test"), records("dev")
    assert not {quoted_word(r["prompt"]) for r in test} & {quoted_word(r["prompt"]) for r in dev}
    for split, found in (("test", test), ("dev", dev)):
        for task in TASKS:
            own = [record for record in found if record["adapter"] == task.name]
            used = {record["wording"] for record in own}
            assert len(own) >= 20
            assert used == {*train_wordings(task), *held_out_wordings(task, split)}
            assert sum(map(is_seen, own)) == len(own) / 2


def test_answers_are_what_the_functions_say() -> None:
    answers = {task.family: task.answer("tiger") for task in TASKS}
    assert answers == {
        "reverse": "regit",
        "upper": "TIGER",
        "vowelless": "tgr",
        "twice": "tiger tiger",
        "spell": "t-i-g-e-r",
        "count": "5",
        "swap": "riget",
        "tail": "r",
    }
