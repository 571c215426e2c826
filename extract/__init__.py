"""Frozen RoI features of a two-stage detector, computed once and kept in Zarr caches."""

import lazy_loader

# Nothing is imported before it is used, so that a command waits only for what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["Config", "DetectorSpec"],
        "rois": ["RoIs"],
        "cache": ["RoICache", "open_cache"],
        "layout": ["CacheError"],
        "detectors": ["load_detector"],
        "extraction": ["run"],
        "convert": ["write_cache"],
    },
)
