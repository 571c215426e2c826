"""Calibration methods that train nothing: they rescale and shift the detector's own logits, or compare features.

    norcal = calib.posthoc.NorCal(gamma=0.6).fit(cache)
    norcal = calib.posthoc.build_method("norcal", gamma=0.6).fit(cache)

A new method is one file, a subclass of `Posthoc`, and one row of `METHODS`. `python -m calib --list` prints all.
"""

from __future__ import annotations

import inspect

from calib.posthoc.base import Posthoc
from calib.posthoc.fracal import Fracal
from calib.posthoc.logit_adjustment import LogitAdjustment
from calib.posthoc.logn import LogN
from calib.posthoc.ncm import NCM, CosineNCM
from calib.posthoc.norcal import NorCal
from calib.posthoc.platt import Platt
from calib.posthoc.tau_norm import TauNorm
from calib.posthoc.temperature import Temperature

METHODS: dict[str, type[Posthoc] | type[NCM]] = {
    "norcal": NorCal,
    "logit-adjustment": LogitAdjustment,
    "logn": LogN,
    "tau-norm": TauNorm,
    "fracal": Fracal,
    "temperature": Temperature,
    "platt": Platt,
    "ncm": NCM,
    "cosine-ncm": CosineNCM,
}


def build_method(name: str, **hyperparameters: object) -> Posthoc | NCM:
    """Builds an unfitted method; hyperparameters that are not given keep the method's defaults.

    Raises:
        ValueError: unknown method, a hyperparameter that the method does not have, or a value that it refuses.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}, expected one of {', '.join(METHODS)}")
    known = list(inspect.signature(METHODS[name]).parameters)
    for parameter, value in hyperparameters.items():
        if parameter not in known:
            has = ", ".join(known) or "no hyperparameters"
            raise ValueError(f"{parameter} is {value!r}: method {name} has no {parameter}, it has {has}")
    return METHODS[name](**hyperparameters)  # type: ignore[arg-type]  # their values are checked by the method


__all__ = [
    "METHODS",
    "NCM",
    "CosineNCM",
    "Fracal",
    "LogN",
    "LogitAdjustment",
    "NorCal",
    "Platt",
    "Posthoc",
    "TauNorm",
    "Temperature",
    "build_method",
]
