"""Finds a model's state_dict in a checkpoint, under keys such as `model` and behind prefixes such as `module.`."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from extract.detectors.checkpoint_files import Placeholder, module_state

WRAPPER_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights")
"""Keys of checkpoints that hold the state_dict, preferred ones first: detectron2, mmengine and PyTorch's recipes take
these and leave averaged weights beside them (in mmengine's files, `state_dict` is the averaged one itself)."""
WRAPPER_MODULES = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Modules that wrap others (DataParallel, torch.compile, FSDP), anywhere in a model."""
TWIN = re.compile(r"(?:^|[./_])(?:ema|swa|averaged?|student|momentum)(?:$|[./_])")
"""Weights beside the trained ones. Of teacher and student, mmdetection's inference takes the teacher."""
SIMILAR = 0.9
"""State_dicts with at least this share of the best one's matching keys are of the same model."""
MAX_DEPTH = 4
"""Of the mappings in a checkpoint."""


class FoundState(NamedTuple):
    """The state_dict of a model in a checkpoint.

    Attributes:
        state: tensors by their names in the model; `_metadata`, the versions of its modules, is kept.
        outside: keys of other tensors beside them.
        location: the keys and the prefix that lead to the tensors, "" for the checkpoint itself.
        twins: locations of other weights of the same model, such as averaged ones.
    """

    state: OrderedDict[str, Tensor]
    outside: list[str]
    location: str
    twins: list[str]


class _Candidate(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: Mapping[str, Any]
    path: str
    prefix: str
    matches: int

    @property
    def location(self) -> str:
        return "/".join(filter(None, (self.path, self.prefix)))

    @property
    def rank(self) -> tuple[object, ...]:
        """Is smaller for candidates that are preferred."""
        keys = [WRAPPER_KEYS.index(k) if k in WRAPPER_KEYS else len(WRAPPER_KEYS) for k in self.path.split("/") if k]
        return bool(TWIN.search(f"{self.path}/{self.prefix}")), keys, self.prefix != "", -self.matches


def find_state_dict(checkpoint: Mapping[Any, Any], expected: Collection[str]) -> FoundState:
    """Finds the tensors whose keys end like the model's, wherever they are in the checkpoint.

    Args:
        checkpoint: what `read_checkpoint` returns.
        expected: keys of the model's own state_dict.

    Raises ValueError if there are no tensors, or other weights of the model that are as likely to be meant.
    """
    expected = set(expected)
    wrappers = WRAPPER_MODULES - {part for key in expected for part in key.split(".")}
    candidates = []
    for path, tensors, metadata in _state_dicts(checkpoint):
        keys = [_unwrapped(key, wrappers) for key in tensors]
        prefixes = _count_prefixes(keys, expected) or {"": 0}
        candidates += [_Candidate(tensors, metadata, path, prefix, count) for prefix, count in prefixes.items()]
    if not candidates:
        raise ValueError("not a state_dict of tensors, and none is in it")
    most = max(candidate.matches for candidate in candidates)
    if not most:
        largest = max(candidates, key=lambda candidate: len(candidate.tensors))
        return FoundState(OrderedDict(largest.tensors), [], largest.location, [])
    first, *others = sorted((c for c in candidates if c.matches >= SIMILAR * most), key=lambda c: c.rank)
    found = _strip(first, wrappers)
    for other in others:
        if other.rank == first.rank and not _equal(found.state, _strip(other, wrappers).state):
            raise ValueError(
                f"holds weights of this model under {first.location} and under {other.location}: "
                "save a file with those to use"
            )
    return found._replace(twins=[other.location or "no key" for other in others])


def _state_dicts(
    content: object, path: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor], Mapping[str, Any]]]:
    """Yields the path, the tensors and the modules' metadata of every mapping that has tensors."""
    content = module_state(content) if isinstance(content, Placeholder) else content
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return
    items = {key: _to_tensor(value) for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in items.items() if isinstance(value, Tensor)}
    if tensors:
        metadata = getattr(content, "_metadata", None)
        yield path, tensors, metadata if isinstance(metadata, Mapping) else {}
    for key, value in items.items():
        yield from _state_dicts(value, f"{path}/{key}" if path else key, depth + 1)


def _count_prefixes(keys: Iterable[str], expected: set[str]) -> Counter[str]:
    """Counts for each prefix the keys that are one of the model's behind it."""
    counts: Counter[str] = Counter()
    for key in keys:
        begin = 0
        while key[begin:]:
            if key[begin:] in expected:
                counts[key[:begin]] += 1
            begin = key.find(".", begin) + 1 or len(key)
    return counts


def _strip(candidate: _Candidate, wrappers: frozenset[str]) -> FoundState:
    """Takes wrappers and the prefix off the keys of tensors and metadata."""
    state, outside = OrderedDict[str, Tensor](), []
    for key, tensor in candidate.tensors.items():
        name = _unwrapped(key, wrappers)
        stripped = name.removeprefix(candidate.prefix)
        if not name.startswith(candidate.prefix) or stripped in state:
            outside.append(key)
        else:
            state[stripped] = tensor
    modules = {f"{_unwrapped(key, wrappers)}.": value for key, value in candidate.metadata.items()}
    metadata = {
        key.removeprefix(candidate.prefix).strip("."): value
        for key, value in modules.items()
        if key.startswith(candidate.prefix)
    }
    state._metadata = metadata  # type: ignore[attr-defined]  # as of a state_dict of torch
    return FoundState(state, outside, candidate.location, [])


def _unwrapped(key: str, wrappers: frozenset[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in wrappers)


def _to_tensor(value: object) -> object:
    """Converts an array of numbers to a tensor; returns anything else unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except TypeError:  # strings, objects
        return value


def _equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())
