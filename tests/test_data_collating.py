"""Batches are padded on the right; what is padding is told by the mask, not by the id."""

from __future__ import annotations

import pickle

import torch

from deltatune.data.collating import Collator
from tests.trained_tokenizers import byte_level

END, PAD = 1, 2  # ids of </s> and <pad> in the trained tokenizers


def test_batch_is_padded_to_its_longest_row() -> None:
    features = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8], "labels": [8]},
    ]
    batch = Collator(byte_level(pads=True))(features)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_real_end_tokens_keep_their_loss_when_the_end_token_pads() -> None:
    features = [
        {"input_ids": [5, 6, END], "labels": [-100, 6, END]},
        {"input_ids": [END], "labels": [END]},
    ]
    batch = Collator(byte_level())(features)
    assert batch["input_ids"].tolist() == [[5, 6, END], [END, END, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, END], [END, -100, -100]]


def test_labels_of_classes_are_integers_and_of_numbers_float32() -> None:
    collate = Collator(byte_level())
    classes = collate([{"input_ids": [5], "labels": 1}, {"input_ids": [5], "labels": 0}])
    numbers = collate([{"input_ids": [5], "labels": 0.5}, {"input_ids": [5], "labels": 2.0}])
    assert (classes["labels"].tolist(), classes["labels"].dtype) == ([1, 0], torch.int64)
    assert (numbers["labels"].tolist(), numbers["labels"].dtype) == ([0.5, 2.0], torch.float32)


def test_token_types_are_padded_and_other_fields_left_out() -> None:
    features = [
        {"input_ids": [5, 6], "token_type_ids": [0, 1], "labels": 1, "row": 0},
        {"input_ids": [5], "token_type_ids": [1], "labels": 0, "row": 1},
    ]
    batch = Collator(byte_level())(features)
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}


def test_rows_without_labels_make_a_batch_without_labels() -> None:
    assert "labels" not in Collator(byte_level())([{"input_ids": [5]}])


def test_collator_reaches_the_workers_of_a_data_loader() -> None:
    copy = pickle.loads(pickle.dumps(Collator(byte_level(pads=True))))
    assert copy([{"input_ids": [5]}, {"input_ids": [5, 6]}])["input_ids"][0].tolist() == [5, PAD]
