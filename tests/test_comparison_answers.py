"""Generated answers: asked as training asks, scored by the task, beside the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from deltatune import planning, run_scores
from deltatune.base import load_base
from deltatune.comparison import answers
from deltatune.comparison.answers import Answer, Questions, questions
from deltatune.comparison.evaluation import Evaluation, lower_is_better
from deltatune.data.encoding import encode
from deltatune.data.loading import load
from deltatune.data.yardstick import by_metric
from deltatune.decoding.greedy import Continuation
from deltatune.errors import InputError
from deltatune.recipe import named
from deltatune.request import Request
from deltatune.run import finetune
from deltatune.run_folder import RunFolder
from tests.folders import classifications, completions, our_line
from tests.runs import SETTINGS

SHORT = {"training.steps": 1, "training.batch_size": 4}


def asked(data: Any, model: Path, **options: Any) -> Questions:
    examples = load(data)
    yardstick = examples.yardstick
    if yardstick is None:
        completion = examples.columns["completion"]
        yardstick = by_metric(
            "exact_match", examples.splits, task=examples.task, completion=completion
        )
    assert yardstick is not None
    base = load_base(model, task="completion")
    given: dict[str, Any] = {"split": "test", "max_length": 64, **options}
    return questions(examples, yardstick, base.model, base.tokenizer, **given)


def rows(prompts: list[str], columns: tuple[str, str]) -> dict[str, list[dict[str, str]]]:
    prompt, completion = columns
    made = [{prompt: text, completion: "the mat"} for text in prompts]
    return {"train": made, "test": made}


@pytest.mark.parametrize("columns", [("prompt", "completion"), ("question", "answer")])
def test_prompts_are_the_tokens_that_training_has_before_the_answer(
    llama: Path, columns: tuple[str, str]
) -> None:
    data = rows(["the cat ", "how many are left", "x"], columns)
    base = load_base(llama, task="completion")
    encoded = encode(load(data), base.tokenizer, max_length=64).splits["test"]
    trained = [
        [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label < 0]
        for row in encoded
    ]
    found = asked(data, llama)
    assert [list(prompt) for prompt in found.prompts] == trained
    # the longest known answer, its end token included, is all the room that an exact match needs
    assert found.new_tokens == max(
        len(row["input_ids"]) - len(prompt) for row, prompt in zip(encoded, trained, strict=True)
    )


def test_answers_are_the_text_behind_the_prompt_and_before_the_end(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(rows(["the cat ", "x"], ("question", "answer")), llama)
    words = found.tokenizer
    given: dict[str, Any] = {}

    def spoken(model: Any, prompts: Any, **options: Any) -> list[Continuation]:
        given.update(options)
        ids = [words(text, add_special_tokens=False)["input_ids"] for text in (" the mat", "")]
        return [Continuation(ids[0], math.log(0.25)), Continuation(ids[1], 0.0)]

    monkeypatch.setattr(answers, "greedy", spoken)
    model = load_base(llama, task="completion").model
    assert found.answers(model, batch_size=3) == [(" the mat", 0.25), ("", 1.0)]
    assert given["end_ids"] == {words.eos_token_id}
    assert (given["batch_size"], given["positions"]) == (3, 64)


def test_scores_stand_beside_the_loss_of_their_row(llama: Path) -> None:
    # The third prompt fills max_length: the encoded split has only four of the five rows.
    prompts = ["a", "b", "the cat sat on the mat and the dog sat on the log", "c", "d"]
    found = asked(rows(prompts, ("question", "answer")), llama, max_length=16, at_most=4)
    assert found.have_loss == [True, True, False, True]
    losses = tuple({"loss": float(i), "tokens": 2} for i in range(4))
    by_loss = Evaluation(split="test", items=losses, metrics={"loss": 0.75}, headline="loss")
    spoken = [Answer(text, 0.5) for text in ("the mat", "no", "the mat ", "")]
    scored = found.scored(by_loss, spoken)
    assert [item.get("score") for item in scored.items] == [1.0, 0.0, 1.0, 0.0, None]
    assert [item.get("confidence") for item in scored.items] == [0.5, 0.5, 0.5, 0.5, None]
    assert [item["loss"] for item in scored.items] == [0.0, 1.0, 0.0, 2.0, 3.0]
    assert [item["tokens"] for item in scored.items] == [2, 2, 0, 2, 2]
    assert scored.metrics == {"exact_match": 0.5, "scored_answers": 4.0, "loss": 0.75}


def test_few_prompts_without_room_are_wrong_and_many_are_refused(llama: Path) -> None:
    prompts = ["the cat"] * 9 + ["how many apples " * 30]
    found = asked(rows(prompts, ("question", "answer")), llama)
    assert found.have_room == [True] * 9 + [False]
    assert found.notes[1] == (
        "1 of 10 prompts of test leave no room for their answer within the 64 positions of the "
        "model and count as wrong"
    )
    by_loss = Evaluation(
        split="test", items=({"loss": 0.0, "tokens": 1},) * 9, metrics={}, headline="loss"
    )
    scored = found.scored(by_loss, [Answer("the mat", 0.5)] * 10)
    assert scored.metrics["exact_match"] == 0.9
    assert [item["confidence"] for item in scored.items] == [0.5] * 9 + [None]
    with pytest.raises(InputError, match=r"2 of 11 prompts of test leave no room .* --metric loss"):
        asked(rows([*prompts, prompts[-1]], ("question", "answer")), llama)


def test_run_on_an_offline_task_shows_its_metric_between_chance_and_ceiling(
    nano: Path, tmp_path: Path
) -> None:
    run = finetune("deltatune/nano", "deltatune/echo", output=tmp_path / "run", assignments=SHORT)
    result = json.loads((run.folder / "evaluation.json").read_text())
    for scores in (result["before"], result["after"]):
        assert (scores["headline"], scores["higher_is_better"]) == ("right_animal", True)
        assert scores["metrics"]["scored_answers"] == 6
        assert scores["split"] == "test"
        assert all(
            item.keys() == {"score", "generated", "confidence", "loss", "tokens"}
            for item in scores["items"]
        )
        assert scores["chance"] == pytest.approx(1 / 3)
    report = (run.folder / "report.html").read_text()
    assert "chance 0.3333, ceiling 0.75" in report
    assert "loss" in run.after


def test_trained_model_answers_what_it_was_taught(llama: Path, tmp_path: Path) -> None:
    data = rows([f"how many are {i}" for i in range(8)], ("question", "answer"))
    settings = {"training.epochs": 30, "training.batch_size": 8, "optimizer.learning_rate": 1e-2}
    run = finetune(
        llama, data, "full", output=tmp_path / "run", assignments=settings, metric="exact_match"
    )
    assert run.before["exact_match"] == 0.0
    assert run.after["exact_match"] == 1.0
    result = json.loads((run.folder / "evaluation.json").read_text())
    assert {item["generated"] for item in result["after"]["items"]} == {"the mat"}
    recorded = json.loads((run.folder / "environment.json").read_text())["inputs"]
    assert recorded["metric"] == "exact_match"


def test_untrained_prefix_takes_no_part_in_the_answers_before(llama: Path, tmp_path: Path) -> None:
    """A prefix acts from its random start on; what is scored before is the base."""
    data = rows(["the cat", "x"], ("question", "answer"))
    request = Request(model=llama, data=data, metric="exact_match")
    made = planning.plan(request, named("prefix_tuning"), Console(quiet=True))
    assert made.questions is not None
    base = load_base(llama, task="completion").model
    plain = made.questions.answers(base, batch_size=2)
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            if "prompt_encoder" in name:
                torch.nn.init.normal_(weight, std=3.0)
    tuned = made.questions.answers(made.model, batch_size=2)
    assert tuned != plain
    before = run_scores.before(made, RunFolder(tmp_path))
    assert [item["generated"] for item in before["items"]] == [one.text for one in plain]
    assert made.questions.answers(made.model, batch_size=2) == tuned


@pytest.mark.parametrize(
    ("data", "metric", "message"),
    [
        (completions(24), "exact", "metric 'exact' is not known: choose one of 'exact_match'"),
        (
            classifications(40),
            "exact_match",
            "metric 'exact_match' is for data of the task completion, and the data's task is "
            "classification: leave the metric out",
        ),
        (completions(24), "final_number", "has no number in its completion"),
    ],
)
def test_metric_that_does_not_fit_is_refused_by_name(data: Any, metric: str, message: str) -> None:
    examples = load(data)
    with pytest.raises(InputError, match=message):
        Request(model="any", data=data, metric=metric).yardstick(examples)


def test_metric_of_the_task_gives_way_to_the_user_s(nano: Path) -> None:
    examples = load("deltatune/echo")

    def chosen(metric: str) -> Any:
        request = Request(model="deltatune/nano", data="deltatune/echo", metric=metric)
        return request.yardstick(examples)

    assert chosen("") is chosen("right_animal") is examples.yardstick
    assert chosen("loss") is None
    assert chosen("exact_match").score(" cat\n", {"reply": " cat"}) == 1.0


def test_command_line_takes_a_metric(
    command: Callable[..., tuple[Any, str, str]], llama: Path, pairs: Path, tmp_path: Path
) -> None:
    given = ("--model", llama, "--data", pairs, "--output", tmp_path / "run", "--metric")
    code, _, error = command("train", *given, "final")
    assert code == 2
    assert our_line(error).startswith("deltatune: metric 'final' is not known: choose one of 'fi")


def test_resume_takes_the_recorded_answers(llama: Path, pairs: Path, tmp_path: Path) -> None:
    request = Request(model=llama, data=pairs, metric="exact_match")
    recipe = named("lora", {key: value for key, value in SETTINGS.items()})
    made = planning.plan(request, recipe, Console(quiet=True))
    folder = RunFolder(tmp_path)
    first = run_scores.before(made, folder)
    recorded = json.loads(folder.evaluation.read_text())
    recorded["before"]["metrics"]["exact_match"] = 0.125
    folder.evaluation.write_text(json.dumps(recorded))
    assert first["metrics"]["exact_match"] == 0.0
    assert run_scores.before(made, folder)["metrics"]["exact_match"] == 0.125


def test_of_metrics_only_losses_are_better_when_lower() -> None:
    names = ("loss", "perplexity", "mean_squared_error", "exact_match", "accuracy", "pearson")
    assert [name for name in names if lower_is_better(name)] == list(names[:3])
