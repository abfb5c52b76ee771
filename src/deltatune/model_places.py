"""What the user calls a model in, a folder or a Hugging Face name out."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from deltatune import hub, packaged_bases
from deltatune.data.offline import known_tasks
from deltatune.errors import InputError, nearest_first

__all__ = ["locate"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PACKAGE = "package:"


def locate(name: str | Path) -> str:
    """Turn what the user gave into a folder or a Hugging Face name, or say what is wrong with it.

    `package:NAME` means the folder `model` inside the installed Python package NAME, and
    `deltatune/NAME` a base that comes with this package, wherever one stands; a folder of that name
    is `./deltatune/NAME`.

    Raises:
        InputError: a path that does not exist (nearest neighbours named), holds no model, or holds
            only pickled weights; a package that is not installed; an unknown base of ours.
    """
    text = str(name)
    if known_tasks.is_offline(name):
        return str(packaged_bases.locate(text))
    if text.startswith(PACKAGE):
        return str(_package_folder(text.removeprefix(PACKAGE)))
    path = Path(text).expanduser()
    if os.path.isfile(path):  # pathlib fails on what is too long for a name
        raise InputError(f"model {text!r} is a file: give the folder that holds config.json")
    if os.path.isdir(path):
        _check_folder(path, text)
        return str(path)
    looks_like_path = path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1
    if looks_like_path or (path.parent != Path() and path.parent.is_dir()):
        raise InputError(f"model folder {text!r} does not exist{_neighbours(path)}")
    hub.check_model(text)
    return text


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ": check the path"
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    names = ", ".join(repr(name) for name in nearest_first(path.name, folders)[:3])
    return f": nearest in {str(path.parent)!r} are {names}" if names else ": check the path"


def _package_folder(package: str) -> Path:
    module = package.replace("-", "_")
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise InputError(f"package {package!r} is not installed: run 'pip install {package}'")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    if not (folder / "config.json").is_file():
        raise InputError(f"package {package!r} holds no folder 'model' with a config.json")
    return folder


def _check_folder(path: Path, text: str) -> None:
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise InputError(
            f"model folder {text!r} holds an adapter: give the folder of its base model"
        )
    if not (path / "config.json").is_file():
        raise InputError(f"model folder {text!r} holds no config.json: give a model's own folder")
    if not list(path.glob("*.safetensors")):
        pickled = sorted(entry.name for entry in path.iterdir() if entry.suffix in PICKLES)
        if pickled:
            raise InputError(
                f"model folder {text!r} holds only pickled weights ({pickled[0]}), which can run "
                f"code when opened: convert them to safetensors (save_pretrained does it)"
            )
        raise InputError(
            f"model folder {text!r} holds no *.safetensors file: copy the weights there"
        )
