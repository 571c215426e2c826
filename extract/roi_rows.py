"""Chooses which RoIs of a cache a contact sheet shows, in rows by class, by bin of training instances or by label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np

from extract.cache.reader import RoICache
from extract.command_configs import RowKind
from extract.data.bins import bin_index, bin_names
from extract.objects import object_rois
from extract.utils.errors import listed


class RoIRow(NamedTuple):
    """A title, and (n,) int64 packed rows of the cache."""

    title: str
    rois: np.ndarray


class _Labels(NamedTuple):
    """Of all RoIs their label in the first stage, and the RoIs of highest IoU, one of each object."""

    labels: np.ndarray
    objects: np.ndarray


def choose_rows(
    cache: RoICache, by: RowKind, classes: Sequence[str], max_rows: int, columns: int
) -> tuple[list[RoIRow], str]:
    """Returns at most `max_rows` rows of at most `columns` RoIs, and a sentence that names what they are.

    Raises ValueError for an unknown name of a class, an unknown `by`, and numbers below 1.
    """
    for name, value in (("max_rows", max_rows), ("columns", columns)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    if by not in get_args(RowKind):
        raise ValueError(f"by is {by!r}, expected {', '.join(map(repr, get_args(RowKind)))}")
    if classes and by != "class":
        raise ValueError(f"classes are given with by {by!r}, expected 'class'")
    found = _read_labels(cache)
    if by == "class":
        every, note = _by_class(cache, found, classes, max_rows)
    else:
        every = list(_by_bin(cache, found) if by == "bin" else _by_label(cache, found))
        note = "RoIs by bin of training instances." if by == "bin" else "RoIs by label."
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.permutation(row.rois)[:columns]) for row in every]
    return [row._replace(rois=rois) for row, rois in zip(every, drawn, strict=True)], note


def _read_labels(cache: RoICache) -> _Labels:
    labels = cache.read("labels")[:, 0]
    return _Labels(labels, object_rois(cache, labels, 0))


def _by_class(cache: RoICache, found: _Labels, classes: Sequence[str], max_rows: int) -> tuple[list[RoIRow], str]:
    """Returns a row for each of the classes, or an even choice of those in the cache, the rarest first."""
    names, counts = cache.classes["name"].tolist(), cache.classes["instance_count"].to_numpy()
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"classes has {unknown[0]!r}, which is no class of {cache.url}; it has {listed(names)}")
    labels = found.labels[found.objects]
    if classes:
        shown = [i for i, name in enumerate(names) if name in classes]
        note = f"{len(shown)} of {len(names):,} classes."
    else:
        present = np.unique(labels)
        ordered = present[np.argsort(counts[present], kind="stable")]
        chosen = np.linspace(0, len(ordered) - 1, min(max_rows, len(ordered))).round().astype(int)
        shown = ordered[chosen].tolist()
        note = f"{len(shown):,} of the {len(present):,} classes with RoIs, from the rarest to the most frequent."
    rows = [
        RoIRow(f"{names[label]} ({counts[label]:,} training instances)", found.objects[labels == label])
        for label in shown
    ]
    return rows, note


def _by_bin(cache: RoICache, found: _Labels) -> Iterator[RoIRow]:
    index = bin_index(cache.classes["instance_count"].to_numpy())
    of_objects = index[found.labels[found.objects]]
    for i, name in enumerate(bin_names()):
        yield RoIRow(f"{name} training instances, {(index == i).sum():,} classes", found.objects[of_objects == i])


def _by_label(cache: RoICache, found: _Labels) -> Iterator[RoIRow]:
    background, ignored = (np.flatnonzero(found.labels == label) for label in (cache.num_classes, -1))
    yield RoIRow(f"objects ({len(found.objects):,})", found.objects)
    yield RoIRow(f"background ({len(background):,} RoIs)", background)
    yield RoIRow(f"ignored ({len(ignored):,} RoIs), where a class is annotated in part", ignored)
