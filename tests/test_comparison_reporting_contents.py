"""What the page says and shows, and that it stands whatever is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltatune.comparison.reporting import write_reports
from deltatune.comparison.reporting.charts import chart_data, default_axes
from deltatune.comparison.reporting.contents import Column, Comparison
from deltatune.comparison.reporting.curves import loss_curves, running_mean
from deltatune.comparison.reporting.fronts import front_of
from deltatune.comparison.reporting.label_places import free_places
from deltatune.comparison.reporting.page_tables import (
    Cell,
    differences_table,
    predictions_table,
    recipes_table,
)
from deltatune.comparison.reporting.summary import outcome, what_was_compared
from deltatune.comparison.reporting.units import unit_of
from tests.comparison_records import NAMES, failed_recipe, record, written


def comparison(content: dict[str, Any]) -> Comparison:
    return Comparison.model_validate(json.loads(json.dumps(content)))


def one_seed() -> dict[str, Any]:
    content = record(("lora", "full"), with_failures=False)
    for row in content["recipes"]:
        for found in row["columns"].values():
            found.update(low=None, high=None, spread=None, values=found["values"][:1])
    for pair in content["differences"]:
        pair.update(low=None, high=None, p_value=None, adjusted_p_value=None, items_needed=None)
    return {**content, "seeds": [0], "sweep": None}


def only_nulls() -> dict[str, Any]:
    content: dict[str, Any] = {name: None for name in record(("a",))}
    rows = [{name: None for name in record(("a",))["recipes"][0]} | {"name": "a"}]
    runs = [{name: None for name in record(("a",))["runs"][0]} | {"name": "a-1", "recipe": "a"}]
    return {**content, "format": 1, "recipes": rows, "runs": runs}


def only_failures() -> dict[str, Any]:
    content = record(("a", "b"))
    content["recipes"] = [failed_recipe("a"), failed_recipe("b")]
    return {**content, "runs": [], "differences": [], "sweep": None}


def only_a_sweep() -> dict[str, Any]:
    content = record(("lora",))
    grid = {
        "fields": ["rank"],
        "values": [[1, 2]],
        "cells": [[None, 0.7]],
        "messages": [["diverged: x", ""]],
    }
    recipes = [{**failed_recipe("lora"), "status": "finished"}]
    return {**content, "recipes": recipes, "runs": [], "differences": [], "sweep": grid}


@pytest.mark.parametrize(
    ("content", "drawn"),
    [
        ({"format": 1}, set()),
        (only_nulls(), set()),
        (one_seed(), {"pareto", "losses", "intervals"}),
        (only_failures(), set()),
        (only_a_sweep(), {"heatmap"}),
    ],
    ids=["nothing", "only nulls", "one seed", "only failures", "only a sweep"],
)
def test_reports_are_made_from_whatever_is_there(
    content: dict[str, Any], drawn: set[str], tmp_path: Path
) -> None:
    paths = write_reports(written(tmp_path, content))
    assert {path.stem for path in paths if path.suffix == ".png"} == drawn


def test_labels_are_left_out_rather_than_overlap_when_points_coincide() -> None:
    # Forty points on one spot: at most one label for each of the 8 sides and 2 distances fits.
    places = free_places([(50.0, 50.0)] * 40, ["name"] * 40, (0.0, 0.0, 100.0, 100.0))
    kept = [place for place in places if place is not None]
    assert 4 <= len(kept) <= 16
    apart = [
        abs(a[0] - b[0]) >= 18.4 or abs(a[1] - b[1]) >= 9  # four letters wide, one high
        for i, a in enumerate(kept)
        for b in kept[:i]
    ]
    assert all(apart)


def test_labels_keep_clear_of_the_front() -> None:
    points = [(20.0, 50.0), (120.0, 50.0)]
    (first, second) = free_places(points, ["ab", "cd"], (0, 0, 140, 100), first=[0, 1])
    # The line runs to the right of the first and to the left of the second point.
    assert first is not None
    assert second is not None
    assert first[0] < 20
    assert second[0] > 120


def test_outcome_names_the_recipes_that_nothing_beats() -> None:
    said = outcome(comparison(record()))
    assert "Nothing is significantly better than full, dora and lora" in said
    assert "No final run of adalora finished." in said
    assert "The best of the sweep is 0.700, with learning_rate = " in said


def test_outcome_calls_one_recipe_best_only_when_it_beats_all_others() -> None:
    content = record(("a", "b"), with_failures=False)
    content["recipes"][1]["rank"] = 2
    content["differences"][0].update(is_significant=True)
    assert outcome(comparison(content)).startswith("a is best: significantly better than every")
    three = record(("a", "b", "c"), with_failures=False)
    for row, rank in zip(three["recipes"], (1, 2, 2), strict=True):
        row["rank"] = rank
    assert "the only recipe that none beats" in outcome(comparison(three))


def test_outcome_says_when_recipes_tie_and_when_one_seed_cannot_tell() -> None:
    tied = record(("a", "b"), with_failures=False)
    assert "all of them tie" in outcome(comparison(tied))
    assert "it takes two seeds at least" in outcome(comparison(one_seed()))


def test_outcome_names_the_recipes_whose_interval_reaches_chance() -> None:
    content = record(("a", "b"), with_failures=False)
    assert "chance" not in outcome(comparison(content))
    content["recipes"][1]["columns"]["score"]["low"] = 0.1
    assert "Not above chance: b." in outcome(comparison(content))


def test_summary_tells_budget_seeds_and_limits_in_words() -> None:
    said = what_was_compared(comparison(record()))
    assert "12 recipes trained deltatune/nano on deltatune/boxes (completion)." in said
    assert "more is better (0.1 is what chance gives and 1 the best that can be reached)" in said
    assert "400,000 tokens (per recipe, its learning-rate trials included)" in said
    assert "seeds 0, 1 and 2" in said


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("adapter_bytes", [3 * 2**20, 2**19], "0.500 MiB"),
        ("median_step_seconds", [0.21, 0.0123], "12.3 ms"),
        ("wall_seconds", [600.0, 90.0], "1.50 min"),
        ("flops", [3e13, 2e12], "2.00 TFLOPs"),
        ("trainable_parameters", [1e6, 1234.0], "1,234"),
        ("energy_kilowatt_hours", [0.002, 0.0005], "0.500 Wh"),
    ],
)
def test_units_suit_the_largest_value_of_a_column(
    name: str, values: list[float], shown: str
) -> None:
    assert unit_of(Column(name=name), values).full(values[-1]) == shown


def test_recipes_table_shows_the_interval_else_the_spread_and_why_a_recipe_failed() -> None:
    table = recipes_table(comparison(record()))
    texts = [heading.text for heading in table.headings]
    assert texts[:3] == ["recipe", "rank", "exact_match"]
    assert "peak memory (MiB)" in texts
    hidden = {heading.text for heading in table.headings if not heading.is_shown}
    assert {text.split(" (")[0] for text in hidden} == {
        "peak memory, predicted",
        "FLOPs, predicted",
        "training time, predicted",
    }
    assert " to " in table.rows[0][2].below
    assert table.rows[0][3].below.startswith("± ")
    assert table.rows[-1][0] == Cell(
        "adalora", "adalora", "diverged: the loss is not a number at step 12", "bad"
    )
    assert table.rows[-1][2].value is None


def test_differences_table_says_when_more_seeds_are_needed() -> None:
    content = record(("a", "b"), with_failures=False)
    (row,) = differences_table(comparison(content)).rows
    assert [cell.text for cell in row[-2:]] == ["no", "more seeds"]
    (row,) = differences_table(comparison(one_seed())).rows
    assert row[-2].text == "not known"


def test_predictions_table_gives_the_relative_error() -> None:
    content = record(("a",))
    for name, mean in (("predicted_seconds", 90.0), ("wall_seconds", 120.0)):
        content["recipes"][0]["columns"][name]["mean"] = mean
    table = predictions_table(comparison(content))
    assert table is not None
    assert [cell.text for cell in table.rows[0][4:7]] == ["90.0", "120.0", "-25 %"]
    assert predictions_table(comparison(only_failures())) is None


def test_front_follows_the_better_direction_of_each_column() -> None:
    content = record(("a", "b", "c"), with_failures=False)
    for row, score, memory in zip(content["recipes"], (0.8, 0.85, 0.7), (1, 5, 6), strict=True):
        row["columns"]["score"]["mean"] = score
        row["columns"]["adapter_bytes"]["mean"] = memory
    found = comparison(content)
    score, memory = found.column("score"), found.column("adapter_bytes")
    assert front_of(memory, score, found.recipes) == [0, 1]
    assert front_of(Column(name="adapter_bytes"), score, found.recipes) is None


def test_default_axes_are_memory_and_score_where_both_were_measured() -> None:
    assert default_axes(comparison(record(("a",)))) == ("peak_memory_above_base_bytes", "score")
    assert default_axes(comparison(only_failures())) is None


def test_loss_curves_average_the_finished_seeds_at_the_steps_they_share() -> None:
    content = record(("a",))
    finals = [run for run in content["runs"] if run["kind"] == "final"]
    for run, losses in zip(finals, ([[1, 3.0], [2, 1.0]], [[1, 1.0], [3, 9.0]], []), strict=True):
        run["losses"] = losses
    finals[2].update(losses=[[1, 50.0], [2, None]], status="diverged", message="why")
    (curves,) = loss_curves(comparison(content))
    assert curves.mean is not None
    assert (curves.mean.steps, curves.mean.losses) == ((1,), (2.0,))
    assert [(curve.steps, curve.stopped) for curve in curves.runs] == [
        ((1, 2), ""),
        ((1, 3), ""),
        ((1,), "diverged: why"),
    ]


def test_running_mean_leaves_a_line_as_it_is_up_to_its_ends() -> None:
    line = [float(i) for i in range(50)]  # each is the mean of its neighbours
    assert running_mean(line) == pytest.approx(line, rel=1e-12)


def test_chart_texts_are_escaped_for_plotly_and_sweep_cells_say_why() -> None:
    content = record(("<b>&",))
    data = chart_data(comparison(content))
    assert data["recipes"] == ["&lt;b&gt;&amp;"]
    assert data["names"] == ["<b>&"]
    assert data["sweep"]["cells"][2][3] is None
    assert data["failed_cells"] == [
        "learning_rate = 0.004, delta.value_learning_rate_ratio = 4: "
        "diverged: the loss is not a number at step 3"
    ]


def test_recipes_are_ordered_by_rank_then_score_with_failures_last() -> None:
    rows = comparison(record()).best_first()
    assert {row.name for row in rows[:3]} == set(NAMES[:3])
    scores = [row.mean("score") or 0 for row in rows[:3]]
    assert scores == sorted(scores, reverse=True)
    assert rows[-1].name == "adalora"
