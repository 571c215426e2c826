"""Caches and heads to detections, and detections to evidence: score fusion, exact NMS, LVIS evaluation."""

from __future__ import annotations

from importlib import import_module

_EXPORTS = {
    "Config": "fuse.config",
    "Detections": "fuse.detections",
    "Row": "fuse.rows",
    "class_nms": "fuse.nms",
    "detect": "fuse.rows",
    "detect_rows": "fuse.rows",
    "encode_masks": "fuse.masks",
    "evaluate": "fuse.evaluation",
    "fuse_scores": "fuse.scores",
    "per_class_ap": "fuse.evaluation",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
