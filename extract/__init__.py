"""Frozen RoI features of a two-stage detector, computed once and stored in Zarr caches."""

import lazy_loader

# Names are imported on first use, from the modules in __init__.pyi, so that a command imports only what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
