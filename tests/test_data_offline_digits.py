from __future__ import annotations

import pytest
import torch

from deltatune.data.offline import digit_scans, known_tasks
from deltatune.data.offline.digits import TASK as FIVE_TO_NINE
from deltatune.data.offline.digits import _disturbed
from deltatune.data.offline.digits_seen import TASK as ZERO_TO_FOUR
from deltatune.errors import InputError
from deltatune.seeds import generator_for


def test_scans_are_all_different_and_within_ink():
    ink, digits = digit_scans.scans()
    assert ink.shape == (1797, 8, 8)
    assert len(ink.flatten(1).unique(dim=0)) == 1797  # so that a scan in one split leaks nowhere
    assert (float(ink.min()), float(ink.max())) == (0.0, 1.0)
    assert digits.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("task", [FIVE_TO_NINE, ZERO_TO_FOUR])
def test_every_split_has_the_digits_alike_and_each_scan_once(task):
    splits = task.load()
    used = [number for split in splits for number in splits[split]["scan"]]
    assert len(used) == len(set(used)) == sum(task.sizes.values())
    for split in splits:
        counts = torch.tensor(splits[split]["label"][:]).bincount()
        assert int(counts.max() - counts.min()) <= 1
    chance = task.level().chance
    assert int(torch.tensor(splits["test"]["label"][:]).bincount().max()) == pytest.approx(
        chance * task.sizes["test"]
    )


def test_labels_name_the_digits_of_the_scans():
    digits = digit_scans.scans()[1]
    for task, first in ((FIVE_TO_NINE, 5), (ZERO_TO_FOUR, 0)):
        rows = task.load(train=10, validation=2, test=5)["train"]
        assert rows.features["label"].names == [str(digit) for digit in range(first, first + 5)]
        for label, number in zip(rows["label"], rows["scan"], strict=True):
            assert int(digits[number]) == first + label


def test_test_split_of_what_was_seen_is_always_what_the_base_never_saw():
    unseen = {number for digit in range(5) for number in digit_scans.held_out(digit)[1]}
    assert len(unseen) == 5 * digit_scans.HELD_OUT
    for seed in (0, 7):
        splits = ZERO_TO_FOUR.load(seed=seed)
        assert set(splits["test"]["scan"]) == unseen
        assert not unseen & {*splits["train"]["scan"], *splits["validation"]["scan"]}


def test_first_level_shows_scans_as_they_are():
    row = FIVE_TO_NINE.load(train=2, validation=2, test=2, difficulty=1)["train"][0]
    ink = digit_scans.scans()[0][row["scan"]]
    assert list(row["image"].tobytes()) == (ink * 255).round().int().flatten().tolist()


def test_disturbed_scan_moves_by_a_pixel_at_most_and_gets_noise():
    scan = torch.zeros(8, 8)
    scan[4, 4] = 1
    places = set()
    for number in range(40):
        changed = _disturbed(scan, generator_for(0, "test", number), 2)
        row, column = divmod(int(changed.argmax()), 8)
        places.add((row, column))
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    # The standard deviation of 64 numbers spreads by 0.3 / sqrt(128); three times that.
    noisy = _disturbed(torch.zeros(8, 8), generator_for(0, "test"), 3)
    assert float(noisy.std()) == pytest.approx(0.3, abs=0.08)


def test_too_many_scans_are_refused_with_the_number_there_are():
    with pytest.raises(InputError, match="train=501 is not allowed: digits-5-9 has 500 scans"):
        FIVE_TO_NINE.load(train=501)
    with pytest.raises(InputError, match="test=296 is not allowed: digits-0-4 has 295 scans"):
        ZERO_TO_FOUR.load(test=296)


def test_digits_say_what_to_install_without_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    digit_scans.scans.cache_clear()
    monkeypatch.setattr(digit_scans.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install deltatune\[demo\]"):
        known_tasks.load("deltatune/digits-5-9")
