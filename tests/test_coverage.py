from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from deltatune import sites
from deltatune.coverage import check, coverage, gate
from deltatune.errors import InputError
from deltatune.part import Entries, Rows, Whole
from deltatune.selections.by_pattern import ByPattern
from deltatune.selections.by_role import ByRole
from deltatune.selections.explicit import Explicit


def run_gate(model, selector):
    found = sites.of(model)
    return gate(found, selector(model, found), selector, trained_parameters=7)


def test_coverage_counts_places_and_scalars_of_each_role(tiny) -> None:
    result = run_gate(tiny("phi3", "causal_lm"), ByRole())
    rows = {row.role: row for row in result.rows}
    # 4 query heads and 2 value heads of 8, 32 inputs, 2 layers.
    assert (rows["query"].matched, rows["query"].available) == (2, 2)
    assert rows["query"].parameters == rows["query"].available_parameters == 2 * 32 * 32
    assert rows["value"].parameters == 2 * 16 * 32
    assert (rows["key"].matched, rows["key"].available, rows["key"].parameters) == (0, 2, 0)
    assert rows["key"].not_matched[0] == "model.layers.0.self_attn.qkv_proj:key"
    assert result.trained_parameters == 7
    assert result.matched == 4


def test_coverage_counts_entries_of_fused_weights_at_their_sites(tiny) -> None:
    found = sites.of(tiny("gpt2"))
    part = Entries(torch.tensor([0, 1, 64 * 32]))
    rows = {row.role: row for row in coverage(found, {"h.1.attn.c_attn.weight": part}).rows}
    assert [rows[role].parameters for role in ("query", "key", "value")] == [2, 0, 1]


def test_coverage_counts_a_place_outside_the_layers_asked_for(tiny) -> None:
    selection = {"layers.0.self_attn.q_proj.weight": Whole()}
    found = coverage(sites.of(tiny("llama")), selection, layers=(1,))
    rows = {row.role: row for row in found.rows}
    assert (rows["query"].matched, rows["query"].available) == (1, 2)


def test_coverage_is_plain_json(tiny) -> None:
    plain = run_gate(tiny("bert"), ByRole()).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["model_type"] == "bert"


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "phi3", "bert", "t5", "vit"])
def test_gate_passes_a_role_of_every_architecture(tiny, architecture) -> None:
    assert run_gate(tiny(architecture), ByRole()).partial == ()


def test_gate_stops_a_pattern_that_misses_layers(tiny) -> None:
    model = tiny("llama", num_hidden_layers=3)
    message = (
        r"matched 1 of 3 query projections; not matched: layers.0.self_attn.q_proj, "
        r"layers.2.self_attn.q_proj: write the layers explicitly .* or set allow_partial=true"
    )
    with pytest.raises(InputError, match=message):
        run_gate(model, ByPattern(patterns=("layers.1.self_attn.q_proj",)))


def test_gate_stops_when_one_of_a_family_is_missing(tiny) -> None:
    patterns = ("layers.*.self_attn.q_proj", "layers.0.self_attn.v_proj")
    with pytest.raises(InputError, match="matched 1 of 2 value projections"):
        run_gate(tiny("llama"), ByPattern(patterns=patterns))


def test_gate_stops_norms_of_some_layers_but_not_another_kind_of_norm(tiny) -> None:
    with pytest.raises(InputError, match=r"matched 1 of 2 places layers.\*.input_layernorm"):
        run_gate(tiny("llama"), ByPattern(patterns=("layers.0.input_layernorm",)))
    assert run_gate(tiny("llama"), ByPattern(patterns=("input_layernorm",))).matched == 2


def test_gate_stops_encoder_queries_without_the_decoders(tiny) -> None:
    with pytest.raises(InputError, match="matched 2 of 6 query projections"):
        run_gate(tiny("t5"), ByPattern(patterns=("encoder.**.q",)))


@pytest.mark.parametrize(
    "selector",
    [
        ByPattern(patterns=("self_attn.q_proj",), layers=(1,)),
        ByPattern(patterns=("layers.1.self_attn.q_proj",), allow_partial=True),
        ByRole(layers=(0,)),
        Explicit(weights={"layers.0.self_attn.q_proj.weight": {"rows": (0,)}}),
    ],
)
def test_gate_passes_a_part_that_was_asked_for(tiny, selector) -> None:
    assert run_gate(tiny("llama"), selector).matched >= 1


def test_gate_refuses_a_tied_weight_by_name(tiny) -> None:
    model = tiny("gpt2", "causal_lm")
    with pytest.raises(InputError, match=r"lm_head.weight is tied to transformer.wte.weight"):
        run_gate(model, ByRole(roles=("query", "head")))
    allowed = run_gate(model, ByRole(roles=("query", "head"), allow_tied=True))
    assert allowed.tied == {"lm_head.weight": ("transformer.wte.weight",)}


def test_gate_passes_a_head_that_is_not_tied(tiny) -> None:
    assert run_gate(tiny("llama", "causal_lm"), ByRole(roles=("head",))).matched == 1


def test_check_stops_a_selection_of_nothing(tiny) -> None:
    with pytest.raises(InputError, match="reaches no weight"):
        check(coverage(sites.of(tiny("bert")), {}))


def test_coverage_refuses_a_weight_or_row_that_does_not_exist(tiny) -> None:
    found = sites.of(tiny("bert"))
    with pytest.raises(InputError, match=r"weight 'pooler\.weight' is not known"):
        coverage(found, {"pooler.weight": Whole()})
    with pytest.raises(InputError, match="Rows index 32 is outside"):
        coverage(found, {"pooler.dense.weight": Rows(torch.tensor([32]))})


def test_coverage_table_shows_what_is_left_out(tiny) -> None:
    model = tiny("llama")
    selector = ByPattern(patterns=("layers.1.self_attn.q_proj",), allow_partial=True)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(run_gate(model, selector).table())
    shown = console.export_text()
    assert "places of the llama model: 7 train" in shown
    (line,) = [line for line in shown.splitlines() if "query" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "query",
        "1",
        "2",
        "1,024",
        "layers.0.self_attn.q_proj",
    ]
