"""Does a repaired function pass its own doctest? Runs generated code, so only when asked."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from deltatune.data.offline.bug_repair import repaired_function
from deltatune.data.offline.standard_library import parsed

__all__ = ["passes_doctest"]

SECONDS = 10.0
# Runs in a Python of its own: the function replaces the original among the names of its module.
SCRIPT = """
import doctest, importlib, json, sys
job = json.load(sys.stdin)
names = dict(vars(importlib.import_module(job["module"])))
exec(compile(job["source"], "<repaired>", "exec"), names)
test = doctest.DocTestParser().get_doctest(job["doctest"], names, job["name"], None, 0)
runner = doctest.DocTestRunner(verbose=False)
runner.run(test, out=lambda text: None)
sys.exit(1 if runner.failures else 0)
"""


def passes_doctest(text: str, row: Mapping[str, Any], *, seconds: float = SECONDS) -> bool:
    """Tell whether an answer makes the function parse, and pass its doctest where it has one.

    This runs generated code on your machine, and no score calls it: call it only if you would run
    that code yourself. It runs as you, in another Python process (`python -I`) with an empty
    working folder and a time limit, which guards against accidents and not against malice.

    Few functions have a doctest; for the others, this tells only whether the answer parses. A
    doctest may fail for the original too, where it needs what the module's names do not hold.

    Args:
        text: what was generated.
        row: a row of bug repair.
        seconds: after which a run counts as failed.
    """
    source = repaired_function(text, row)
    tree = parsed(source)
    if tree is None or len(tree.body) != 1:
        return False
    if not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return not row["doctest"] or _runs(source, row, seconds)


def _runs(source: str, row: Mapping[str, Any], seconds: float) -> bool:
    module = row["path"].removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    job = {"module": module, "source": source, "doctest": row["doctest"], "name": row["name"]}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", SCRIPT],
                input=json.dumps(job),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0
