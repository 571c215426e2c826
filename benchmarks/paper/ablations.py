"""The ablations of the extended paper (SimCal, ECCV 2020): head design, training length, learning rate and bound T."""

from __future__ import annotations

import pandas as pd

from benchmarks.paper.inputs import HeadOptions
from benchmarks.paper.scores import Row, measure
from benchmarks.paper.setups import Setup

LENGTHS = (0.25, 0.5, 1, 2)
"""Training steps relative to the setup's."""
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03)
TAILS = (10, 30, 90, 100, 300, 1000, float("inf"))


def head_table(setup: Setup) -> pd.DataFrame:
    """Returns AP by type of the head."""
    return measure(setup, [_row(name, HeadOptions(head_type=name)) for name in ("2fc_rand", "3fc_rand", "3fc_ft")])


def length_table(setup: Setup) -> pd.DataFrame:
    """Returns AP by number of training steps."""
    lengths = [round(setup.steps * length) for length in LENGTHS]
    return measure(setup, [_row(f"{steps:,}", HeadOptions(steps=steps)) for steps in lengths])


def lr_table(setup: Setup) -> pd.DataFrame:
    """Returns AP by learning rate."""
    return measure(setup, [_row(f"{lr:g}", HeadOptions(lr=lr)) for lr in LEARNING_RATES])


def tail_table(setup: Setup) -> pd.DataFrame:
    """Returns AP by the bound T below which classes take the calibrated scores."""
    return measure(setup, [Row(f"{tail:g}", "plain", "cat", tail=tail) for tail in TAILS])


def simcal_table(setup: Setup) -> pd.DataFrame:
    """Returns AP before and after calibration with the extended paper's head."""
    return measure(setup, [Row("mrcnn-r50-ag", "plain"), _row("mrcnn-r50-ag, calibration", HeadOptions())])


def _row(name: str, head: HeadOptions) -> Row:
    return Row(name, "plain", "cat", head=head)
