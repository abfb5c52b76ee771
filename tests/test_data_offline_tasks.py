"""Every offline task: the same at every call, no leaks, exact sizes, and an honest score."""

from __future__ import annotations

import functools
import itertools
import json
import random
from typing import Any

import datasets
import pytest
import torch

from deltatune.data.columns import assign_roles
from deltatune.data.offline import known_tasks
from deltatune.data.offline.offline_task import SPLITS
from deltatune.data.tasks import TASKS
from deltatune.errors import InputError

SIZES = {"train": 24, "validation": 8, "test": 12}
NAMES = tuple(known_tasks.known())
SCORED = [name for name in NAMES if known_tasks.known()[name].score is not None]
CASES = [
    (name, difficulty)
    for name in NAMES
    for difficulty in range(1, len(known_tasks.known()[name].levels) + 1)
]


@functools.cache
def built(name: str, difficulty: int = 0, seed: int = 0) -> datasets.DatasetDict:
    """A small build, made once: some tasks read the standard library for seconds."""
    return known_tasks.known()[name].load(seed=seed, difficulty=difficulty, **SIZES)


def rows(dataset: datasets.DatasetDict) -> dict[str, list[dict[str, Any]]]:
    return {str(split): dataset[split].to_list() for split in dataset}


def inputs(name: str, difficulty: int, split: str) -> set[str]:
    """What the model sees of each row, without the answer, as text that can be compared."""
    columns = known_tasks.known()[name].columns
    seen = [column for role, column in columns.items() if role not in ("label", "completion")]
    return {
        json.dumps([row[c] for c in seen], default=str)
        for row in rows(built(name, difficulty))[split]
    }


def test_known_tasks_are_found_by_their_own_names() -> None:
    assert {"attributes-to-sentence", "boxes", "word-problems"} <= set(NAMES)
    assert list(NAMES) == sorted(NAMES)
    for name, task in known_tasks.known().items():
        assert task.name == name
        assert task.kind in TASKS
        assert set(task.sizes) == set(SPLITS)


@pytest.mark.parametrize("name", NAMES)
def test_offline_task_states_chance_below_ceiling_at_every_level(name: str) -> None:
    task = known_tasks.known()[name]
    assert 1 <= task.difficulty <= len(task.levels)
    for level in task.levels:
        assert level.what
        if task.metric == "loss":  # in nats, and the lower the better
            assert 0 <= level.ceiling < level.chance
        else:
            assert 0 <= level.chance < level.ceiling <= 1


@pytest.mark.parametrize(("name", "difficulty"), CASES)
def test_offline_task_has_exactly_the_asked_sizes(name: str, difficulty: int) -> None:
    dataset = built(name, difficulty)
    assert {split: len(dataset[split]) for split in dataset} == SIZES
    assert len({json.dumps(dataset[split].column_names) for split in dataset}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_offline_task_columns_have_the_roles_that_they_are_read_as(name: str) -> None:
    task = known_tasks.known()[name]
    features = built(name)["train"].features
    assert set(task.columns.values()) <= set(features)
    assert assign_roles(features, task.columns, task.kind) == (task.kind, dict(task.columns))


@pytest.mark.parametrize("name", NAMES)
def test_offline_task_is_the_same_at_every_call(name: str) -> None:
    first = rows(built(name))
    random.seed(99)
    torch.manual_seed(99)
    assert rows(known_tasks.known()[name].load(**SIZES)) == first


@pytest.mark.parametrize("name", NAMES)
def test_offline_task_differs_under_another_seed(name: str) -> None:
    first, other = rows(built(name)), rows(built(name, seed=1))
    for split in SPLITS:
        assert first[split] != other[split]


@pytest.mark.parametrize(("name", "difficulty"), CASES)
def test_offline_task_input_occurs_in_one_split(name: str, difficulty: int) -> None:
    splits = [inputs(name, difficulty, split) for split in SPLITS]
    assert all(splits)
    for one, other in itertools.combinations(splits, 2):
        assert not one & other


@pytest.mark.parametrize("name", NAMES)
def test_offline_task_difficulties_give_other_inputs(name: str) -> None:
    levels = range(1, len(known_tasks.known()[name].levels) + 1)
    seen = [inputs(name, difficulty, "test") for difficulty in levels]
    assert all(one != other for one, other in itertools.combinations(seen, 2))


@pytest.mark.parametrize("name", NAMES)
def test_offline_task_has_a_score_exactly_where_answers_are_generated(name: str) -> None:
    task = known_tasks.known()[name]
    is_generated = task.kind == "completion"
    assert (task.score is not None) == is_generated
    assert (task.answer_tokens > 0) == is_generated


@pytest.mark.parametrize(("name", "difficulty"), [case for case in CASES if case[0] in SCORED])
def test_score_is_one_for_the_rows_own_completion(name: str, difficulty: int) -> None:
    task = known_tasks.known()[name]
    assert task.score is not None
    column = task.columns["completion"]
    for row in itertools.chain.from_iterable(rows(built(name, difficulty)).values()):
        assert row[column]
        assert task.score(row[column], row) == 1
        assert task.score(f"{row[column]}\n", row) == 1  # what a model may write before it ends


@pytest.mark.parametrize(("name", "difficulty"), [case for case in CASES if case[0] in SCORED])
def test_score_is_lower_for_an_empty_answer_and_a_copy(name: str, difficulty: int) -> None:
    task = known_tasks.known()[name]
    assert task.score is not None
    for row in rows(built(name, difficulty))["test"]:
        for wrong in ("", " ", "\n\n", row[task.columns["prompt"]]):
            assert 0 <= task.score(wrong, row) < 1


@pytest.mark.parametrize("name", SCORED)
def test_score_is_lower_for_the_completion_of_other_rows(name: str) -> None:
    task = known_tasks.known()[name]
    assert task.score is not None
    column = task.columns["completion"]
    test = rows(built(name))["test"]
    scores = [
        task.score(other[column], row)
        for row, other in itertools.permutations(test, 2)
        if other[column].split() != row[column].split()
    ]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    # Other words may still be right (another way to the same number), but only now and then.
    assert sum(scores) / len(scores) < 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"^seed of {name} = -1 is not allowed: give a whole number from 0 to"),
        ({"difficulty": 9}, r"^difficulty of {name} = 9 is not allowed: .* from 1 to \d"),
        ({"difficulty": -1}, r"^difficulty of {name} = -1 is not allowed"),
        ({"train": 1}, r"^train of {name} = 1 is not allowed: give a whole number from 2 to"),
        ({"test": 10**9}, r"^test of {name} = 1000000000 is not allowed"),
        ({"validation": 2.5}, r"^validation of {name} = 2.5 is not allowed"),
        ({"dificulty": 2}, r"^option 'dificulty' is not known: choose one of 'difficulty'"),
    ],
)
def test_offline_task_refuses_an_option_out_of_range(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message.format(name=name)):
        known_tasks.known()[name].load(**options)


def test_named_reads_task_and_options() -> None:
    task, options = known_tasks.named("deltatune/boxes:difficulty=2,seed=1")
    assert task is known_tasks.known()["boxes"]
    assert options == {"difficulty": 2, "seed": 1}
    assert known_tasks.named("deltatune/boxes") == (task, {})


def test_load_builds_what_a_name_says() -> None:
    loaded = known_tasks.load("deltatune/boxes:difficulty=2,seed=1,train=24,validation=8,test=12")
    assert rows(loaded) == rows(built("boxes", 2, 1))


def test_named_gives_the_nearest_names_of_an_unknown_task() -> None:
    with pytest.raises(
        InputError,
        match=r"^offline task 'word-problem' is not known: choose one of 'word-problems'",
    ):
        known_tasks.named("deltatune/word-problem:seed=1")


@pytest.mark.parametrize("option", ["difficulty", "difficulty=hard", "seed=1.5", "=", "seed="])
def test_named_refuses_an_option_without_a_whole_number(option: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read: write name=number, for example"):
        known_tasks.named(f"deltatune/boxes:{option}")


def test_load_refuses_an_unknown_option_of_a_name() -> None:
    with pytest.raises(InputError, match=r"^option 'sead' is not known: choose one of 'seed'"):
        known_tasks.load("deltatune/boxes:sead=1")


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [("deltatune/boxes", True), ("deltatune/no-such", True), ("glue", False), (None, False)],
)
def test_is_offline_goes_by_the_owner(name: object, is_ours: bool) -> None:
    assert known_tasks.is_offline(name) == is_ours
