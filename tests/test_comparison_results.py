"""The record of a comparison: columns, intervals, ranks, and a line for whatever went wrong."""

from __future__ import annotations

import json

import pytest

from deltatune.comparison.ended import chosen_rate, ended
from deltatune.comparison.jobs import Outcome
from deltatune.comparison.results import record
from tests import comparisons
from tests.comparisons import drawn, finished


def made(plan, runs, jobs):
    found = record(plan, ended(runs, jobs), ["a note"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_record_ranks_a_bad_recipe_last_and_lets_twins_tie(tmp_path):
    plan = comparisons.plan("lora,twin=lora,full")
    jobs = plan.first_jobs()
    for job in jobs:
        share = 0.3 if job.recipe == "full" else 0.7
        name = "twin" if job.recipe == "twin" else job.recipe
        finished(tmp_path, job, drawn(share, name, job.seed))
    found = made(plan, tmp_path, jobs)
    assert {one["name"]: one["rank"] for one in found["recipes"]} == {
        "lora": 1,
        "twin": 1,
        "full": 3,
    }
    score = found["recipes"][0]["columns"]["score"]
    assert score["low"] < score["mean"] < score["high"]
    assert len(score["values"]) == 3
    pair = next(d for d in found["differences"] if {d["first"], d["second"]} == {"lora", "full"})
    assert pair["is_significant"]
    means = {one["name"]: one["columns"]["score"]["mean"] for one in found["recipes"]}
    assert pair["mean"] == pytest.approx(means["lora"] - means["full"])
    assert found["metric"] == "accuracy"
    assert found["columns"][0]["title"] == "accuracy"
    # Of 400 tokens that were expected the run saw 300, since an epoch ended within a step.
    assert found["recipes"][0]["columns"]["flops"]["mean"] == pytest.approx(0.75e9)


def test_record_turns_differences_where_lower_is_better(tmp_path):
    plan = comparisons.plan("lora,full")
    jobs = plan.first_jobs()
    for job in jobs:
        share = 0.3 if job.recipe == "full" else 0.7
        finished(tmp_path, job, drawn(share, job.recipe, job.seed), headline="loss")
    found = made(plan, tmp_path, jobs)
    assert not found["higher_is_better"]
    (pair,) = found["differences"]
    lora, full = found["recipes"]
    wanted = lora["columns"]["score"]["mean"] - full["columns"]["score"]["mean"]
    assert pair["mean"] == pytest.approx(wanted)
    assert pair["low"] < pair["mean"] < pair["high"] < 0
    assert (lora["rank"], full["rank"]) == (1, 2)


def test_record_has_a_line_for_what_did_not_finish(tmp_path):
    plan = comparisons.plan("lora,full,dora")
    jobs = plan.first_jobs()
    for job in jobs:
        if job.recipe == "dora":
            Outcome(status="killed", message="by SIGKILL").save(tmp_path, job)
        elif job.recipe == "full" and job.seed == 1:
            Outcome(status="diverged", message="the loss is nan").save(tmp_path, job)
        else:
            finished(tmp_path, job, drawn(0.5, job.recipe, job.seed))
    found = made(plan, tmp_path, jobs)
    lora, full, dora = found["recipes"]
    assert (lora["status"], lora["rank"]) == ("finished", 1)
    assert (full["status"], full["rank"]) == ("finished", None)
    assert "1 of 3 final runs did not finish: it has no rank" in full["notes"]
    assert any("full-final-seed-1 diverged: the loss is nan" in note for note in full["notes"])
    assert (dora["status"], dora["columns"]) == ("failed", {})
    statuses = [run["status"] for run in found["runs"]]
    assert statuses.count("finished") == 5
    assert statuses.count("killed") == 3
    assert found["differences"] == []


def test_record_of_one_seed_has_scores_and_no_intervals(tmp_path):
    plan = comparisons.plan("lora,full", seeds=(4,))
    jobs = plan.first_jobs()
    for job in jobs:
        finished(tmp_path, job, drawn(0.5, job.recipe, job.seed))
    found = made(plan, tmp_path, jobs)
    assert {one["rank"] for one in found["recipes"]} == {1}
    score = found["recipes"][0]["columns"]["score"]
    assert (score["low"], score["high"], score["spread"]) == (None, None, None)
    assert found["differences"][0]["p_value"] is None


def test_best_trial_is_chosen_and_its_place_at_the_edge_is_told(tmp_path):
    plan = comparisons.plan("lora", trials=3)
    jobs = plan.first_jobs()
    assert [job.scored_on for job in jobs] == ["validation"] * 3
    for job, share in zip(jobs[:2], (0.6, 0.4), strict=True):
        finished(tmp_path, job, drawn(share, job.recipe, job.seed))
    Outcome(status="diverged", message="the loss is nan").save(tmp_path, jobs[2])
    trials = ended(tmp_path, jobs)
    assert chosen_rate(trials) == trials[0].rate
    assert chosen_rate(trials[2:]) is None
    finals = plan.final_jobs("lora", trials[0].rate)
    for job in finals:
        finished(tmp_path, job, drawn(0.5, job.recipe, job.seed))
    (lora,) = made(plan, tmp_path, [*jobs, *finals])["recipes"]
    assert lora["learning_rate"] == trials[0].rate
    assert any("is the smallest that was tried" in note for note in lora["notes"])


def test_equal_trials_give_the_lower_rate(tmp_path):
    jobs = comparisons.plan("lora", trials=3).first_jobs()
    for job in jobs:
        finished(tmp_path, job, drawn(0.5, "same", 0))
    trials = ended(tmp_path, jobs)
    assert chosen_rate(trials) == min(one.rate for one in trials)


def test_sweep_is_a_grid_with_the_second_field_downwards(tmp_path):
    fields = {"optimizer.learning_rate": [1e-3, 1e-2], "delta.rank": [2, 4, 8]}
    plan = comparisons.plan("lora", seeds=(0,), sweep=fields)
    jobs = plan.first_jobs()
    for job in jobs:
        rate, rank = job.settings.values()
        if (rate, rank) == (1e-2, 4):
            Outcome(status="diverged", message="the loss is nan").save(tmp_path, job)
        else:
            share = 0.2 + 0.4 * (rate == 1e-2) + 0.04 * rank
            finished(tmp_path, job, drawn(share, "same", 0))
    sweep = made(plan, tmp_path, jobs)["sweep"]
    assert sweep["fields"] == list(fields)
    assert sweep["values"] == [[1e-3, 1e-2], [2, 4, 8]]
    assert [[cell is None for cell in row] for row in sweep["cells"]] == [
        [False, False],
        [False, True],
        [False, False],
    ]
    assert sweep["messages"][1][1] == "diverged: the loss is nan"
    assert sweep["cells"][0][0] < sweep["cells"][0][1] < sweep["cells"][2][1]
    assert sweep["cells"][0][0] < sweep["cells"][1][0] < sweep["cells"][2][0]


def test_sweep_of_one_field_is_one_row(tmp_path):
    plan = comparisons.plan("lora", seeds=(0,), sweep={"delta.rank": [2, 4]})
    jobs = plan.first_jobs()
    for job in jobs:
        finished(tmp_path, job, drawn(0.5, "same", 0))
    sweep = made(plan, tmp_path, jobs)["sweep"]
    assert [len(row) for row in sweep["cells"]] == [2]
