"""Bins of classes by their number of training instances, as in Table 1 of Wang et al. 2019."""

from __future__ import annotations

import itertools

import numpy as np

BINS = (0.0, 10.0, 100.0, 1000.0, float("inf"))
"""Edges of the paper's half-open bins of training instances."""


def edges(bins: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the edges from 0 to infinity, given the inner edges.

    Raises ValueError unless they are ascending numbers above 0.
    """
    complete = (0.0, *bins, float("inf"))
    if not _is_ascending(complete):
        raise ValueError(f"bins is {tuple(bins)}, expected ascending numbers above 0")
    return complete


def bin_names(edges: tuple[float, ...] = BINS) -> list[str]:
    """Returns names as the paper prints them: `(0,10)`, `[10,100)`, `[100,1000)`, `[1000,-)`."""
    check_edges(edges)
    names = []
    for low, high in itertools.pairwise(edges):
        names.append(f"{'[' if low > 0 else '('}{low:g},{'-' if np.isinf(high) else f'{high:g}'})")
    return names


def bin_index(instance_count: np.ndarray, edges: tuple[float, ...] = BINS) -> np.ndarray:
    """Returns each class's bin by `low <= count < high`, (K,) int64 for (K,) counts; -1 outside all bins."""
    check_edges(edges)
    index = np.searchsorted(edges, np.asarray(instance_count), side="right") - 1
    return np.where(index < len(edges) - 1, index, -1)


def bin_counts(instance_count: np.ndarray, edges: tuple[float, ...] = BINS) -> list[int]:
    """Returns the number of classes in each bin (Table 1 of the paper)."""
    index = bin_index(instance_count, edges)
    return np.bincount(index[index >= 0], minlength=len(edges) - 1).tolist()


def check_edges(edges: tuple[float, ...]) -> None:
    """Raises ValueError unless there are at least two edges, ascending from 0 or more."""
    if len(edges) < 2 or edges[0] < 0 or not _is_ascending(edges):
        raise ValueError(f"bins are {tuple(edges)}, expected ascending edges from 0, such as {BINS}")


def _is_ascending(edges: tuple[float, ...]) -> bool:
    return all(low < high for low, high in itertools.pairwise(edges))
