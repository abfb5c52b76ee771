"""Random order: everything once, the same from the same seed, and torch's own."""

from __future__ import annotations

import torch

from deltatune.seeds import generator_for, shuffled

LETTERS = tuple("abcdefghij")


def test_shuffled_gives_every_item_as_often_as_it_was_given() -> None:
    given = ["b", "a", "b", "c"]
    assert sorted(shuffled(given, generator_for(0, "x"))) == ["a", "b", "b", "c"]
    assert given == ["b", "a", "b", "c"]
    assert shuffled((), generator_for(0, "x")) == []


def test_shuffled_repeats_with_the_seed_and_not_with_one_generator() -> None:
    generator = generator_for(0, "x")
    first = shuffled(LETTERS, generator)
    assert first == shuffled(LETTERS, generator_for(0, "x"))
    # Equal by accident in one of 10! = 3.6 million cases.
    assert first != shuffled(LETTERS, generator)
    assert first != shuffled(LETTERS, generator_for(1, "x"))


def test_shuffled_takes_the_order_that_torch_draws() -> None:
    # Every offline task depends on it: another way to shuffle would make other examples.
    order = torch.randperm(10, generator=generator_for(0, "x")).tolist()
    assert shuffled(range(10), generator_for(0, "x")) == order
    assert shuffled(LETTERS, generator_for(0, "x")) == [LETTERS[i] for i in order]
