"""Mutations of JSON documents and of bytes, by a generator's numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

MARK = "\ue000"
"""Begins text that stands for JSON that Python's writer does not write."""
RAW = ("1e400", "-1e400", "NaN", "Infinity", "1" * 400, "-0", "1E5", '"\\ud800"', "[" * 5_000 + "]" * 5_000)
VALUES: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e-320, 1e300, -1e300),
    *(2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30),
    *("", "a", "1", "nan", "1e5", "\x00", "\n", "../../x", "<script>", "é" * 300, "x" * 100_000),
    *([], {}, [[]], [1], [1, 2, 3, 4], ["a"], [None], [1e30] * 4, {"a": 1}, {"size": [3, 3], "counts": "0"}),
    *({"size": [2**31, 2**31], "counts": []}, {"size": [48, 64], "counts": [2**40]}, [[0, 0, 1, 1, 2, 2]]),
    *(MARK + raw for raw in RAW),
)
MAX_EDITS = 4
SPLICE = 64
"""Bytes of one edit, at most."""


def mutate_json(document: Any, rng: np.random.Generator, edits: int | None = None) -> bytes:
    """Returns a document with nodes replaced, removed, repeated or exchanged; in an eighth also with changed bytes."""
    document = copy.deepcopy(document)
    for _ in range(edits or int(rng.integers(1, MAX_EDITS))):
        places = list(_places(document))
        if not places:
            break
        _edit(*places[int(rng.integers(len(places)))], places, rng)
    text = json.dumps(document)
    for raw in RAW:
        text = text.replace(json.dumps(MARK + raw), raw)
    content = text.encode(errors="surrogatepass")
    return content if rng.integers(8) else mutate_bytes(content, rng)


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns bytes with a few of them changed, removed, inserted or repeated, or with their end cut off."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, MAX_EDITS))):
        begin = int(rng.integers(len(changed) + 1))
        end = min(begin + int(rng.integers(1, SPLICE)), len(changed))
        kind = int(rng.integers(7))
        if kind == 0:
            del changed[begin:end]
        elif kind == 1:
            changed[begin:begin] = rng.bytes(end - begin)
        elif kind == 2:
            changed[begin:end] = bytes([int(rng.choice([0, 255]))]) * (end - begin)
        elif kind == 3:
            changed[begin:begin] = changed[begin:end]
        elif kind == 4 and not rng.integers(4):
            del changed[begin:]
        elif begin < len(changed):
            changed[begin] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of every node below."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    for key in keys:
        yield node, key
        yield from _places(node[key])


def _edit(container: Any, key: Any, places: list[tuple[Any, Any]], rng: np.random.Generator) -> None:
    kind = int(rng.integers(8))
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif kind == 2:
        other, place = places[int(rng.integers(len(places)))]
        container[key] = copy.deepcopy(other[place])
    elif kind == 3 and isinstance(container, dict):
        container[f"{key}{'' if rng.integers(2) else ' '}x"] = container.pop(key)
    else:
        container[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
