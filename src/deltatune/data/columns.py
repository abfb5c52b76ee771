"""Column names in, roles out: known names first, then the only one that fits, then a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets

from deltatune.data.images import is_image_column
from deltatune.data.tasks import TASKS
from deltatune.errors import InputError, unknown_name

__all__ = ["LITERAL", "ROLES", "assign_roles"]

ROLES = (
    "image", "text", "second_text", "label", "prompt", "context", "completion", "messages",
)  # fmt: skip

# Tiers: a name of an earlier tier wins; two names of one tier are a question for the user.
LABELS = (
    ("label", "labels"),
    (
        "class",
        "target",
        "category",
        "score",
        "rating",
        "stars",
        "sentiment",
        "intent",
        "gold_label",
    ),
)
TEXTS = (
    ("text",),
    ("sentence",),
    ("content", "review", "document", "body", "comment", "tweet", "utterance", "message", "code"),
)
IMAGES = (("image", "images"), ("img", "picture", "photo"))
MESSAGES = (("messages",), ("conversations", "conversation"), ("dialog", "dialogue"))
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "second_text"),
    ("text", "text_pair"),
    ("question", "sentence"),
    ("question", "passage"),
)
COMPLETIONS = (  # prompt, context (added to the prompt where it is not empty), completion
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("prompt", "", "answer"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("instruction", "", "output"),
    ("instruction", "", "response"),
    ("question", "", "answer"),
    ("question", "", "response"),
    ("query", "", "response"),
    ("input", "", "output"),
    ("source", "", "target"),
    ("meaning_representation", "", "reference"),
    ("document", "", "summary"),
    ("article", "", "highlights"),
    ("dialogue", "", "summary"),
)
LITERAL = ("prompt", "completion")  # under these names the texts follow each other without a break


def assign_roles(
    features: datasets.Features, given: Mapping[str, str] | None, task: str | None
) -> tuple[str | None, dict[str, str]]:
    """Decide which column plays which role, and the task where the roles tell it.

    Args:
        features: the columns of the training split.
        given: role -> column, as the user said; wins over every guess.
        task: a name of `tasks.TASKS`, or None to guess it.

    Returns:
        The task (None where a label column leaves classification or regression open) and the roles.

    Raises:
        InputError: a name is unknown, or the columns leave more than one reading.
    """
    given = dict(given or {})
    if task is not None and task not in TASKS:
        raise unknown_name("task", task, TASKS)
    for role, column in given.items():
        if role not in ROLES:
            raise unknown_name("column role", role, ROLES)
        if column not in features:
            raise unknown_name("column", column, features)
    kind = task or _task_of_roles(features, given)
    if kind is None:
        kind, guessed = _guess_task(features, given)
    else:
        guessed = _guess_for(kind, features, given)
    allowed = TASKS[kind].roles + TASKS[kind].optional
    for role in given:
        if role not in allowed:
            raise InputError(
                f"role {role!r} does not belong to task {kind!r}: it has {', '.join(allowed)}"
            )
    merged = {**guessed, **given}
    roles = {role: merged[role] for role in ROLES if role in merged}
    is_open = task is None and kind == "classification"
    return (None if is_open else kind), roles


def _task_of_roles(features: datasets.Features, given: Mapping[str, str]) -> str | None:
    if "image" in given or (given.keys() == {"label"} and _reads_images(features)):
        return "image_classification"
    if "messages" in given:
        return "chat"
    if given.keys() & {"prompt", "completion", "context"}:
        return "completion"
    return "classification" if given.keys() & {"label", "second_text"} else None


def _guess_task(
    features: datasets.Features, given: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Read the columns as the first task that fits: images, chat, completion, classes, texts.

    The only role that can be given here is the text, which ends the first three readings.
    """
    if not given and _reads_images(features):
        return "image_classification", _guess_labelled_images(features, given)
    messages = {} if given else _guess_messages(features)
    if messages:
        return "chat", messages
    label = _from_tiers("label", LABELS, list(features))
    completion = {} if given else _guess_completion(features)
    if completion and label and label.lower() in LABELS[0]:
        raise InputError(
            f"columns {', '.join(features)} can be read as prompt and completion or as text and "
            "label: give the task, completion or classification"
        )
    if completion:
        return "completion", completion
    if label:
        return "classification", _guess_labelled(features, {**given, "label": label})
    return "text", _guess_text(features, given)


def _guess_for(task: str, features: datasets.Features, given: Mapping[str, str]) -> dict[str, str]:
    if task == "chat":
        guessed = _guess_messages(features)
    elif task == "completion":
        guessed = _guess_completion(features)
        if given:  # a context belongs to the guessed prompt, not to the one the user names
            guessed.pop("context", None)
    elif task == "text":
        guessed = _guess_text(features, given)
    elif TASKS[task].reads == "image":
        guessed = _guess_labelled_images(features, given)
    else:
        guessed = _guess_labelled(features, given)
    for role in TASKS[task].roles:
        if role not in given and role not in guessed:
            raise _unclear(role, list(features))
    return guessed


def _reads_images(features: datasets.Features) -> bool:
    """Tell whether there is a column of images and none that is known to be the text."""
    has_images = any(is_image_column(features[name]) for name in features)
    known = {name for tier in TEXTS for name in tier}
    texts = [name for name in _texts(features) if name.lower() in known]
    if has_images and texts:
        raise InputError(
            f"columns {', '.join(features)} hold images and {texts[0]}: give the task, "
            "image_classification or another"
        )
    return has_images


def _guess_labelled_images(features: datasets.Features, given: Mapping[str, str]) -> dict[str, str]:
    label = given.get("label") or _from_tiers("label", LABELS, list(features))
    if label is None:
        raise _unclear("label", list(features))
    if "image" in given:
        return {"label": label}
    images = [name for name in features if is_image_column(features[name])]
    image = _from_tiers("image", IMAGES, images) or _from_tiers("image", IMAGES, list(features))
    if image is None and len(images) == 1:
        image = images[0]
    if image is None:
        raise _unclear("image", list(features))
    return {"image": image, "label": label}


def _guess_messages(features: datasets.Features) -> dict[str, str]:
    nested = [name for name in features if _is_list_of_objects(features[name])]
    name = _from_tiers("messages", MESSAGES, nested)
    return {"messages": name} if name else {}


def _is_list_of_objects(feature: object) -> bool:
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list) and len(feature) == 1:
        inner = feature[0]
    return isinstance(inner, dict)


def _guess_completion(features: datasets.Features) -> dict[str, str]:
    for prompt, context, completion in COMPLETIONS:
        if all(name in features for name in (prompt, context, completion) if name):
            roles = {"prompt": prompt, "context": context, "completion": completion}
            return {role: name for role, name in roles.items() if name}
    return {}


def _guess_labelled(features: datasets.Features, given: Mapping[str, str]) -> dict[str, str]:
    label = given.get("label") or _from_tiers("label", LABELS, list(features))
    if label is None:
        raise _unclear("label", list(features))
    left = [name for name in _texts(features) if name not in (label, *given.values())]
    if "text" in given:
        return {"label": label}
    for first, second in TEXT_PAIRS:
        if "second_text" not in given and first in left and second in left:
            return {"label": label, "text": first, "second_text": second}
    return {"label": label, **_guess_text(features, {**given, "label": label})}


def _guess_text(features: datasets.Features, given: Mapping[str, str]) -> dict[str, str]:
    if "text" in given:
        return {}
    left = [name for name in _texts(features) if name not in given.values()]
    name = _from_tiers("text", TEXTS, left)
    if name is None and len(left) == 1:
        name = left[0]
    if name is None:
        raise _unclear("text", list(features))
    return {"text": name}


def _texts(features: datasets.Features) -> list[str]:
    kinds = ("string", "large_string")
    return [name for name in features if getattr(features[name], "dtype", None) in kinds]


def _from_tiers(role: str, tiers: Sequence[Sequence[str]], columns: Sequence[str]) -> str | None:
    for tier in tiers:
        found = [name for name in columns if name.lower() in tier]
        if len(found) > 1:
            raise _unclear(role, columns, found)
        if found:
            return found[0]
    return None


def _unclear(role: str, columns: Sequence[str], found: Sequence[str] = ()) -> InputError:
    if found:
        reason = f"the columns {' and '.join(found)} could each be the {role}"
    else:
        reason = f"no column is known to be the {role}; there are {', '.join(columns) or 'none'}"
    example = found[0] if found else (columns[0] if columns else "NAME")
    return InputError(f"{reason}: say which, for example --column {role}={example}")
