"""The scores of a run: before training, after it, and whether the model fell to a constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from deltatune.comparison.evaluation import (
    Evaluation,
    evaluate,
    is_constant_prediction,
    label_entropy,
)
from deltatune.errors import Diverged, InputError
from deltatune.files import write_json_atomically
from deltatune.plan import Plan
from deltatune.run_folder import RunFolder

__all__ = ["after", "before", "collapse"]

EVALUATED_AT_MOST = 2000
COLLAPSED_FROM_STEPS = 60  # a shorter run may only not have learnt yet


def before(
    plan: Plan, folder: RunFolder, known: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Score the untrained model, or take the scores that an interrupted or an equal run has.

    Raises:
        InputError: the model refuses the examples, or gives no finite numbers on them.
    """
    if folder.evaluation.is_file():
        recorded: Mapping[str, Any] = folder.read(folder.evaluation)["before"]
        return recorded
    if known is not None:
        write_json_atomically(folder.evaluation, {"before": known})
        return known
    try:
        with plan.carrier.disabled(plan.model):  # a prefix acts from its random start on
            scores = _evaluate(plan)
    except ValueError as error:  # how models of transformers refuse inputs that they cannot take
        raise InputError(
            f"model {plan.inputs['model']!r} refuses the examples of {plan.evaluated_split}: "
            f"{' '.join(str(error).split()).rstrip('.')}: check that its "
            f"tokenizer or image processor belongs to it"
        ) from error
    for name, value in scores.not_finite().items():
        raise InputError(
            f"before training the model's {name} on {scores.split} is {value}: its weights are "
            f"broken, or too large for training.precision={plan.recipe.training.precision}; check "
            f"the checkpoint"
        )
    write_json_atomically(folder.evaluation, {"before": scores.to_dict()})
    return scores.to_dict()


def after(plan: Plan) -> Evaluation:
    """Score the trained model.

    Raises:
        Diverged: its scores are no finite numbers.
    """
    scores = _evaluate(plan)
    for name, value in scores.not_finite().items():
        raise Diverged(
            f"after the last step the model's {name} on {scores.split} is {value}: lower "
            f"optimizer.learning_rate={plan.recipe.optimizer.learning_rate:g}, for example by half"
        )
    return scores


def _evaluate(plan: Plan) -> Evaluation:
    autocast = plan.recipe.training.precision == "bfloat16"
    batch_size = plan.recipe.training.batch_size
    scores = evaluate(
        plan.model,
        plan.encoded.splits[plan.evaluated_split],
        plan.collate,
        task=plan.encoded.task,
        split=plan.evaluated_split,
        batch_size=batch_size * (1 if plan.keeps_all_logits else 4),
        at_most=EVALUATED_AT_MOST,
        autocast=autocast,
    )
    if plan.questions is not None:  # of the last token only there are logits
        answers = plan.questions.answers(plan.model, batch_size=4 * batch_size, autocast=autocast)
        scores = plan.questions.scored(scores, answers)
    if plan.yardstick is None:
        return scores
    return dataclasses.replace(
        scores,
        headline=plan.yardstick.metric,
        chance=plan.yardstick.chance,
        ceiling=plan.yardstick.ceiling,
    )


def collapse(plan: Plan, steps: int, scores: Evaluation) -> str:
    """Say how a run ended as a constant predictor: its answers say so, and so does its loss.

    The guard during training compares with ln C, which a fall to the majority class of unbalanced
    labels stays below. Here the measure is the loss of the best constant predictor on the very
    examples that were scored, the entropy of their labels.

    Returns:
        One line if every example got one class, at a loss that reading none of them would give;
        else an empty string.
    """
    if steps < COLLAPSED_FROM_STEPS or not is_constant_prediction(scores):
        return ""
    constant = label_entropy(scores)
    if scores.metrics["loss"] <= 0.99 * constant:
        return ""
    return (
        f"after {steps} steps the model gives every example the same class, at a loss of "
        f"{scores.metrics['loss']:.3f} where the best constant gives {constant:.3f}: lower "
        f"optimizer.learning_rate={plan.recipe.optimizer.learning_rate:g}, for example by half; "
        f"if the loss in metrics.jsonl was still falling, train longer"
    )
