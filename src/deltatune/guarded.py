"""One load of transformers, with what it raises turned into one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deltatune.errors import InputError

__all__ = ["guarded"]


def guarded(place: str, allow_remote_code: bool, load: Callable[..., Any]) -> Any:
    """Run one load.

    Args:
        place: folder or Hugging Face name.
        allow_remote_code: whether code that comes with the model may run.
        load: takes `trust_remote_code`.

    Raises:
        InputError: anything that keeps the model from loading safely.
    """
    try:
        return load(trust_remote_code=allow_remote_code)
    except SafetensorError as error:
        raise InputError(
            f"the weights of model {place!r} are not whole safetensors files ({error}): fetch or "
            f"save them again"
        ) from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise InputError(
            f"the weights of model {place!r} have other shapes than its config.json says: give the "
            f"config.json that belongs to them"
        ) from error
    except (ValueError, OSError, KeyError, ImportError) as error:
        text = " ".join(str(error).split())
        if "Unrecognized configuration class" in text:
            raise InputError(
                f"model {place!r} is of a type that transformers has no model for this task of: "
                f"give one that generates text from left to right for prompts, chats and texts, or "
                f"labelled data"
            ) from error
        if "trust_remote_code" in text:
            raise InputError(
                f"model {place!r} comes with code of its own, which is not run: pass "
                f"--allow-remote-code (allow_remote_code=True) if you trust its author"
            ) from error
        if not Path(place).is_dir() and isinstance(error, OSError):
            raise InputError(
                f"model {place!r} is neither a folder here nor a model that can be fetched: "
                f"check the name, or give the path of a folder with config.json"
            ) from error
        raise InputError(f"model {place!r} does not load: {_shortened(text)}") from error


def _shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
