"""What the reader of a file leaves out or changes, counted by kind and reported once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from extract.utils.errors import shortened

log = logging.getLogger(__name__)


class AnnotationError(ValueError):
    """An invalid annotation file; the message names the file, the entry and the field."""


class Repairs:
    """Counts what is left out or changed in one file.

    Attributes:
        source: the file, or a name for content without a file.
        text_ids: ids that are text in the file, by the number that takes their place.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.text_ids: dict[int, str] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, noun: str, change: str, example: str, count: int = 1) -> None:
        """Counts a change.

        Args:
            noun: what is changed, in the plural, such as "boxes".
            change: what is found and done, such as "have no area and are left out".
            example: one of them, such as "annotation 7"; that of the first call is kept.
            count: how many more; 0 adds nothing.
        """
        if count:
            self._counts[noun, change] = self._counts.get((noun, change), 0) + count
            self._examples.setdefault((noun, change), example)

    def shown_id(self, number: int) -> int | str:
        """Returns an id as it is in the file, long text shortened, for messages."""
        number = int(number)
        return shortened(self.text_ids[number]) if number in self.text_ids else number

    def lines(self, totals: Mapping[str, int]) -> list[str]:
        """Returns a line for each kind of change; `totals` has the number of all by noun."""
        return [
            f"{self.source}: {count:,} of {totals[noun]:,} {noun} {change}, such as {self._examples[noun, change]}"
            for (noun, change), count in self._counts.items()
        ]

    def report(self, totals: Mapping[str, int], strict: bool) -> None:
        """Logs the lines as warnings. Raises AnnotationError with the first of them if `strict`."""
        for line in self.lines(totals):
            if strict:
                raise AnnotationError(f"{line}; --strict refuses this")
            log.warning("%s", line)


def totals_of(images: int, categories: int, annotations: int) -> dict[str, int]:
    """Returns the totals of an annotation file for `Repairs.report`."""
    return {"images": images, "categories": categories, "annotations": annotations, "boxes": annotations}
