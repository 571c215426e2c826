"""RoI caches to calibrated heads: bi-level sampling, the trainer, and methods that need no training."""

from __future__ import annotations

from importlib import import_module

_EXPORTS = {
    "BiLevelSampler": "calib.sampler",
    "Config": "calib.config",
    "Head": "calib.heads",
    "load_head": "calib.storage",
    "save_head": "calib.storage",
    "train_head": "calib.train",
}
__all__ = [*_EXPORTS, "posthoc"]


def __getattr__(name: str):
    if name == "posthoc":
        return import_module("calib.posthoc")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
