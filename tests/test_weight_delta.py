import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from deltatune import files
from deltatune.errors import InputError, NotComposable, NotMergeable
from deltatune.weight_delta import WeightDelta

Build = Callable[..., PreTrainedModel]


class Counting(Mapping[str, Tensor]):
    """Makes its tensors when asked and knows how many of them live at once."""

    def __init__(self, count: int = 6) -> None:
        self.names = [f"weight.{i}" for i in range(count)]
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.full((4, 4), float(self.names.index(name)))
        gc.collect(1)  # the young ones: all objects of a long test session take seconds
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


# Values of the worked example: three entries of a base and two deltas of it.
BASE = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
TASK = torch.tensor([[0.4, 0.0], [-0.5, 0.0]])
LANGUAGE = torch.tensor([[0.0, 0.0], [0.2, 1.0]])


def test_deltas_add_up_to_the_worked_example() -> None:
    model = linear(BASE)
    (WeightDelta({"weight": TASK}) + WeightDelta({"weight": LANGUAGE})).add_to_(model)
    assert torch.allclose(model.weight, torch.tensor([[1.4, 2.0], [2.7, 5.0]]), atol=1e-6)


def test_delta_arithmetic_counts_missing_changes_as_zero() -> None:
    one = WeightDelta({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
    two = WeightDelta({"a": torch.tensor([10.0, 20.0]), "c": torch.tensor([5.0])})
    combined = (2 * one - two / 2) + -one
    assert list(combined) == ["a", "b", "c"]
    assert combined["a"].tolist() == [-4.0, -8.0]
    assert combined["b"].tolist() == [3.0]
    assert combined["c"].tolist() == [-2.5]
    assert sum([one, two, one])["a"].tolist() == [12.0, 24.0]
    assert one["a"].tolist() == [1.0, 2.0]


def test_delta_sum_of_a_thousand_stays_flat() -> None:
    one = WeightDelta({"a": torch.ones(1)})
    assert sum([one] * 1000)["a"].tolist() == [1000.0]


def test_delta_arithmetic_refuses_what_has_no_meaning() -> None:
    one = WeightDelta({"a": torch.ones(2)})
    with pytest.raises(NotComposable, match=r"\[2\] and \[3\]"):
        one + WeightDelta({"a": torch.ones(3)})
    with pytest.raises(InputError, match="factor nan"):
        one * float("nan")
    with pytest.raises(InputError, match="divisor 0"):
        one / 0
    with pytest.raises(TypeError):
        one + 1  # type: ignore[operator]


def test_delta_is_float32_and_equal_only_to_itself() -> None:
    delta = WeightDelta({"a": torch.ones(2, dtype=torch.bfloat16)})
    assert delta["a"].dtype == torch.float32
    assert delta in [delta]
    assert delta != WeightDelta(dict(delta))


def test_delta_makes_one_tensor_at_a_time(tmp_path: Path) -> None:
    counting = Counting()
    WeightDelta(counting).save(tmp_path / "delta.safetensors")
    assert counting.most == 1
    model = nn.ModuleDict(
        {"weight": nn.ParameterDict({str(i): torch.zeros(4, 4) for i in range(6)})}
    )
    WeightDelta(counting).add_to_(model)
    (0.5 * WeightDelta(counting)).remove_from_(model)
    assert counting.most == 1
    assert model["weight"]["3"][0].tolist() == [1.5] * 4
    for row in WeightDelta(counting).rows():
        assert row.norm == 4 * float(row.name[-1])
    assert counting.most == 1


def test_rows_describe_each_change() -> None:
    (row,) = WeightDelta({"a": torch.tensor([[3.0, 0.0], [0.0, -4.0]])}).rows()
    assert (row.name, row.shape, row.norm, row.largest, row.nonzero) == ("a", (2, 2), 5.0, 4.0, 2)


def test_file_gives_every_bit_back_dense_and_sparse(tmp_path: Path) -> None:
    sparse = torch.zeros(10, 10)
    sparse[3, 7], sparse[9, 9], sparse[0, 0] = 1e-30, float("inf"), -0.0
    changes = {
        "sparse": sparse,
        "dense": torch.randn(3, 5).T,
        "nothing": torch.zeros(4, 4),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.0),
    }
    path = tmp_path / "delta.safetensors"
    WeightDelta(changes, replaced={"head": torch.ones(2, dtype=torch.bfloat16)}).save(path)
    loaded = WeightDelta.load(tmp_path)
    assert_same(dict(loaded), changes)
    assert torch.signbit(loaded["sparse"][0, 0])
    assert loaded.shape("sparse") == (10, 10)
    assert_same(dict(loaded.replaced), {"head": torch.ones(2, dtype=torch.bfloat16)})
    stored = load_file(path)
    assert stored["sparse::indices"].tolist() == [0, 37, 99]
    assert stored["sparse::indices"].dtype == torch.int64
    assert "nothing" not in stored


@pytest.mark.parametrize(("nonzero", "is_sparse"), [(3, True), (4, False)])
def test_file_is_sparse_below_a_third_of_the_entries(
    tmp_path: Path, nonzero: int, is_sparse: bool
) -> None:
    change = torch.zeros(12)
    change[:nonzero] = 1.0
    WeightDelta({"a": change}).save(tmp_path / "delta.safetensors")
    assert ("a::indices" in load_file(tmp_path / "delta.safetensors")) == is_sparse


def test_file_can_replace_the_one_it_is_read_from(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    WeightDelta({"a": torch.ones(2)}).save(path)
    (3 * WeightDelta.load(path)).save(path)
    assert WeightDelta.load(path)["a"].tolist() == [3.0, 3.0]


def test_file_is_not_left_half_written_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "delta.safetensors"
    WeightDelta({"a": torch.ones(2)}).save(path)
    add = files.TensorFile.add

    def full_at_b(file: files.TensorFile, name: str, tensor: Tensor) -> None:
        if name == "b":
            raise OSError(28, "No space left on device")
        add(file, name, tensor)

    monkeypatch.setattr(files.TensorFile, "add", full_at_b)
    with pytest.raises(OSError, match="No space left"):
        WeightDelta({"a": torch.zeros(2), "b": torch.ones(2)}).save(path)
    assert WeightDelta.load(path)["a"].tolist() == [1.0, 1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["delta.safetensors"]


def test_load_names_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        WeightDelta.load(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        WeightDelta.load(tmp_path / "cut.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is no delta"):
        WeightDelta.load(tmp_path / "model.safetensors")


def test_added_delta_is_cast_once_and_taken_off_again() -> None:
    model = linear(torch.tensor([[256.0, 1.0]])).to(torch.bfloat16)
    delta = WeightDelta({"weight": torch.tensor([[1.0, 0.5]])})
    delta.add_to_(model)
    # 257 needs nine bits; bfloat16 has eight, and ties go to the even neighbour.
    assert model.weight.tolist() == [[256.0, 1.5]]
    delta.remove_from_(model)
    assert model.weight.tolist() == [[255.0, 1.0]]


def test_applied_delta_is_restored_bit_by_bit_even_after_an_error(tiny: Build) -> None:
    model = tiny("llama", "causal_lm", tie_word_embeddings=True).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    delta = WeightDelta({name: torch.randn(one.shape) for name, one in model.named_parameters()})

    def interrupted() -> None:
        with delta.applied_to(model) as changed:
            assert not torch.equal(changed.lm_head.weight, before["lm_head.weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_same(model.state_dict(), before)


def test_add_checks_every_name_before_the_first_weight_moves() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    right = {"0.weight": torch.ones(2, 2)}
    with pytest.raises(
        InputError, match=r"weight of the model '1\.wieght' is not known.*'1.weight'"
    ):
        WeightDelta({**right, "1.wieght": torch.ones(2, 2)}).add_to_(model)
    with pytest.raises(InputError, match=r"\[2, 2\] in the model but \[2, 3\] in the delta"):
        WeightDelta({**right, "1.weight": torch.ones(2, 3)}).add_to_(model)
    assert_same(model.state_dict(), before)
    model.register_buffer("0_weight", torch.ones(2, dtype=torch.int8))
    with pytest.raises(NotMergeable, match=r"stored as torch.int8"):
        WeightDelta({"0_weight": torch.ones(2)}).add_to_(model)
    with pytest.raises(NotMergeable, match="device meta"):
        WeightDelta(right).add_to_(model.to("meta"))
