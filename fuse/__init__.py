"""Caches and heads to detections, and detections to evidence: score fusion, exact NMS, LVIS evaluation."""

import lazy_loader

# Names are imported on first use, from the modules in __init__.pyi, so that a command imports only what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
