"""A comparison that went on elsewhere says so."""

from __future__ import annotations

import json

from deltatune.comparison.environment import environment
from deltatune.comparison.run_conditions import differing_conditions
from deltatune.run_folder import RunFolder


def folder(path, *, base="f", **changed):
    path.mkdir()
    recorded = {"inputs": {"model_fingerprint": base}, **environment(), **changed}
    (path / "environment.json").write_text(json.dumps(recorded))
    return RunFolder(path)


def test_runs_under_the_same_conditions_need_no_note(tmp_path):
    runs = [folder(tmp_path / "a"), folder(tmp_path / "b", date="later", command="another")]
    assert differing_conditions([runs]) == []
    assert differing_conditions([[RunFolder(tmp_path / "not there")]]) == []


def test_runs_with_other_versions_or_threads_are_told(tmp_path):
    runs = [folder(tmp_path / "a"), folder(tmp_path / "b", threads=99, packages={"torch": "0"})]
    (note,) = differing_conditions([runs])
    assert note.startswith("not all runs had the same packages, threads: their times")


def test_runs_on_a_changed_model_are_told(tmp_path):
    runs = [folder(tmp_path / "a"), folder(tmp_path / "b", base="g")]
    (note,) = differing_conditions([runs])
    assert "began from different weights" in note
    # Two recipes may load one base in two precisions.
    assert differing_conditions([[run] for run in runs]) == []
