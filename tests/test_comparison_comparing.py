"""The whole comparison on tiny random models: fair, resumable, and nothing lost."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from deltatune.comparison import comparing, worker
from deltatune.comparison.engines import one_after_another
from deltatune.comparison.ray_engine import with_checkpoints
from deltatune.errors import Diverged, InputError
from deltatune.run_folder import RunFolder
from tests.folders import classifications, completions, model_folder, rows_file

SHARED = {"training.batch_size": 4, "training.max_length": 32}
FAST = {"value": "lora:optimizer.learning_rate=0.01", "still": "lora:optimizer.learning_rate=1e-6"}


class Here:
    """Carries out runs in this process, and remembers which."""

    def __init__(self, at_most=1000):
        self.at_most = at_most
        self.done = []

    def __call__(self, orders, console):
        for order in orders:
            if len(self.done) == self.at_most:
                raise KeyboardInterrupt
            self.done.append(order.job.name)
            order.save()
            assert worker.Order.load(order.path) == order
            worker.work(order).save(order.folder.path.parent, order.job)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("data") / "pairs.jsonl", completions(80))


@pytest.fixture(autouse=True)
def _no_page(request, monkeypatch):
    """Drawing takes longer than such runs."""
    if "page" not in request.node.name:
        monkeypatch.setattr(comparing, "write_reports", lambda folder: [])


def compared(llama, pairs, output, recipes="lora", **options):
    given = {
        "budget": "tokens=2000",
        "seeds": 2,
        "trials": 1,
        "assignments": SHARED,
        "engine": Here(),
        "console": Console(file=io.StringIO(), width=200),
        **options,
    }
    return comparing.compare(llama, pairs, recipes, output=output, **given)


def test_a_recipe_ties_with_itself_and_one_that_cannot_learn_is_last(llama, pairs, tmp_path):
    recipes = {"own": FAST["value"], "twin": FAST["value"], "still": FAST["still"]}
    made = compared(llama, pairs, tmp_path / "out", recipes, seeds=3, budget="tokens=4000")
    own, twin, still = made.record["recipes"]
    assert own["columns"]["score"]["values"] == twin["columns"]["score"]["values"]
    assert (own["rank"], twin["rank"], still["rank"]) == (1, 1, 3)
    apart = {(d["first"], d["second"]): d for d in made.record["differences"]}
    assert apart["own", "twin"]["mean"] == 0
    assert apart["own", "twin"]["adjusted_p_value"] == 1
    assert apart["own", "still"]["is_significant"]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == made.record


def test_all_recipes_see_the_same_tokens_in_the_same_order(llama, pairs, tmp_path):
    compared(llama, pairs, tmp_path / "out", "lora,full,ia3")
    seen = {}
    for name in ("lora", "full", "ia3"):
        for seed in (0, 1):
            run = RunFolder(tmp_path / "out" / "runs" / f"{name}-final-seed-{seed}")
            tokens = [row["step_tokens"] for row in run.read_metrics()]
            seen.setdefault(seed, []).append(tokens)
            recipe = run.recorded_recipe()
            assert (recipe.training.seed, recipe.training.steps) == (seed, len(tokens))
    for of_seed in seen.values():
        assert of_seed[0] == of_seed[1] == of_seed[2]
    assert seen[0][0] != seen[1][0]
    # Half of the budget each, to within a step.
    assert all(850 < sum(of_seed[0]) <= 1100 for of_seed in seen.values())


def test_rates_are_chosen_on_validation_and_results_come_from_the_test(llama, pairs, tmp_path):
    engine = Here()
    made = compared(llama, pairs, tmp_path / "out", trials=3, engine=engine)
    runs = made.record["runs"]
    trials = [run for run in runs if run["kind"] == "trial"]
    finals = [run for run in runs if run["kind"] == "final"]
    assert [run["scored_on"] for run in trials] == ["validation"] * 3
    assert [run["scored_on"] for run in finals] == ["test"] * 2
    best = min(trials, key=lambda run: run["score"])
    assert {run["learning_rate"] for run in finals} == {best["learning_rate"]}
    steps = {run["losses"][-1][0] for run in runs}
    assert len(steps) == 1
    assert len(engine.done) == 5


def test_comparison_goes_on_where_it_was_and_repeats_nothing(llama, pairs, tmp_path):
    stopped = Here(at_most=2)
    with pytest.raises(KeyboardInterrupt):
        compared(llama, pairs, tmp_path / "out", "lora,full", engine=stopped)
    assert not (tmp_path / "out" / "comparison.json").exists()
    rest = Here()
    made = compared(llama, pairs, tmp_path / "out", "lora,full", engine=rest)
    assert len(stopped.done) == len(rest.done) == 2
    assert not set(stopped.done) & set(rest.done)
    nothing = Here()
    again = compared(llama, pairs, tmp_path / "out", "lora,full", engine=nothing)
    assert nothing.done == []
    assert again.record["recipes"] == made.record["recipes"]


def test_a_folder_of_a_version_that_knew_fewer_fields_goes_on(llama, pairs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compared(llama, pairs, tmp_path / "out", "lora,full", engine=Here(at_most=2))
    plan = tmp_path / "out" / "plan.json"
    older = json.loads(plan.read_text())
    for recipe in older["does"]["recipes"].values():
        assert recipe.pop("block") is None
    plan.write_text(json.dumps(older))
    rest = Here()
    compared(llama, pairs, tmp_path / "out", "lora,full", engine=rest)
    assert len(rest.done) == 2


def test_what_fails_is_a_line_and_the_others_go_on(llama, pairs, tmp_path, monkeypatch):
    plain = worker.finetune

    def finetune(model, data, recipe, **options):
        if "full" in str(options["output"]):
            raise Diverged("the loss is nan")
        return plain(model, data, recipe, **options)

    monkeypatch.setattr(worker, "finetune", finetune)
    made = compared(llama, pairs, tmp_path / "out", "full,lora", trials=2)
    full, lora = made.record["recipes"]
    assert (full["status"], full["rank"], lora["rank"]) == ("failed", None, 1)
    assert "no trial of a learning rate finished" in full["notes"]
    assert [r["status"] for r in made.record["runs"] if r["recipe"] == "full"] == ["diverged"] * 2


def test_a_run_that_crashed_is_tried_again_and_one_that_diverged_is_not(llama, pairs, tmp_path):
    compared(llama, pairs, tmp_path / "out", "lora,full", seeds=1)
    runs = tmp_path / "out" / "runs"
    for name, status in (("lora", "failed"), ("full", "diverged")):
        path = runs / f"{name}-final-seed-0.json"
        path.write_text(json.dumps({"status": status, "message": "so", "measured": {}}))
    engine = Here()
    compared(llama, pairs, tmp_path / "out", "lora,full", seeds=1, engine=engine)
    assert engine.done == ["lora-final-seed-0"]


def test_final_runs_follow_the_best_rate_when_a_lost_trial_is_made_up_for(llama, pairs, tmp_path):
    made = compared(llama, pairs, tmp_path / "out", trials=2, seeds=1)
    trials = {run["learning_rate"]: run for run in made.record["runs"] if run["kind"] == "trial"}
    best = made.record["recipes"][0]["learning_rate"]
    (other,) = trials.keys() - {best}
    lost = tmp_path / "out" / "runs" / f"{trials[best]['name']}.json"
    whole = lost.read_text()
    lost.write_text(json.dumps({"status": "diverged", "message": "so", "measured": {}}))
    runs = tmp_path / "out" / "runs"
    former = runs / "lora-final-seed-0"
    former.rename(runs / "kept")  # what an engine of this package does itself
    again = compared(llama, pairs, tmp_path / "out", trials=2, seeds=1)
    assert again.record["recipes"][0]["learning_rate"] == other
    assert RunFolder(former).recorded_recipe().optimizer.learning_rate == other
    lost.write_text(whole)
    engine = Here(at_most=0)
    with pytest.raises(KeyboardInterrupt):  # it is to be run, not taken from the other rate
        compared(llama, pairs, tmp_path / "out", trials=2, seeds=1, engine=engine)


def test_a_run_that_was_killed_goes_on_under_another_engine_and_claims_no_energy(
    llama, pairs, tmp_path, monkeypatch
):
    orders = []
    with pytest.raises(KeyboardInterrupt):
        compared(llama, pairs, tmp_path / "out", seeds=1, engine=_kept(orders))
    (order,) = orders

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remove_checkpoints", killed)  # after the last thing is written
        with pytest.raises(KeyboardInterrupt):
            worker.work(order)
    (order.folder.evaluation).unlink()
    outcome = worker.work(with_checkpoints(order))
    assert outcome.status == "finished", outcome.message
    assert order.folder.recorded_recipe().training.checkpoint_every == 0
    assert outcome.measured["energy_kilowatt_hours"] is None
    assert "stopped and went on" in outcome.measured["energy_source"]


def _kept(orders):
    """Return an engine that keeps the orders and stops."""

    def engine(given, console):
        orders.extend(given)
        raise KeyboardInterrupt

    return engine


def test_a_folder_takes_one_comparison_at_a_time(llama, pairs, tmp_path):
    second = {}

    def engine(orders, console):
        with pytest.raises(InputError, match="out' is being worked on by process"):
            compared(llama, pairs, tmp_path / "out", seeds=1)
        second["is"] = "refused"

    compared(llama, pairs, tmp_path / "out", seeds=1, engine=engine)
    assert second
    assert not list((tmp_path / "out").glob("*.lock"))


def test_sweep_runs_a_grid_of_any_fields(llama, pairs, tmp_path):
    fields = {"optimizer.learning_rate": [1e-4, 1e-2], "delta.rank": [1, 2]}
    made = compared(llama, pairs, tmp_path / "out", sweep=fields, seeds=1)
    sweep = made.record["sweep"]
    assert sweep["fields"] == list(fields)
    assert all(cell is not None for row in sweep["cells"] for cell in row)
    assert {run["kind"] for run in made.record["runs"]} == {"cell"}
    assert made.record["recipes"][0]["rank"] is None


def test_dry_run_writes_the_plan_and_runs_nothing(llama, pairs, tmp_path):
    engine, said = Here(), io.StringIO()
    console = Console(file=said, width=200)
    compared(llama, pairs, tmp_path / "out", dry_run=True, engine=engine, console=console, seeds=1)
    assert engine.done == []
    expected = json.loads((tmp_path / "out" / "plan.json").read_text())["expected"]["lora"]
    assert expected["steps"] > 1
    assert expected["seconds"] > 0
    assert expected["memory_bytes"] > 0
    assert "1 runs, about 0 minutes of training in all" in said.getvalue()
    assert "one seed: there are no intervals" in said.getvalue()


def test_a_classification_is_compared_with_calibration(tmp_path):
    encoder = model_folder(tmp_path / "bert", "bert", "sequence_classification")
    rows = rows_file(tmp_path / "rows.jsonl", classifications(80))
    made = compared(encoder, rows, tmp_path / "out", "efficientft")
    (one,) = made.record["recipes"]
    assert made.record["metric"] == "accuracy"
    assert 0 <= one["columns"]["calibration_error"]["mean"] <= 1
    assert "forgetting" not in one["columns"]
    assert any("could do before" in note or "no trained head" in note for note in one["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": "lorra"}, "recipe 'lorra' is not known"),
        ({"budget": "tokens=0"}, "above 0"),
        ({"budget": "tokens=10"}, "below one step in each of the 2 runs of 'lora'"),
        ({"seeds": 0}, "at least one"),
        ({"trials": 0}, "trials=0"),
        ({"engine": "rey"}, "engine 'rey' is not known"),
        ({"engine": "local", "address": "auto"}, "address 'auto' is of no use to engine 'local'"),
        ({"assignments": {"delta.rank": 2}}, "cannot be set for all recipes"),
        ({"sweep": {"delta.rnak": [1]}}, "key 'rnak' is not known: choose one of 'rank'"),
        ({"recipes": "lora,full", "sweep": {"delta.rank": [1]}}, "a sweep is of one recipe"),
        ({"forgetting": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"grid_intensity": -1.0}, "grid_intensity=-1.0 is not allowed"),
        ({"metric": "bleu"}, "recipe 'lora': .*bleu"),
    ],
)
def test_bad_input_stops_before_anything_runs(llama, pairs, tmp_path, options, message):
    engine = Here()
    with pytest.raises(InputError, match=message):
        compared(llama, pairs, tmp_path / "out", **{"engine": engine, **options})
    assert engine.done == []
    assert not (tmp_path / "out").exists()


def test_another_comparison_in_the_same_folder_is_refused(llama, pairs, tmp_path):
    compared(llama, pairs, tmp_path / "out", dry_run=True)
    with pytest.raises(InputError, match="holds another comparison: its recipes was"):
        compared(llama, pairs, tmp_path / "out", "full", dry_run=True)
    with pytest.raises(InputError, match="holds another comparison: its budget was"):
        compared(llama, pairs, tmp_path / "out", budget="tokens=5000", dry_run=True)
    other = rows_file(tmp_path / "other.jsonl", completions(60))
    with pytest.raises(InputError, match=r"keeps the parts of other data than .*other.jsonl"):
        compared(llama, other, tmp_path / "out", dry_run=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(InputError, match="is not empty and holds no comparison"):
        compared(llama, pairs, tmp_path / "other")


def test_what_is_measured_beside_is_the_same_for_all_runs(llama, pairs, tmp_path, monkeypatch):
    for_others = rows_file(tmp_path / "others.jsonl", completions(20))
    given = {"seeds": 1, "forgetting": str(for_others)}
    compared(llama, pairs, tmp_path / "out", dry_run=True, seeds=1)  # binds nothing beside
    made = compared(llama, pairs, tmp_path / "out", **given)
    assert made.record["data"] == str(pairs)
    with pytest.raises(InputError, match=r'its forgetting was ".* and is "" now'):
        compared(llama, pairs, tmp_path / "out", seeds=1)
    with pytest.raises(InputError, match=r"its grid_intensity was null and is 0\.5 now"):
        compared(llama, pairs, tmp_path / "out", grid_intensity=0.5, **given)
    engine = Here()
    monkeypatch.chdir(tmp_path)  # the same folder under another name
    again = compared(llama, pairs, "out", engine=engine, **given)
    assert again.record["recipes"] == made.record["recipes"]
    assert engine.done == []


def test_cells_with_larger_steps_take_fewer_of_them(llama, pairs, tmp_path):
    sizes = {"training.batch_size": [2, 4, 8]}
    made = compared(llama, pairs, tmp_path / "out", sweep=sizes, seeds=1, budget="tokens=3600")
    steps = [run["losses"][-1][0] for run in made.record["runs"]]
    assert steps[0] == 2 * steps[1]
    assert steps[1] // 2 == steps[2]
    # What was counted for the recipe itself is not what such a run takes.
    assert all(run["columns"]["flops"] is None for run in made.record["runs"])


def test_runs_in_processes_of_their_own_give_a_page(llama, pairs, tmp_path):
    made = compared(llama, pairs, tmp_path / "out", seeds=1, engine=one_after_another)
    (run,) = made.record["runs"]
    assert run["status"] == "finished", run["message"]
    for name in ("html", "csv", "tex"):
        assert (tmp_path / "out" / f"comparison.{name}").stat().st_size > 0
