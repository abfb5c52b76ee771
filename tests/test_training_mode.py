"""The mode of every module is given back, whatever happens in between."""

import pytest
import torch
from torch import nn

from deltatune.calibration import left_alone
from deltatune.comparison.costs import count_flops
from deltatune.comparison.evaluation import evaluate
from deltatune.training_mode import evaluating, mode_kept


def mixed() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[0].eval()
    return model


def test_evaluating_gives_every_module_its_own_mode_back() -> None:
    model = mixed()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(1, 2)).requires_grad
    assert [module.training for module in model.modules()] == [True, False, True]


def test_mode_is_given_back_after_an_error() -> None:
    model = mixed()

    def fail() -> None:
        with mode_kept(model):
            model.eval()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, False, True]


def test_measuring_counting_and_scoring_give_modes_back(tiny) -> None:
    model = tiny("llama", "causal_lm").train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with left_alone(model):
        pass
    count_flops(model, {"input_ids": torch.ones(1, 2).long()}, lambda m, x: m(**x).logits.sum())
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}]
    evaluate(
        model,
        rows,
        lambda chosen: {key: torch.tensor([row[key] for row in chosen]) for key in chosen[0]},
        task="completion",
        split="test",
        batch_size=1,
    )
    assert [module.training for module in model.modules()] == before
