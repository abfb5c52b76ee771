"""The order of the examples: random, repeatable, and thrifty with padding."""

import torch

from deltatune.bridges.data_order import DataOrder
from deltatune.seeds import generator_for

LENGTHS = torch.randint(5, 100, (1003,), generator=generator_for(0, "lengths")).tolist()


def _order(epoch=0, seed=0, groups_by_length=True):
    order = DataOrder(LENGTHS, batch_size=8, seed=seed, groups_by_length=groups_by_length)
    order.set_epoch(epoch)
    return list(order)


def _padded(order):
    batches = [order[i : i + 8] for i in range(0, len(order), 8)]
    return sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in batches)


def test_order_holds_each_example_once():
    for grouped in (True, False):
        assert sorted(_order(groups_by_length=grouped)) == list(range(1003))


def test_order_follows_seed_and_epoch_and_nothing_else():
    first = _order()
    torch.rand(3)
    assert _order() == first
    assert len({tuple(order) for order in (first, _order(epoch=1), _order(seed=1))}) == 3


def test_grouping_leaves_little_padding():
    tokens = sum(LENGTHS)
    assert _padded(_order(groups_by_length=False)) > 1.5 * tokens
    assert _padded(_order()) < 1.05 * tokens
