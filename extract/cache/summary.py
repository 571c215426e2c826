"""A cache in a few lines, as it shows itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from extract.cache.reader import RoICache


def summary(cache: RoICache) -> list[tuple[str, str]]:
    """What there is to say of a cache: (name, text)."""
    labels = cache.read("labels")[:, 0]
    foreground = (labels >= 0) & (labels < cache.num_classes)
    present = np.bincount(labels[foreground], minlength=1) > 0
    features = cache.fields.get("features")
    return [
        ("RoI cache", f"{cache.url} ({cache.split})"),
        ("images", f"{len(cache):,} ({int(cache.images['flipped'].sum()):,} flipped)"),
        ("RoIs", f"{len(labels):,} ({int(foreground.sum()):,} foreground, {len(cache.stages)} stage(s))"),
        ("classes", f"{cache.num_classes:,} ({int(present.sum()):,} of them in it)"),
        ("level", f"{cache.level}" + (f", features {features[1:]} float16" if features else "")),
        ("detector", f"{cache.detector.get('name', 'unknown')} ({cache.detector.get('framework', 'unknown')})"),
        ("columns", ", ".join(cache.fields)),
        ("on disk", f"{cache.stored_bytes() / 1e6:,.1f} MB"),
    ]
