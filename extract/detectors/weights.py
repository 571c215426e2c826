"""Files of a detector's weights: read without running code in them, loaded only if all keys and shapes match."""

from __future__ import annotations

import codecs
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

STATE_DICT_KEYS = ("model", "state_dict")
"""Keys under which the checkpoints of frameworks hold the state_dict."""


def load_weights(model: nn.Module, path: Path) -> str:
    """Loads .safetensors, .pth (its tensors only) or a model zoo's .pkl of arrays, and returns the file's sha256.

    Raises FileNotFoundError, or ValueError naming a key that is missing, unexpected or of another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    state = read_state_dict(path)
    expected = model.state_dict()
    # Files of older versions hold buffers that are not persistent any more, such as a pixel mean.
    non_persistent = {name for name, _ in model.named_buffers()} - expected.keys()
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    differences = [f"lacks {key}" for key in expected.keys() - state.keys() - counters]
    unexpected = state.keys() - expected.keys() - non_persistent
    differences += [f"has {key}, which the model does not have" for key in unexpected]
    differences += [
        f"{key} has shape {tuple(state[key].shape)}, the model's {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if differences:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise ValueError(f"{path}: weights of another model: {min(differences)}{more}")
    model.load_state_dict({key: state.get(key, value) for key, value in expected.items()})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a weights file by name. Raises ValueError naming the file."""
    readers = {".safetensors": _read_safetensors, ".pkl": _read_pickle}
    content = readers.get(path.suffix, _read_torch)(path)
    for key in STATE_DICT_KEYS:
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: not a state_dict of tensors")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        tensor = _to_tensor(value)
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: not a state_dict of tensors")
        state[key] = tensor
    # DistributedDataParallel adds a prefix to every key.
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module."): value for key, value in state.items()} if wrapped else state


def _to_tensor(value: object) -> object:
    """Converts an array of numbers to a tensor; returns anything else unchanged."""
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except TypeError:  # strings, objects
        return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def _read_torch(path: Path) -> object:
    """Reads a checkpoint; objects that are not tensors, such as a trainer's state, become placeholders."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises exceptions of many types
        if "Unsupported global" not in str(error):
            raise ValueError(f"{path}: not a file that torch.save has written") from None
    restricted = SimpleNamespace(__name__="restricted", Unpickler=_RestrictedUnpickler, load=_load_restricted)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read without running code of its own: {error}") from None


def _read_pickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            return _load_restricted(file, encoding="latin1")
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path}: not a pickle of arrays: {error}") from None


class _Placeholder:
    """The replacement of every object of a pickle that is not an array; its methods do nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Placeholder:
        return _Placeholder()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler of arrays, tensors and plain containers; any other class or function becomes `_Placeholder`."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(import_module("numpy._core.multiarray"), name)
        if module == "numpy._core.numeric" and name == "_frombuffer":
            return getattr(import_module(module), name)
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return getattr(torch._utils, name)
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        return _Placeholder


def _load_restricted(file: BinaryIO, **options: Any) -> object:
    return _RestrictedUnpickler(file, **options).load()
