"""Tasks and bases as they are shown: from their declarations and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console
from safetensors.torch import load_file

from deltatune import offline_catalogue, readme_tables
from deltatune.errors import InputError
from tests.folders import our_line
from tests.offline import ECHO

Command = Callable[..., tuple[Any, str, str]]
pytestmark = pytest.mark.usefixtures("nano")


def shown(value: Any) -> str:
    console = Console(width=120, quiet=False)
    with console.capture() as captured:
        console.print(value)
    return captured.get()


def test_tasks_state_their_own_level(command: Command) -> None:
    code, out, _ = command("tasks", "--json")
    (task,) = json.loads(out)
    assert code == 0
    assert (task["name"], task["metric"], task["ceiling"]) == (
        "deltatune/echo",
        "right_animal",
        0.75,
    )
    assert [level["chance"] for level in task["levels"]] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert "1 to 3 (3)" in shown(offline_catalogue.tasks_table())


def test_task_shows_three_examples_of_the_level_asked_for(command: Command) -> None:
    code, out, _ = command("tasks", "echo:difficulty=1", "--json")
    task = json.loads(out)
    assert (code, task["chance"], task["difficulty"]) == (0, 1.0, 1)
    assert task["rows"] == [
        {"prompt": f"train {i}: a cat. Who?", "completion": " cat"} for i in range(3)
    ]
    page = shown(offline_catalogue.task_page("deltatune/echo"))
    assert "' hen'" in page, "the space that opens the completion is seen"
    assert "--model deltatune/nano --data deltatune/echo" in page


def test_page_of_images_tells_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = pytest.importorskip("PIL.Image")
    columns = {"image": [pictures.new("L", (8, 6))] * 2, "label": ["a", "b"]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    task = {**offline_catalogue.task("echo"), "columns": dict.fromkeys(columns, ""), "rows": rows}
    monkeypatch.setattr(offline_catalogue, "task", lambda name: task)
    assert "image of 8 x 6 pixels" in shown(offline_catalogue.task_page("echo"))


def test_unknown_task_is_one_line_with_the_nearest_names(command: Command) -> None:
    code, _, error = command("tasks", "ekko")
    line = "deltatune: offline task 'ekko' is not known: choose one of 'echo'"
    assert (code, our_line(error)) == (2, line)


def test_bases_are_read_from_their_files(nano: Path, command: Command) -> None:
    (base,) = json.loads(command("bases", "--json")[1])
    weights = load_file(nano / "model.safetensors")
    assert base["parameters"] == sum(weight.numel() for weight in weights.values())
    assert base["bytes"] == sum(path.stat().st_size for path in nano.iterdir())
    assert (base["name"], base["card"]) == ("deltatune/nano", "Made for a test.")
    (nano / "README.md").write_text(
        "---\na: b\n---\n# nano\n\nKnows Python 3.11's\nlibrary. More.\n"
    )
    assert offline_catalogue.bases()[0]["card"] == "Knows Python 3.11's library."
    assert "Knows Python" in command("bases")[1]


def test_names_end_the_list_of_recipes(command: Command) -> None:
    out = command("recipes")[1].splitlines()
    assert out[-2:] == [
        "offline tasks (deltatune tasks): deltatune/echo",
        "packaged bases (deltatune bases): deltatune/nano",
    ]


def test_readme_tables_are_filled_between_their_markers(tmp_path: Path) -> None:
    markers = "<!-- {0}: made by make table, checked by the tests -->\nold\n<!-- /{0} -->"
    text = readme_tables.filled(
        "\n".join(markers.format(name) for name in ("tasks", "bases")), tmp_path
    )
    assert "old" not in text
    row = f"| deltatune/echo | {ECHO.title} | completion | deltatune/nano | right_animal | 0.333 |"
    assert row in text
    assert "| deltatune/nano | " in text
    assert readme_tables.filled(text, tmp_path) == text


def test_page_of_a_task_refuses_its_wrong_options() -> None:
    with pytest.raises(InputError, match="difficulty of echo = 4 is not allowed"):
        offline_catalogue.task_page("echo:difficulty=4")
