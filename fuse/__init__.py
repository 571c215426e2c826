"""Caches and heads to detections, and detections to evidence: score fusion, exact NMS, LVIS evaluation."""

import lazy_loader

# Nothing is imported before it is used, so that a command waits only for what it needs.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["Config"],
        "live_config": ["ExportConfig"],
        "exports": ["export", "export_folded"],
        "folding": ["folded_classifiers"],
        "detections": ["Detections"],
        "rows": ["Row", "detect", "detect_rows"],
        "nms": ["class_nms"],
        "ensembles": ["merge", "merge_image"],
        "masks": ["encode_masks"],
        "evaluation": ["evaluate", "per_class_ap"],
        "scores": ["fuse_scores"],
        "live": ["CalibratedDetector", "View"],
    },
)
