"""Calibration methods that train nothing: they rescale and shift the detector's own logits.

    norcal = calib.posthoc.NorCal(gamma=0.6).fit(cache)
    norcal = calib.posthoc.build_method("norcal", gamma=0.6).fit(cache)

A new method is one file, a subclass of `Posthoc`, and one row of `METHODS`.
"""

from __future__ import annotations

import inspect

from calib.posthoc.base import Posthoc
from calib.posthoc.logit_adjustment import LogitAdjustment
from calib.posthoc.logn import LogN
from calib.posthoc.norcal import NorCal
from calib.posthoc.tau_norm import TauNorm

METHODS: dict[str, type[Posthoc]] = {
    "norcal": NorCal,
    "logit-adjustment": LogitAdjustment,
    "logn": LogN,
    "tau-norm": TauNorm,
}


def build_method(name: str, **hyperparameters: object) -> Posthoc:
    """Builds an unfitted method; hyperparameters that are not given keep the method's defaults.

    Raises:
        ValueError: unknown method, or a hyperparameter that the method does not have.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}, expected one of {', '.join(METHODS)}")
    known = list(inspect.signature(METHODS[name]).parameters)
    for parameter, value in hyperparameters.items():
        if parameter not in known:
            has = ", ".join(known) or "no hyperparameters"
            raise ValueError(f"{parameter} is {value!r}: method {name} has no {parameter}, it has {has}")
    return METHODS[name](**hyperparameters)


__all__ = ["METHODS", "LogN", "LogitAdjustment", "NorCal", "Posthoc", "TauNorm", "build_method"]
