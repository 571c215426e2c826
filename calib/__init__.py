"""Calibrated heads from RoI caches: bi-level sampling, training, and post-hoc methods, which need no training."""

import lazy_loader

# Names are imported on first use, as __init__.pyi lists them, so that a command imports only what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
