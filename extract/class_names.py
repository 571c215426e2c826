"""Matches the names of a detector's classes with the categories of an annotation file."""

from __future__ import annotations

import difflib
import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from extract.detectors.base import NO_CLASS, OwnClasses

log = logging.getLogger(__name__)


def match_names(own: OwnClasses, table: pd.DataFrame, path: Path) -> np.ndarray:
    """Returns the output of each class of the table, (K,) int64, -1 where the detector has none.

    Equal names match, then names that differ in case, spaces, hyphens and underscores only. The detector may have more
    classes than the file, or fewer. Both at once is a contradiction.

    Args:
        own: the detector's classes.
        table: class table of the file.
        path: the file, for messages.

    Raises ValueError naming the first class that differs, or a name that occurs twice.
    """
    names = table["name"].tolist()
    if list(own.names) == names:
        return np.arange(len(names))
    outputs = np.full(len(names), -1)
    for key in (str, _plain):
        _match(outputs, own, names, key)
    outputs_left, classes_left = _left(outputs, own)
    if outputs_left and classes_left:
        raise ValueError(_contradiction(own, table, path, outputs_left, classes_left))
    return outputs


def _match(outputs: np.ndarray, own: OwnClasses, names: Sequence[str], key: Callable[[str], Hashable]) -> None:
    """Fills in the outputs of the classes that are left and have the key of an output that is left."""
    outputs_left, classes_left = _left(outputs, own)
    keys = [key(own.names[i]) for i in outputs_left]
    class_keys = [key(names[c]) for c in classes_left]
    for name, count in (Counter(keys) + Counter(class_keys)).items():
        if name in keys and name in class_keys and count > 2:
            raise ValueError(
                f"class name {name!r} occurs {keys.count(name)} times in {own.source} and {class_keys.count(name)} "
                "times in the annotation file: give --class-order id or file"
            )
    by_key = dict(zip(keys, outputs_left, strict=True))
    matched = [(c, by_key[k]) for c, k in zip(classes_left, class_keys, strict=True) if k in by_key]
    for c, output in matched:
        outputs[c] = output
    if key is _plain and matched:
        c, output = matched[0]
        text = "%d class names of %s are spelt otherwise in the annotation file, such as %r, there %r"
        log.info(text, len(matched), own.source, own.names[output], names[c])


def _left(outputs: np.ndarray, own: OwnClasses) -> tuple[list[int], list[int]]:
    """Returns the named outputs and the classes that are not matched yet, ascending."""
    used = set(outputs.tolist())
    left = [i for i, name in enumerate(own.names) if i not in used and name != NO_CLASS]
    return left, np.flatnonzero(outputs < 0).tolist()


def _contradiction(
    own: OwnClasses, table: pd.DataFrame, path: Path, outputs_left: Sequence[int], classes_left: Sequence[int]
) -> str:
    names, ids = table["name"].tolist(), table["category_id"].tolist()
    name = own.names[outputs_left[0]]
    close = difflib.get_close_matches(name, [names[c] for c in classes_left], 1)
    c = names.index(close[0]) if close else classes_left[0]
    return (
        f"{own.source} has {name!r} as class {outputs_left[0]}, {path} has no such category, but category {ids[c]} "
        f"{names[c]!r} ({len(outputs_left)} and {len(classes_left)} without counterpart): give the file's names with "
        f"--classes names.txt, {NO_CLASS} for outputs that are none of them, or --class-order id or file"
    )


def _plain(name: str) -> str:
    """Returns the name without case and punctuation, the name itself if nothing else is in it."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold() or name
