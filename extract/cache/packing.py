"""Packed rows, the RoIs of all images in order without gaps, and where a cache stores them."""

from __future__ import annotations

import numpy as np

from extract.cache.format import CacheError


class Packing:
    """The rows of each image.

    Attributes:
        offsets: (N+1,) int64; image i owns the packed rows `offsets[i]:offsets[i+1]`.
    """

    def __init__(self, starts: np.ndarray, counts: np.ndarray, url: str) -> None:
        """Raises CacheError naming `url` if images overlap; `starts` and `counts` (N,) are of each image's rows."""
        counts = counts.astype(np.int64)
        if (starts[1:] < starts[:-1] + counts[:-1]).any():
            raise CacheError(f"{url}/images: the ranges of roi_start and roi_count overlap")
        self.offsets: np.ndarray = np.concatenate([[0], np.cumsum(counts)])
        self._starts, self._counts = starts, counts

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first stored row, and the one after the last, of each image that has RoIs."""
        starts, counts = self._starts[self._counts > 0], self._counts[self._counts > 0]
        return starts, starts + counts

    def stored_rows(self, packed: np.ndarray) -> np.ndarray:
        """Returns the stored rows of ascending packed rows."""
        owner = np.searchsorted(self.offsets, packed, side="right") - 1
        return self._starts[owner] + packed - self.offsets[owner]

    def image_rows(self, first: int, stop: int) -> np.ndarray:
        """Returns the stored rows of the images `first:stop`."""
        rows = np.repeat(self._starts[first:stop] - self.offsets[first:stop], self._counts[first:stop])
        rows += np.arange(self.offsets[first], self.offsets[stop])
        return rows
