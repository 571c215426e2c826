"""Which images a class-balanced extraction visits, on the real LVIS v0.5 class-image structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extract.image_selection import cover_classes

PAIRS = Path(__file__).parents[1] / "benchmarks" / "data" / "lvis_v0.5_val_class_images.npz"


@pytest.mark.parametrize("min_images_per_class", [1, 5, 20])
def test_every_class_gets_its_images(min_images_per_class):
    with np.load(PAIRS) as pairs:
        classes, images = pairs["category_id"], np.unique(pairs["image_id"], return_inverse=True)[1]
    order = np.lexsort((images, classes))
    classes, images = classes[order], images[order]
    selected = cover_classes(classes, images, min_images_per_class, np.random.default_rng(0))
    assert (np.diff(selected) > 0).all()
    available = np.bincount(classes)
    covered = np.bincount(classes[np.isin(images, selected)], minlength=len(available))
    np.testing.assert_array_less(np.minimum(available, min_images_per_class) - 1, covered)
    naive = sum(np.minimum(available, min_images_per_class))
    assert len(selected) < 0.8 * naive, "images serve several classes"
    again = cover_classes(classes, images, min_images_per_class, np.random.default_rng(0))
    np.testing.assert_array_equal(selected, again)
