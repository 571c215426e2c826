"""Packages that only some commands need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str = "", remedy: str = "") -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: its name.
        extra: extra of this distribution that installs the package.
        remedy: how to install the package where no extra does.

    Raises ImportError with the command to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        remedy = remedy or f"pip install 'tailcal[{extra}]' brings it"
        raise ImportError(f"{error.name} is not installed; {remedy}") from error
    except AssertionError as error:  # mmdet asserts that it supports the installed mmcv
        raise ImportError(f"{module} cannot be imported: {error}") from error
