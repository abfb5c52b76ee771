"""The gate stops where the wrong tokens would be trained, and tells the rest."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from deltatune.data.encoding import encode
from deltatune.data.loading import load
from deltatune.data.showing import show_example
from deltatune.data.supervision import RoleCount, SplitSupervision, Supervision
from deltatune.errors import InputError
from tests.trained_tokenizers import byte_level


def supervision_of(rows: Any, **options: Any) -> Supervision:
    examples = load(rows, validation_fraction=0)
    return encode(examples, byte_level(), **{"max_length": 64, **options}).supervision


def completion_counts(prompt: int, completion: int, **others: int) -> Supervision:
    counts = SplitSupervision(
        examples=100,
        tokens=100,
        supervised_tokens=prompt + completion,
        roles={
            "prompt": RoleCount(tokens=60, supervised=prompt),
            "completion": RoleCount(tokens=40, supervised=completion),
        },
        **others,
    )
    return Supervision(task="completion", max_length=64, splits={"train": counts})


def printed(renderable: Any) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_share_is_completion_and_end_over_all_tokens() -> None:
    counts = supervision_of([{"prompt": "ab", "completion": "xyz"}]).splits["train"]
    # <s> a b | x y z </s>
    assert counts.roles == {
        "prompt": RoleCount(tokens=3, supervised=0),
        "completion": RoleCount(tokens=4, supervised=4),
    }
    assert counts.supervised_share == 4 / 7
    assert counts.end_tokens == {"</s>": 1}


@pytest.mark.parametrize(
    ("supervision", "fault"),
    [
        (completion_counts(0, 0), "no token of train carries loss"),
        (completion_counts(60, 40), "every token of train carries loss, prompts too"),
        (completion_counts(0, 40, turns=3, unterminated_turns=1), "1 of 3 turns of train end"),
        (completion_counts(0, 40, unsupervised=2), "2 of 102 train examples have no supervised"),
        (
            completion_counts(0, 40, doubled=1, doubled_row=7),
            "1 train examples (the first is row 7)",
        ),
    ],
)
def test_check_refuses_each_fault(supervision: Supervision, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        supervision.check()
    assert str(caught.value).startswith(fault)


@pytest.mark.parametrize("unsupervised", [0, 1])
def test_check_passes_up_to_one_lost_example_in_a_hundred(unsupervised: int) -> None:
    completion_counts(0, 40, unsupervised=unsupervised).check()


def test_prompt_longer_than_the_limit_leaves_the_example_out_and_is_refused() -> None:
    rows = [{"prompt": "x" * 40, "completion": "y"}, {"prompt": "x", "completion": "y"}]
    supervision = supervision_of(rows, max_length=16)
    assert supervision.splits["train"].examples == 1
    with pytest.raises(InputError, match=r"at max_length=16: raise it \(the longest needs 43\)"):
        supervision.check()


@pytest.mark.parametrize(
    ("rows", "token"),
    [
        ([{"prompt": "<s>ab", "completion": "c"}], "<s>"),
        ([{"prompt": "ab", "completion": "c</s>"}], "</s>"),
        ([{"text": "fine"}, {"text": "<s>ab"}], "<s>"),
    ],
)
def test_doubled_special_token_is_refused(rows: list[dict[str, str]], token: str) -> None:
    supervision = supervision_of(rows)
    with pytest.raises(InputError, match=rf"row {len(rows)}\) open or close with '{token}' twice"):
        supervision.check()


def test_notes_tell_cut_examples_and_padding() -> None:
    rows = [{"prompt": "x", "completion": "y" * 40}, {"prompt": "x", "completion": "y"}]
    notes = supervision_of(rows, max_length=16).notes
    assert "1 of 2 train examples are cut at max_length=16; the longest has 43" in notes
    assert any(note.startswith("no pad token: padding is '</s>'") for note in notes)


def test_notes_tell_examples_beyond_what_the_tokenizer_states() -> None:
    tokenizer = byte_level(pads=True)
    tokenizer.model_max_length = 12
    examples = load([{"prompt": "x", "completion": "y" * 40}], validation_fraction=0)
    notes = encode(examples, tokenizer, max_length=64).supervision.notes
    assert notes == (
        "examples have up to 43 tokens, but the tokenizer states 12 as its model's most",
    )


def test_notes_tell_classes_that_a_split_never_shows() -> None:
    train = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    supervision = supervision_of({"train": train, "test": train[:1]})
    assert "test never shows 'y'" in supervision.notes


def test_dictionary_survives_json() -> None:
    supervision = supervision_of([{"prompt": "ab", "completion": "xyz"}])
    plain = json.loads(json.dumps(supervision.to_dict()))
    assert plain["splits"]["train"]["supervised_share"] == 4 / 7
    assert plain["splits"]["train"]["roles"]["prompt"] == {"tokens": 3, "supervised": 0}
    assert plain["notes"] == list(supervision.notes)


def test_table_shows_roles_with_their_share() -> None:
    shown = printed(supervision_of([{"prompt": "ab", "completion": "xyz"}]).table())
    assert [cell.strip() for cell in line_with(shown, "all")] == [
        "train",
        "1",
        "0",
        "7",
        "all",
        "7",
        "57.1 %",
    ]
    assert [cell.strip() for cell in line_with(shown, "prompt")][-2:] == ["3", "0.0 %"]


def test_table_of_roles_fits_eighty_columns_with_every_word_whole() -> None:
    counts = completion_counts(0, 40, longest=1024, truncated=100).splits["train"]
    splits = {"train": counts, "validation": counts}
    supervision = Supervision(task="completion", max_length=1024, splits=splits)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(supervision.table())
    assert "…" not in console.export_text()


def test_table_of_a_labelled_task_shows_classes_in_order() -> None:
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate("bab")]
    shown = printed(supervision_of(rows).table())
    assert [cell.strip() for cell in line_with(shown, "a")][-2:] == ["1", "33.3 %"]
    assert shown.index("33.3 %") < shown.index("66.7 %")


def line_with(shown: str, word: str) -> list[str]:
    lines = [line.strip("│").split("│") for line in shown.splitlines() if line.startswith("│")]
    return next(cells for cells in lines if cells[4].strip() == word)


def test_shown_example_marks_what_carries_loss_in_text_and_colour() -> None:
    examples = load([{"prompt": "ab", "completion": "xyz"}], validation_fraction=0)
    tokenizer = byte_level()
    shown = show_example(encode(examples, tokenizer, max_length=64), tokenizer)
    assert shown.plain == "<s>ab⟦xyz</s>⟧"
    assert [(span.start, span.end, span.style) for span in shown.spans] == [
        (0, 5, "dim"),
        (5, 14, "bold green"),
    ]


def test_shown_labelled_example_ends_with_its_label() -> None:
    rows = [{"text": "ab", "label": "good"}, {"text": "cd", "label": "bad"}]
    numbers = [{"text": "ab", "label": 0.5}, {"text": "cd", "label": 1.5}]
    tokenizer = byte_level()
    for data, expected in ((rows, "<s>ab ⟦good⟧"), (numbers, "<s>ab ⟦0.5⟧")):
        encoded = encode(load(data, validation_fraction=0), tokenizer, max_length=64)
        assert show_example(encoded, tokenizer).plain == expected
