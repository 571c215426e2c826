"""The settings that `python -m fuse select` tries: of every method its hyperparameters, and the fusion modes.

A new method is one row of `POSTHOC` or `TRAINED`. Imports nothing heavy, since the command line reads the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fuse.config import FusionConfig

POSTHOC: dict[str, tuple[dict[str, Any], ...]] = {
    "norcal": (
        *({"gamma": gamma} for gamma in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)),
        *({"gamma": gamma, "variant": "unnormalized"} for gamma in (0.2, 0.4, 0.6)),
        *({"gamma": gamma, "variant": "logits"} for gamma in (0.02, 0.05)),
        *({"gamma": gamma, "factor": "effective-number"} for gamma in (0.9, 0.99, 0.999)),
    ),
    "logit-adjustment": tuple({"tau": tau} for tau in (0.25, 0.5, 0.75, 1.0, 1.25)),
    "logn": ({},),
    "tau-norm": tuple({"tau": tau} for tau in (0.25, 0.5, 0.75, 1.0)),
    "fracal": tuple({"lam": lam} for lam in (0.0, 1.0, 2.0, 3.0)),
    "temperature": tuple({"temperature": temperature} for temperature in (None, 0.5, 2.0)),
    "platt": tuple({"penalty": penalty} for penalty in (1.0, 100.0, 10_000.0)),
    "ncm": ({},),
    "cosine-ncm": ({},),
}
"""Methods without training: sets of hyperparameters, None where a method fits it."""
TRAINED: dict[str, dict[str, Any]] = {
    "3fc_ft": {"head_type": "3fc_ft"},
    "3fc_lowrank": {"head_type": "3fc_lowrank"},
    "crt": {"head_type": "linear"},
    "lws": {"head_type": "lws"},
    "disalign": {"head_type": "disalign", "loss": "reweighted"},
    "balanced-softmax": {"head_type": "linear", "loss": "balanced-softmax", "sampling": "instance-balanced"},
    "bags": {"head_type": "linear", "loss": "bags"},
    "seesaw": {"head_type": "linear", "loss": "seesaw"},
    "federated": {"head_type": "linear", "loss": "federated"},
    "eql": {"head_type": "linear", "loss": "eql"},
}
"""Trained methods: fields of `calib.Config`."""
ROIS_PER_CLASS = 4
"""`calib.Config.rois_per_class` of all trained methods: most RoIs are near copies of one object."""


class Setting(NamedTuple):
    """A method with its hyperparameters.

    Attributes:
        method: a key of `POSTHOC` or `TRAINED`.
        options: hyperparameters, or fields of `calib.Config`.
        label: the hyperparameters that the grid varies, as in "gamma=0.6".
    """

    method: str
    options: Mapping[str, Any]
    label: str

    @property
    def name(self) -> str:
        """Names the method and its hyperparameters."""
        return " ".join(part for part in (self.method, self.label) if part)

    @property
    def is_trained(self) -> bool:
        """Whether it is a head that is trained."""
        return self.method in TRAINED


class Row(NamedTuple):
    """A setting in a fusion mode, one row of the tables."""

    setting: Setting
    mode: str
    fusion: FusionConfig

    @property
    def name(self) -> str:
        """Names the method, its hyperparameters and the mode, as in "norcal gamma=0.6 cat@100"."""
        return f"{self.setting.name} {self.mode}".rstrip()


def settings_of(methods: Sequence[str], steps: Sequence[int]) -> list[Setting]:
    """Returns the settings of methods; trained ones are tried with each number of steps."""
    posthoc = [
        Setting(name, {key: value for key, value in options.items() if value is not None}, _label(options))
        for name in methods
        for options in POSTHOC.get(name, ())
    ]
    trained = [
        Setting(name, TRAINED[name] | {"steps": count, "rois_per_class": ROIS_PER_CLASS}, f"steps={count}")
        for name in methods
        if name in TRAINED
        for count in steps
    ]
    return posthoc + trained


def rows_of(setting: Setting, fusion: FusionConfig, tails: Sequence[float], activation: str) -> list[Row]:
    """Returns a setting in every mode, the modes with a tail at each of its bounds T.

    Of trained heads, whose detections or low scores may be worth less than the detector's, also modes det and cat-thr,
    and cat-scale, whose ratio of backgrounds a sigmoid detector (`activation`) does not have.
    """
    modes: dict[str, dict[str, Any]] = {"calibrated": {"mode": "calibrated"}, "avg": {"mode": "avg"}}
    modes |= {f"cat@{tail:g}": {"mode": "cat", "tail": tail} for tail in tails}
    if setting.is_trained:
        kinds = ["det", "cat-thr", *(["cat-scale"] if activation != "sigmoid" else [])]
        modes |= {f"{mode}@{tail:g}": {"mode": mode, "tail": tail} for mode in kinds for tail in tails[-2:]}
    return [Row(setting, mode, fusion.fusion(**changes)) for mode, changes in modes.items()]


def _label(options: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={'fitted' if value is None else _text(value)}" for key, value in options.items())


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
