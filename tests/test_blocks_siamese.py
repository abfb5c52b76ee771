"""The siamese block: the card's checks 1 to 9, 11 and 13, and generation with two caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import deltatune
from deltatune import recipe as recipes
from deltatune.blocks.gate_report import gate_report
from deltatune.blocks.query import documents_of, query_of
from deltatune.blocks.siamese import Siamese, SiameseBlock
from deltatune.bridges.siamese_cache import SiameseCache
from deltatune.errors import InputError, NotComposable, NotMergeable
from deltatune.recipe import Recipe, hosted, named
from deltatune.run import finetune
from tests.adapters import shaken, token_ids
from tests.models import tiny
from tests.runs import losses_of

HOSTS = {
    "lora": {},
    "dora": {},
    "ia3": {},
    "adalora": {"first_rank": 4, "target_rank": 2},
    "loca": {"coefficients": 6},
    "full": {},
}


def siamese(
    host: str = "lora", name: str = "llama", base: Any = None, **parameters: Any
) -> tuple[Recipe, Any]:
    """A tiny model with a host and the block, in evaluation mode; the gate is as it was drawn."""
    recipe = named("imsm", {"host": {"name": host, **HOSTS[host]}, **parameters})
    base = tiny(name, "causal_lm") if base is None else base
    return recipe, recipe.prepare(base, task_type="CAUSAL_LM").eval()


def block_of(model: Any) -> SiameseBlock:
    return model.block  # type: ignore[no-any-return]


def logits(model: Any, ids: Tensor | None = None, **given: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids() if ids is None else ids, **given).logits  # type: ignore[no-any-return]


def forced(model: Any, shift: float) -> Any:
    """Force the gate: 0 leaves the drawn one, infinities one memory."""
    block = block_of(model)
    object.__setattr__(block.options, "shift", shift)
    return model


@pytest.mark.parametrize(
    ("d_model", "rank", "number"),
    [(4096, 4, 81_920), (4096, 8, 163_840), (4096, 16, 327_680), (2560, 8, 102_400)],
)
def test_gate_has_five_numbers_for_each_width_and_rank(
    d_model: int, rank: int, number: int
) -> None:
    block = SiameseBlock(Siamese(rank=rank), d_model, torch.Generator())
    assert sum(parameter.numel() for parameter in block.parameters()) == number


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_at_the_start_both_memories_are_the_base(host: str) -> None:
    _, model = siamese(host)
    wanted = logits(tiny("llama", "causal_lm"))
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_forced_gate_gives_one_memory(host: str, name: str) -> None:
    if host == "ia3" and name == "gpt2":
        pytest.skip("tiny gpt2 fuses the key, of which (IA)3 would take a part")
    if host in ("dora", "adalora") and name == "gpt2":
        pytest.skip("peft changes no part of a fused weight")
    _, model = siamese(host, name)
    shaken(model)
    frozen = logits(tiny(name, "causal_lm"))
    with block_of(model).off():
        tuned = logits(model)
    assert float((tuned - frozen).abs().max()) > 1e-3
    assert torch.equal(logits(forced(model, 1e4)), frozen)
    assert torch.equal(logits(forced(model, -1e4)), tuned)


def test_without_a_gate_the_logits_are_the_mean() -> None:
    _, model = siamese()
    shaken(model)
    nn.init.zeros_(block_of(model).down)
    _, plain = siamese(mode="mean")
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if "block" not in n})
    with block_of(model).off():
        tuned = logits(model)
    mean = (tuned + logits(tiny("llama", "causal_lm"))) / 2
    torch.testing.assert_close(logits(model), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(plain), mean, rtol=0, atol=1e-6)
    assert not list(block_of(plain).parameters())


def worked() -> tuple[SiameseBlock, Tensor, Tensor]:
    block = SiameseBlock(Siamese(rank=1), 2, torch.Generator()).eval()
    with torch.no_grad():
        block.down.copy_(torch.tensor([[0.1, 0.2, 0.3, 0.4, -0.1, -0.2, -0.3, -0.4]]))
        block.up.copy_(torch.tensor([[1.0], [-2.0]]))
    frozen = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    tuned = torch.tensor([[[1.0, 1.0], [0.0, 1.0], [3.0, -1.0]]])
    return block, frozen, tuned


def averaged(frozen: Tensor, tuned: Tensor, query: int) -> Tensor:
    both = torch.stack([frozen, tuned], dim=2)
    is_query, document = query_of({}, both.shape[:2], prompt=query)
    return documents_of(both, is_query, document)[document]


def test_worked_example() -> None:
    block, frozen, tuned = worked()
    averages = averaged(frozen, tuned, 2)
    assert averages[0, 0].tolist() == [[0.5, 1.0], [0.5, 1.0]]
    gate = block.gate(frozen, tuned, averages)
    wanted = torch.tensor([[0.574443, 0.354344]] * 2)
    torch.testing.assert_close(gate[0, 1:], wanted, rtol=0, atol=1e-6)
    mixed = block.mixed(frozen, tuned, averages)
    wanted = torch.tensor([[0.0, 1.354344], [1.851115, -0.291313]])
    torch.testing.assert_close(mixed[0, 1:], wanted, rtol=0, atol=1e-6)


def test_order_of_the_gates_four_vectors_matters_unless_its_rows_follow() -> None:
    block, frozen, tuned = worked()
    averages = averaged(frozen, tuned, 2) + torch.tensor([[[[0.3, 0.1], [0.0, 0.7]]]])
    wanted = block.gate(frozen, tuned, averages)
    swapped = averages.flip(2)
    assert not torch.allclose(block.gate(tuned, frozen, swapped), wanted, atol=1e-3)
    with torch.no_grad():
        block.down.copy_(torch.cat(block.down.chunk(4, dim=1)[::-1], dim=1))
    torch.testing.assert_close(block.gate(tuned, frozen, swapped), wanted)


def loss_of(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    with block_of(model).reading({"labels": labels}):
        given = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(
        given[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )


def half_labelled() -> tuple[Tensor, Tensor]:
    ids = token_ids()
    labels = ids.clone()
    labels[0, :4], labels[1, :6] = -100, -100
    return ids, labels


def test_at_the_first_step_only_the_host_moves() -> None:
    _, model = siamese()
    loss_of(model, *half_labelled()).backward()
    block = block_of(model)
    assert not block.down.grad.any()
    assert not block.up.grad.any()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any(p.grad.any() for n, p in trained.items() if "block" not in n)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)


def test_gradients_are_those_of_finite_differences() -> None:
    _, model = siamese(name="gpt2", base=tiny("gpt2", "causal_lm").double())
    shaken(model.double())
    ids, labels = half_labelled()
    loss_of(model, ids, labels).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        flat = parameter.data.view(-1)
        i = int(torch.randint(flat.numel(), (), generator=generator))
        values = []
        for step in (1e-4, -1e-4):
            before = flat[i].item()
            flat[i] += step
            values.append(loss_of(model, ids, labels).item())
            flat[i] = before
        slope = (values[0] - values[1]) / 2e-4
        assert slope == pytest.approx(parameter.grad.view(-1)[i].item(), abs=1e-8), name


def test_query_is_what_comes_before_the_first_supervised_token_of_each_document() -> None:
    labels = torch.tensor([[-100, -100, 5, 5, -100, 5], [5, 5, 5, 5, 5, 5]])
    mask = torch.tensor([[1] * 6, [1] * 6])
    is_query, document = query_of({"attention_mask": mask}, (2, 6), labels=labels)
    assert is_query.tolist() == [[True, True, False, False, False, False], [False] * 6]
    assert document.tolist() == [[0] * 6, [1] * 6]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    labels = torch.tensor([[-100, 5, 5, -100, -100, 5]])
    is_query, document = query_of({"position_ids": positions}, (1, 6), labels=labels)
    assert is_query.tolist() == [[True, False, False, True, True, False]]
    assert document.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_a_loss_of_the_models_own_never_looks_ahead() -> None:
    _, model = siamese()
    shaken(model)
    ids, labels = half_labelled()
    with torch.no_grad():
        own = model(input_ids=ids, labels=labels).loss
        torch.testing.assert_close(own, loss_of(model, ids, labels))
        later = ids.clone()
        later[:, -1] = 7
        given = model(input_ids=ids, labels=labels).logits
        other = model(input_ids=later, labels=labels).logits
    assert torch.equal(given[:, :-1], other[:, :-1])
    assert not torch.equal(logits(model), given)  # without labels all of it is the query


def test_an_empty_query_averages_to_zero() -> None:
    states = torch.ones(1, 3, 2, 4)
    is_query, document = query_of({}, (1, 3), labels=torch.ones(1, 3, dtype=torch.int64))
    assert not documents_of(states, is_query, document).any()


def test_neither_padding_nor_the_batch_changes_an_example() -> None:
    _, model = siamese(name="gpt2", base=tiny("gpt2", "causal_lm").double())
    shaken(model.double())
    ids, labels = half_labelled()

    def scored(ids: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with block_of(model).reading({"labels": labels}):
            return logits(model, ids, attention_mask=mask, position_ids=positions)

    wanted = scored(ids[:1], labels[:1], torch.ones_like(ids[:1]))[0]
    pads, none = torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -100)
    mask = torch.cat([torch.ones_like(ids), pads], dim=1)
    right = scored(torch.cat([ids, pads], dim=1), torch.cat([labels, none], dim=1), mask)
    torch.testing.assert_close(right[0, :9], wanted, rtol=0, atol=1e-13)
    left = scored(torch.cat([pads, ids], dim=1), torch.cat([none, labels], dim=1), mask.flip(1))
    torch.testing.assert_close(left[0, 3:], wanted, rtol=0, atol=1e-13)


def greedy(model: Any, ids: Tensor, tokens: int, prompt: int) -> Tensor:
    """Compute everything again for every token."""
    with block_of(model).answering(prompt):
        for _ in range(tokens):
            chosen = logits(model, ids, use_cache=False)[:, -1].argmax(-1)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
    return ids


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", [(), (1,)])
def test_two_caches_give_what_computing_everything_again_gives(
    name: str, layers: tuple[int, ...]
) -> None:
    recipe = named("imsm").with_fields({"selection.layers": list(layers)})
    model: Any = recipe.prepare(tiny(name, "causal_lm"), task_type="CAUSAL_LM").eval()
    shaken(model, scale=0.6)
    others = []
    for seed in range(5):
        ids = torch.randint(3, 60, (1, 5), generator=torch.Generator().manual_seed(seed))
        given = model.generate(input_ids=ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert torch.equal(given, greedy(model, ids, 20, 5))
        again = model.generate(
            input_ids=ids, max_new_tokens=20, do_sample=False, eos_token_id=None, use_cache=False
        )
        assert torch.equal(given, again)
        with block_of(model).off():
            tuned = model.generate(
                input_ids=ids, max_new_tokens=20, do_sample=False, eos_token_id=None
            )
        others.append(torch.equal(tuned, given))
    assert not all(others)


@pytest.mark.parametrize("layers", [(), (1,)])
def test_beams_and_padded_batches_take_both_caches_along(layers: tuple[int, ...]) -> None:
    recipe = named("imsm").with_fields({"selection.layers": list(layers)})
    model: Any = recipe.prepare(tiny("llama", "causal_lm"), task_type="CAUSAL_LM").eval()
    shaken(model, scale=0.6)
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    cached = model.generate(input_ids=ids, **options)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **options))
    pads = torch.zeros(2, 3, dtype=torch.int64)
    padded = torch.cat([pads, ids], dim=1)
    mask = torch.cat([pads, torch.ones_like(ids)], dim=1)
    given = model.generate(input_ids=padded, attention_mask=mask, **options)
    assert torch.equal(given[:, 3:], cached)


def test_layers_below_the_first_changed_one_run_and_are_cached_once() -> None:
    recipe = named("imsm").with_fields({"selection.layers": [1]})
    model: Any = recipe.prepare(tiny("llama", "causal_lm"), task_type="CAUSAL_LM").eval()
    shaken(model, scale=0.6)
    lower = model.get_base_model().model.layers[0]
    calls: list[int] = []
    lower.self_attn.register_forward_hook(lambda *_: calls.append(1))
    output = model(input_ids=token_ids(), use_cache=True)
    assert len(calls) == 1
    cache = output.past_key_values
    assert isinstance(cache, SiameseCache)
    assert cache.layers[0] is cache.layers[1]
    assert cache.frozen.layers[0].keys is not None
    assert cache.get_seq_length() == cache.frozen.get_seq_length() == 9


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_base_equals_two_copies(checkpointing: bool) -> None:
    _, model = siamese()
    shaken(model)
    if checkpointing:
        base = model.get_base_model()
        old = "gradient_checkpointing_enable"  # its name before transformers 5.23
        getattr(base, "activation_checkpointing_enable", getattr(base, old, None))(
            {"use_reentrant": False}
        )
        model.enable_input_require_grads()
    model.train()
    block_of(model).eval()
    ids, labels = half_labelled()
    bodies = [tiny("llama", "causal_lm").model]
    _, other = siamese()
    shaken(other).train()
    frozen = bodies[0](input_ids=ids).last_hidden_state.detach()
    with block_of(other).off():
        tuned = other.get_base_model().model(input_ids=ids).last_hidden_state
    both = torch.stack([frozen, tuned], dim=2)
    is_query, document = query_of({}, (2, 9), labels=labels)
    averages = documents_of(both, is_query, document)[document]
    mixed = block_of(other).eval().mixed(frozen, tuned, averages)
    wanted = other.get_base_model().lm_head(mixed)
    with block_of(model).reading({"labels": labels}):
        given = model(input_ids=ids).logits
    assert torch.equal(given, wanted)
    given.square().mean().backward()
    wanted.square().mean().backward()
    gradients = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    assert gradients
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-7)


def test_the_delta_acts_again_after_the_frozen_pass_also_after_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, model = siamese()
    shaken(model)
    wanted = logits(model)
    norm = model.get_base_model().model.norm
    whole = norm.forward
    monkeypatch.setattr(norm, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        logits(model)
    monkeypatch.setattr(norm, "forward", whole)
    assert torch.equal(logits(model), wanted)


def test_dropout_of_the_gate_leaves_entries_in_the_middle_while_it_trains() -> None:
    block = SiameseBlock(Siamese(rank=4), 64, torch.Generator().manual_seed(0)).train()
    generator = torch.Generator().manual_seed(1)
    frozen, tuned = torch.randn(2, 16, 128, 64, generator=generator)
    averages = torch.randn(16, 128, 2, 64, generator=generator)
    torch.manual_seed(0)
    share = (block.gate(frozen, tuned, averages) == 0.5).float().mean().item()
    assert share == pytest.approx(0.1 + 0.9 * 0.1**4, abs=0.005)
    assert not (block.eval().gate(frozen, tuned, averages) == 0.5).any()


@pytest.mark.parametrize("host", ["lora", "loca", "full"])
def test_a_run_trains_saves_loads_and_refuses_to_be_folded(
    host: str, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = named("imsm", {"host": {"name": host, **HOSTS[host]}})
    run = finetune(
        llama,
        pairs,
        recipe,
        output=tmp_path / "run",
        assignments={"training.steps": 4, "training.max_length": 32, "training.batch_size": 4},
        console=Console(quiet=True),
    )
    model: Any = deltatune.load(run.folder)
    again: Any = deltatune.load(run.folder)
    assert torch.equal(logits(model), logits(again))
    assert block_of(model).up.abs().sum() > 0
    fresh = SiameseBlock(recipe.block, 32, torch.Generator())
    assert fresh.up.shape == block_of(model).up.shape
    for form in ("merged", "lora", "peft"):
        with pytest.raises(NotMergeable, match=r"load the run's folder with deltatune\.load"):
            deltatune.export(run.folder, form, output=tmp_path / form)
    carrier = recipe.carrier()
    for fold in (carrier.merged, lambda model: carrier.save_as_lora(model, tmp_path)):
        with pytest.raises(NotMergeable, match=r"siamese cannot be folded into the base, since it"):
            fold(model)
    (run.folder / "adapter" / "block.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"block\.safetensors"):
        deltatune.load(run.folder)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"gate_rank": 0}, r"rank=0 is not allowed"),
        ({"gate_dropout": 1.0}, r"gate_dropout=1\.0 is not allowed"),
        ({"gate_learning_rate": 0.0}, r"gate_learning_rate=0\.0 is not allowed"),
        ({"mode": "nothing"}, r"mode"),
        ({"host": 3}, r"host=3 is not allowed"),
    ],
)
def test_wrong_values_are_told(parameters: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        named("imsm", parameters)


def test_hosts_that_cannot_be_switched_off_and_encoders_are_refused() -> None:
    prefix = named("imsm", {"host": "prefix_tuning"})
    with pytest.raises(NotComposable, match=r"PREFIX_TUNING is no layer"):
        prefix.prepare(tiny("llama", "causal_lm"), task_type="CAUSAL_LM")
    with pytest.raises(NotComposable, match=r"next token, and this task has none"):
        named("imsm").prepare(tiny("bert", "sequence_classification"), task_type="SEQ_CLS")


def test_recipe_survives_its_plain_form() -> None:
    recipe = named("imsm")
    assert recipes.from_plain(recipe.to_plain()) == recipe
    groups = recipe.to_plain()["update"]
    assert groups["updates"][0]["patterns"] == pytest.approx(
        {"block.down": 1e-3 / recipe.optimizer.learning_rate}
        | {"block.up": 1e-3 / recipe.optimizer.learning_rate}
    )


def test_gate_report_tells_tokens_and_dimensions() -> None:
    _, model = siamese()
    shaken(model)
    ids = token_ids()
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    found = gate_report(model, {"input_ids": ids, "attention_mask": mask})
    assert [len(row) for row in found["tokens"]] == [9, 6]
    assert found["tokens"][0][0]["token"] == int(ids[0, 0])
    means = [token["mean"] for row in found["tokens"] for token in row]
    assert found["mean"] == pytest.approx(sum(means) / 15, abs=1e-6)
    assert len(found["by_dimension"]) == 32
    assert len(set(means)) > 1
    leaning = gate_report(forced(model, 100.0), {"input_ids": ids})
    assert leaning["mean"] == leaning["frozen_ratio"] == 1
    with pytest.raises(InputError, match="has no siamese block"):
        gate_report(tiny("llama", "causal_lm"), {"input_ids": ids})


class Chains:
    """First-order Markov chains on 16 symbols, as check 12 of the card draws them."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.kept, self.new = (self.generator.dirichlet([0.2] * 16, size=16) for _ in range(2))

    def batch(self, chain: np.ndarray, rows: int) -> Tensor:
        """Return a start token (16) and 11 symbols a row, `(rows, 12)`."""
        symbols = [self.generator.integers(16, size=rows)]
        for _ in range(10):
            steps = chain[symbols[-1]].cumsum(1)
            symbols.append((self.generator.random(rows)[:, None] > steps).sum(1).clip(max=15))
        start = np.full(rows, 16)
        return torch.from_numpy(np.stack([start, *symbols], axis=1))


def answer_loss(model: Any, ids: Tensor, *, all_tokens: bool = False) -> Tensor:
    labels = ids.clone()
    if not all_tokens:
        labels[:, :5] = -100
    return model(input_ids=ids, labels=labels).loss  # type: ignore[no-any-return]


def train(model: Any, groups: Any, chains: Chains, chain: Any, steps: int, **loss: Any) -> None:
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    model.train()
    for _ in range(steps):
        answer_loss(model, chains.batch(chain, 32), **loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def toy(seed: int) -> dict[str, tuple[float, float]]:
    """Return answer losses on the old and the new chain: of base, of host alone, with the gate."""
    found = {}
    for name in ("before", "lora", "imsm"):
        chains = Chains(seed)
        base = tiny(
            "llama",
            "causal_lm",
            seed=seed,
            vocab_size=20,
            intermediate_size=64,
            num_key_value_heads=2,
            initializer_range=0.1,
        )
        train(base, [{"params": base.parameters(), "lr": 5e-3}], chains, chains.kept, 300)
        model: Any = base
        if name != "before":
            host = {"name": "lora", "rank": 4, "alpha": 8.0}
            recipe = named("imsm", {"host": host}) if name == "imsm" else hosted(host)
            model = recipe.prepare(base, task_type="CAUSAL_LM")
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            of_gate = [p for n, p in trained.items() if "block" in n]
            of_host = [p for n, p in trained.items() if "block" not in n]
            groups = [{"params": of_host, "lr": 3e-3}, {"params": of_gate, "lr": 1e-3}]
            torch.manual_seed(seed)
            train(model, groups, chains, chains.new, 150)
        chains.generator = np.random.default_rng(1000 + seed)
        with torch.no_grad():
            old = float(answer_loss(model, chains.batch(chains.kept, 512)))
            new = float(answer_loss(model, chains.batch(chains.new, 512)))
        found[name] = (old, new)
    return found


@pytest.mark.slow
def test_toy_of_the_card_the_gate_keeps_more_and_learns_as_much() -> None:
    runs = [toy(seed) for seed in range(5)]
    kept = [run["imsm"][0] < run["lora"][0] for run in runs]
    assert sum(kept) >= 4
    new = {name: sum(run[name][1] for run in runs) / 5 for name in ("lora", "imsm")}
    assert new["imsm"] <= 1.05 * new["lora"]
    assert all(run["lora"][1] < run["before"][1] for run in runs)


def test_packed_batches_train_like_padded_ones(llama: Path, pairs: Path, tmp_path: Path) -> None:
    losses = []
    for packing in ("auto", "off"):
        run = finetune(
            llama,
            pairs,
            named("imsm", {"gate_dropout": 0.0}),
            output=tmp_path / packing,
            assignments={
                "training.packing": packing,
                "training.steps": 8,
                "training.epochs": 4,
                "training.max_length": 32,
                "training.batch_size": 4,
                "optimizer.learning_rate": 3e-2,
            },
            console=Console(quiet=True),
        )
        losses.append(losses_of(run.folder))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
