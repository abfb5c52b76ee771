"""The standard library as text: decoded as declared, machine files left out, one in 20 held out."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from deltatune.data.offline.standard_library import (
    check_enough,
    is_held_out,
    parsed,
    read_source,
    source_paths,
)
from deltatune.errors import InputError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_read_source_decodes_as_the_file_declares(library: Path) -> None:
    write(library / "latin.py", b"# -*- coding: latin-1 -*-\r\nword = 'caf\xe9'\r\n")
    write(library / "marked.py", b"\xef\xbb\xbfword = 'caf\xc3\xa9'\n")
    assert read_source("latin.py") == "# -*- coding: latin-1 -*-\nword = 'café'\n"
    assert read_source("marked.py") == "word = 'café'\n"


def test_source_paths_pass_over_what_is_not_the_library(library: Path) -> None:
    for name in (
        "site-packages/a.py",
        "dist-packages/a.py",
        "json/__pycache__/a.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "readme.txt",
        "json/test/a.py",
        "json/tool.py",
        "abc.py",
    ):
        write(library / name, b"x = 1\n")
    assert source_paths() == ["abc.py", "json/test/a.py", "json/tool.py"]


def test_read_source_gives_none_for_what_is_no_python(library: Path) -> None:
    write(library / "syntax.py", b"def broken(:\n")
    write(library / "nulls.py", b"x = 1\0\n")
    write(library / "coding.py", b"# coding: no-such\nx = 1\n")
    write(library / "bytes.py", b"x = '\xe9'\n")
    write(library / "escape.py", b"x = '\\d'\n")  # only a warning, which must not come out
    refused = ("syntax.py", "nulls.py", "coding.py", "bytes.py", "missing.py")
    assert [read_source(name) for name in refused] == [None] * 5
    assert read_source("escape.py") == "x = '\\d'\n"


def test_source_paths_refuse_a_python_without_sources(library: Path) -> None:
    write(library / "site-packages" / "only.py", b"x = 1\n")
    with pytest.raises(InputError, match=r"no sources of its standard library \(looked in .*boxes"):
        source_paths()


def test_parsed_reads_bytes_as_they_declare() -> None:
    tree = parsed(b"# -*- coding: latin-1 -*-\nword = 'caf\xe9'\n")
    assert tree is not None
    assert ast.unparse(tree) == "word = 'café'"
    assert parsed(b"# coding: no-such\nx = 1\n") is None
    assert parsed(b"x = '\xe9'\n") is None  # no UTF-8
    assert parsed(b"x = 1\0\n") is None


def test_check_enough_names_the_split_and_the_most_there_is() -> None:
    check_enough("test", 7, 7, "pieces")
    with pytest.raises(
        InputError, match=r"^test=8 is not allowed: .* gives 7 such pieces; give at most that many$"
    ):
        check_enough("test", 8, 7, "pieces")


def test_is_held_out_takes_about_one_file_in_twenty() -> None:
    share = sum(is_held_out(f"package/module{number}.py") for number in range(4000)) / 4000
    assert abs(share - 1 / 20) < 0.011  # three standard errors of 4,000 draws


def test_is_held_out_follows_the_first_eight_bytes_of_the_hash() -> None:
    # `printf operator.py | sha256sum` begins with ac07040adff09758, abc.py with c4e9f202e25a6f55
    assert is_held_out("operator.py")
    assert 0xAC07040ADFF09758 % 20 == 0
    assert not is_held_out("abc.py")
    assert 0xC4E9F202E25A6F55 % 20 != 0
