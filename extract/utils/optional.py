"""Packages that only some commands need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str = "", remedy: str = "") -> ModuleType:
    """Imports a module of an optional package, which an extra brings or else a remedy.

    Raises ImportError saying what to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        remedy = remedy or f"pip install 'tailcal[{extra}]' brings it"
        raise ImportError(f"{error.name} is not installed; {remedy}") from error
    except AssertionError as error:  # how mmdet says that it does not work with the mmcv that is there
        raise ImportError(f"{module} cannot be imported: {error}") from error
