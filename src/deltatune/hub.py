"""The hub of models and data sets, asked once before a library asks it again and again."""

from __future__ import annotations

import urllib.error
import urllib.request

import huggingface_hub
from huggingface_hub import constants

from deltatune.errors import InputError

__all__ = ["check_model", "check_reachable"]

TIMEOUT_SECONDS = 10.0


def check_reachable(place: str, refusal: str, fix: str = "") -> None:
    """Knock once, so that a mistyped path does not wait for half a minute of retries.

    Args:
        place: `models/NAME` or `datasets/NAME`.
        refusal: how the error's line begins.
        fix: how it ends.

    Raises:
        InputError: the hub does not answer.
    """
    address = f"{constants.ENDPOINT}/api/{place}"
    try:
        urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers; whether this user may read the repository, the loading will tell
    except OSError as error:
        raise InputError(f"{refusal}: {constants.ENDPOINT} does not answer{fix}") from error


def check_model(name: str) -> None:
    """Refuse a model name that is not in the cache while the hub does not answer.

    Raises:
        InputError: it is so, or the name could not be one.
    """
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except huggingface_hub.errors.HFValidationError as error:
        raise InputError(
            f"model {name!r} is neither a folder here nor the name of a model: give the path of a "
            f"folder with config.json, a Hugging Face name, or package:NAME"
        ) from error
    if cached is None and not constants.HF_HUB_OFFLINE:
        check_reachable(
            f"models/{name}",
            f"model {name!r} is neither a folder here nor a model that can be fetched",
            "; check the name, or give the path of a folder with config.json",
        )
