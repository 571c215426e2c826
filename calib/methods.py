"""The calibration methods of this package, as `python -m calib --list` prints them."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from calib.classifiers import AlignedLinear, ScaledLinear
from calib.losses import LOSSES
from calib.posthoc import METHODS

CLASSIFIERS = {
    "lws": (ScaledLinear, "Kang et al., ICLR 2020, section 4.2 (LWS)"),
    "disalign": (AlignedLinear, "Zhang et al., CVPR 2021, adaptive calibration"),
}
HEADS = """\
--head-type 3fc_ft, 3fc_lowrank, 2fc_rand, 3fc_rand
    The paper's heads, and two of its layers' corrections: see `python -m calib.train --help`.
    needs pooled or hidden features; Wang et al., 2019

--head-type linear
    A new classifier on the detector's embedding; with cross-entropy and class-balanced sampling it is cRT.
    needs any features; Kang et al., ICLR 2020, section 4.2"""
SAMPLINGS = """\
--sampling class-balanced, instance-balanced, square-root, progressive
    Classes are drawn in proportion to n^0, n^1, n^(1/2), or from n^1 to n^0 in the course of the run.
    needs class counts; Kang et al., ICLR 2020, section 3, eq. (1) and (2)"""


class Method(NamedTuple):
    """One row of the list.

    Attributes:
        option: what selects the method on the command line.
        summary: formula in one line.
        needs: what it is fitted to or trained on.
        source: paper and equation.
    """

    option: str
    summary: str
    needs: str
    source: str

    def describe(self) -> str:
        """Returns three lines."""
        return f"{self.option}\n    {self.summary}\n    needs {self.needs}; {self.source}"


def posthoc_methods() -> list[Method]:
    """Returns the methods without training, with their hyperparameters."""
    return [
        Method(f"--method {name}", _first_line(method), f"{method.needs}; {_hyperparameters(method)}", method.source)
        for name, method in METHODS.items()
    ]


def trained_methods() -> list[Method]:
    """Returns the classifiers and losses that heads are trained with."""
    needs = "features and the detector's own classifier"
    heads = [Method(f"--head-type {name}", _first_line(c), needs, source) for name, (c, source) in CLASSIFIERS.items()]
    return heads + [
        Method(f"--loss {name}", _first_line(loss), loss.needs, loss.source) for name, loss in LOSSES.items()
    ]


def format_methods() -> str:
    """Returns the list as text."""
    trained = "Trained on cached features (python -m calib.train); each head type with each loss and sampling:"
    return "\n\n".join(
        [
            "Without training (python -m fuse, fuse sweep, fuse predict, fuse export):",
            *(method.describe() for method in posthoc_methods()),
            trained,
            HEADS,
            *(method.describe() for method in trained_methods()),
            SAMPLINGS,
        ]
    )


def _hyperparameters(method: type) -> str:
    names = ", ".join(f"--{name.replace('_', '-')}" for name in inspect.signature(method).parameters)
    return f"hyperparameters {names}" if names else "no hyperparameters"


def _first_line(documented: type) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]
