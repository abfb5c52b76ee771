"""Every example of an offline task runs, here with few steps; whole ones are slow tests."""

import importlib.util
import inspect
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TASKS = sorted(
    path.stem for path in EXAMPLES.glob("*.py") if "def main(folder: Path" in path.read_text()
)
FEW = "train=32,validation=8,test=8"


def main_of(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_examples_cover_every_tuned_task():
    from deltatune.data.offline.known_tasks import known

    texts = " ".join((EXAMPLES / f"{name}.py").read_text() for name in TASKS)
    tuned = [name for name, task in known().items() if not task.is_pretraining]
    assert not [name for name in tuned if f'"deltatune/{name}"' not in texts]


@pytest.mark.parametrize("name", TASKS)
def test_example_runs_and_prints_its_scores(name, tmp_path, capsys):
    main = main_of(name)
    data = inspect.signature(main).parameters["data"].default
    main(tmp_path, data=f"{data}:{FEW}", steps=2)
    assert any(mark in capsys.readouterr().out for mark in ("->", "loss"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if name != "forgetting"])
def test_example_learns_its_task(name, tmp_path, capsys):
    main_of(name)(tmp_path)
    before, _, after = capsys.readouterr().out.splitlines()[0].rpartition(": ")[2].partition(" -> ")
    assert float(after) > float(before) + 0.1
