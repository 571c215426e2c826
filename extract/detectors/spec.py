"""The parts of a `DetectorSpec` that name code: MODULE:FUNCTION and KEY=VALUE."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def import_function(target: str, description: str) -> Callable[..., Any]:
    """Imports the function at MODULE:NAME.

    Raises ValueError or ImportError that starts with the description and names the missing part.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ValueError(f"{description} {target!r}, expected MODULE:FUNCTION")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # unlike `python -m`, console scripts do not have it there
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{description} {target!r}: {error} in {os.getcwd()} or on PYTHONPATH") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{description} {target!r}: module {module_name} has no function {name}")
    return function


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parses KEY=VALUE options into arguments; values that are valid JSON are decoded, others stay text."""
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"detector option {option!r}, expected KEY=VALUE")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed
