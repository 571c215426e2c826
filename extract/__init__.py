"""Frozen RoI features of a two-stage detector, computed once and kept in Zarr caches."""

from __future__ import annotations

from importlib import import_module

_EXPORTS = {
    "Config": "extract.config",
    "RoIs": "extract.rois",
    "RoICache": "extract.cache",
    "CacheError": "extract.layout",
    "load_detector": "extract.detectors",
    "open_cache": "extract.cache",
    "run": "extract.extraction",
    "write_cache": "extract.convert",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
