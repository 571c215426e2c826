"""The calibration methods of this package, as `python -m calib --list` prints them."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from calib.posthoc import METHODS


class Method(NamedTuple):
    """One row of the list.

    Attributes:
        option: what selects the method on the command line.
        summary: formula in one line.
        needs: what it is fitted to or trained on.
        parameters: its hyperparameters.
        source: paper and equation.
    """

    option: str
    summary: str
    needs: str
    parameters: str
    source: str


def list_methods() -> list[Method]:
    """Returns every method, those without training first."""
    return [
        Method(
            f"--method {name}",
            _first_line(method),
            method.needs,
            ", ".join(inspect.signature(method).parameters) or "none",
            method.source,
        )
        for name, method in METHODS.items()
    ]


def format_methods() -> str:
    """Returns the list as text."""
    lines = ["Methods without training (python -m fuse, fuse sweep, fuse predict, fuse export):"]
    for method in list_methods():
        lines += [
            f"\n{method.option}\n    {method.summary}",
            f"    needs {method.needs}; hyperparameters: {method.parameters}; {method.source}",
        ]
    return "\n".join(lines)


def _first_line(documented: type) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
