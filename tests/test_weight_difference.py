import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltatune.errors import InputError, NotComposable
from deltatune.weight_delta import WeightDelta

Build = Callable[..., PreTrainedModel]


def moved(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """The state of the model after a random step of every float tensor, ties kept."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        key = first.setdefault(tensor.data_ptr(), name)
        noise = 0.1 * torch.randn(tensor.shape, generator=generator)
        state[name] = state[key] if key != name else tensor + noise.to(tensor.dtype)
    return state


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_difference_added_to_the_base_gives_the_tuned_model(tiny: Build, name: str) -> None:
    base = tiny(name, "causal_lm")
    tuned = moved(base)
    WeightDelta.from_difference(base, tuned).add_to_(base)
    for key, tensor in base.state_dict().items():
        # One rounding of the difference and one of the sum.
        assert torch.allclose(tensor, tuned[key], rtol=2.0**-22, atol=1e-8), key


def test_difference_of_checkpoints_on_disk_equals_that_in_memory(
    tiny: Build, tmp_path: Path
) -> None:
    base, tuned = tiny("llama", "causal_lm"), tiny("llama", "causal_lm", seed=1)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="20KB")
    assert list((tmp_path / "tuned").glob("*.index.json"))
    on_disk = WeightDelta.from_difference(tmp_path / "base", tmp_path / "tuned")
    in_memory = WeightDelta.from_difference(base, tuned.state_dict())
    assert sorted(on_disk) == sorted(in_memory)
    for name in on_disk:
        assert torch.equal(on_disk[name], in_memory[name])


def test_difference_handles_tied_weights_once(tiny: Build, tmp_path: Path) -> None:
    base = tiny("llama", "causal_lm", tie_word_embeddings=True)
    tuned = moved(base)
    delta = WeightDelta.from_difference(base, tuned)
    assert "model.embed_tokens.weight" in delta
    assert "lm_head.weight" not in delta
    base.save_pretrained(tmp_path)  # files hold one of the two names
    assert sorted(WeightDelta.from_difference(tmp_path, tuned)) == sorted(delta)
    delta.add_to_(base)
    assert torch.allclose(base.lm_head.weight, tuned["lm_head.weight"], atol=1e-7)


def test_difference_refuses_weights_that_were_untied(tiny: Build) -> None:
    base = tiny("llama", "causal_lm", tie_word_embeddings=True)
    tuned = moved(base) | {"lm_head.weight": torch.zeros(64, 32)}
    with pytest.raises(InputError, match=r"one tied tensor in the base but differ"):
        WeightDelta.from_difference(base, tuned)


def test_difference_refuses_what_does_not_belong_together() -> None:
    base = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(InputError, match="the base holds b, which the tuned model lacks"):
        WeightDelta.from_difference(base, {"a": torch.ones(2)})
    with pytest.raises(InputError, match="the tuned model holds c, which the base lacks"):
        WeightDelta.from_difference(base, {**base, "c": torch.ones(2)})
    with pytest.raises(InputError, match=r"\[2\] in the base and \[3\] in the tuned model"):
        WeightDelta.from_difference(base, {**base, "b": torch.ones(3)})
    with pytest.raises(InputError, match=r"rounding would count as change"):
        WeightDelta.from_difference(base, {**base, "b": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(InputError, match=r"differ: only floats have a change"):
        WeightDelta.from_difference({"i": torch.tensor([1])}, {"i": torch.tensor([2])})
    with pytest.raises(InputError, match=r"tensor to replace 'haed' is not known.*'head'"):
        WeightDelta.from_difference({"head": torch.ones(1)}, {}, replaced=["haed"])


def test_difference_takes_a_wider_tuned_model_and_skips_equal_integers() -> None:
    base = {"a": torch.ones(1, dtype=torch.bfloat16), "positions": torch.arange(3)}
    tuned = {"a": torch.tensor([1.0009765625]), "positions": torch.arange(3)}
    delta = WeightDelta.from_difference(base, tuned)
    assert {name: change.tolist() for name, change in delta.items()} == {"a": [2.0**-10]}


def test_difference_keeps_a_new_head_apart(tmp_path: Path) -> None:
    base = {"body": torch.ones(2), "cls.weight": torch.ones(3)}
    tuned = {"body": torch.zeros(2), "score.weight": torch.full((2, 2), 7.0)}
    delta = WeightDelta.from_difference(base, tuned, replaced=["cls.*", "score.weight"])
    delta.save(tmp_path / "delta.safetensors")
    delta = WeightDelta.load(tmp_path)
    assert list(delta) == ["body"]
    assert list(delta.replaced) == ["score.weight"]
    model = nn.Module()
    model.body, model.score = nn.Parameter(torch.ones(2)), nn.Linear(2, 2, bias=False)
    with delta.applied_to(model):
        assert model.score.weight.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert list((0.5 * delta).replaced) == ["score.weight"]
    assert not (-delta).replaced
    assert not (WeightDelta({}) - delta).replaced
    assert list((WeightDelta({}) + delta).replaced) == ["score.weight"]
    with pytest.raises(NotComposable, match=r"both deltas replace score\.weight"):
        delta + delta
    with pytest.raises(InputError, match="both changed and replaced"):
        WeightDelta({"a": torch.ones(1)}, replaced={"a": torch.ones(1)})


def test_difference_refuses_pickles_and_ambiguous_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a pickle"):
        WeightDelta.from_difference(tmp_path / "pytorch_model.bin", {})
    with pytest.raises(InputError, match="holds no"):
        WeightDelta.from_difference(tmp_path, {})
    for name in ("a", "b"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="holds several"):
        WeightDelta.from_difference(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"map": {}}))
    with pytest.raises(InputError, match="is no index"):
        WeightDelta.from_difference(tmp_path, {})
