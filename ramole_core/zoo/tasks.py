"""The tasks of the zoo: eight functions of a word, five sibling adapters each, and their prompts.

Guarantees: everything here is a function of its arguments (no torch, no global random state).
Training sees training words in training wordings only; development and test records use words that
training never sees, and in half of the records also a wording that training never sees.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict

from ramole_core.zoo.wordings import WORDINGS
from ramole_core.zoo.words import Split, domain_words

NUM_TRAIN_WORDINGS = 5
NUM_SAMPLES = 20
_HELD_OUT_WORDINGS = {"dev": slice(5, 7), "test": slice(7, 9)}

FUNCTIONS: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "upper": str.upper,
    "vowelless": lambda word: "".join(letter for letter in word if letter not in "aeiou"),
    "twice": lambda word: f"{word} {word}",
    "spell": "-".join,
    "count": lambda word: str(len(word)),
    "swap": lambda word: word[-1] + word[1:-1] + word[0],
    "tail": lambda word: word[-1],
}

# Siblings 0 to 2 of a family share a word domain, siblings 3 and 4 borrow that of the next family.
_DOMAINS = {
    "reverse": ("animals", "foods"),
    "upper": ("foods", "cities"),
    "vowelless": ("cities", "tools"),
    "twice": ("tools", "instruments"),
    "spell": ("instruments", "clothes"),
    "count": ("clothes", "jobs"),
    "swap": ("jobs", "plants"),
    "tail": ("plants", "animals"),
}
_DOMAIN_OF_SIBLING = (0, 0, 0, 1, 1)


@dataclass(frozen=True)
class Task:
    """What one adapter is for. Names are lower-case letters and a hyphen: `<family>-<scene>`."""

    name: str
    family: str
    domain: str

    def answer(self, word: str) -> str:
        """Return the right answer for `word`."""
        return FUNCTIONS[self.family](word)


class Record(TypedDict):
    """One line of `test.jsonl` and `dev.jsonl`."""

    prompt: str
    target: str
    adapter: str
    family: str
    wording: str


def _all_tasks() -> Iterator[Task]:
    for family, domains in _DOMAINS.items():
        siblings = [name for name in WORDINGS if name.startswith(f"{family}-")]
        for name, place in zip(siblings, _DOMAIN_OF_SIBLING, strict=True):
            yield Task(name, family, domains[place])


TASKS: tuple[Task, ...] = tuple(_all_tasks())


def train_wordings(task: Task) -> tuple[str, ...]:
    """Return the wordings that training and the samples may use."""
    return WORDINGS[task.name][:NUM_TRAIN_WORDINGS]


def held_out_wordings(task: Task, split: Split) -> tuple[str, ...]:
    """Return the two wordings of `task` that only `split` ("dev" or "test") uses."""
    return WORDINGS[task.name][_HELD_OUT_WORDINGS[split]]


def is_seen(record: Record) -> bool:
    """Return whether training and the samples use the wording of `record`."""
    return record["wording"] in WORDINGS[record["adapter"]][:NUM_TRAIN_WORDINGS]


def sample_prompts(task: Task, count: int = NUM_SAMPLES) -> list[str]:
    """Return `count` distinct prompts of the task: training words in training wordings."""
    words = domain_words(task.domain, "train")
    offset = 7 * TASKS.index(task)
    wordings = train_wordings(task)
    return [
        wordings[i % len(wordings)].format(words[(offset + i) % len(words)]) for i in range(count)
    ]


def train_example(task: Task, rng: random.Random) -> tuple[str, str]:
    """Draw one training example (prompt, answer) of `task`."""
    word = rng.choice(domain_words(task.domain, "train"))
    return rng.choice(train_wordings(task)).format(word), task.answer(word)


def records(split: Split, tasks: tuple[Task, ...] = TASKS) -> list[Record]:
    """Return the records of `split` (per task "dev": 20, "test": 24): each word of the task twice.

    One of the two is in a training wording, the other in a wording held out for the split.
    """
    return [record for task in tasks for record in _task_records(task, split)]


def _task_records(task: Task, split: Split) -> Iterator[Record]:
    shift = TASKS.index(task)
    for wordings in (train_wordings(task), held_out_wordings(task, split)):
        for i, word in enumerate(domain_words(task.domain, split)):
            wording = wordings[(i + shift) % len(wordings)]
            yield Record(
                prompt=wording.format(word),
                target=task.answer(word),
                adapter=task.name,
                family=task.family,
                wording=wording,
            )
