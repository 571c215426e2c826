"""Which images a class-balanced extraction visits, on the real LVIS v0.5 class-image structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extract.image_selection import cover

PAIRS = Path(__file__).parents[1] / "benchmarks" / "data" / "lvis_v0.5_val_class_images.npz"


@pytest.mark.parametrize("images_per_class", [1, 5, 20])
def test_every_class_gets_its_images(images_per_class):
    with np.load(PAIRS) as pairs:
        classes, images = pairs["category_id"], np.unique(pairs["image_id"], return_inverse=True)[1]
    order = np.lexsort((images, classes))
    classes, images = classes[order], images[order]
    chosen = cover(classes, images, images_per_class, np.random.default_rng(0))
    assert (np.diff(chosen) > 0).all()
    available = np.bincount(classes)
    covered = np.bincount(classes[np.isin(images, chosen)], minlength=len(available))
    np.testing.assert_array_less(np.minimum(available, images_per_class) - 1, covered)
    naive = sum(np.minimum(available, images_per_class))
    assert len(chosen) < 0.8 * naive, "images serve several classes"
    again = cover(classes, images, images_per_class, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, again)
