"""Files of a detector's weights: read without running what is in them, loaded only where every key fits."""

from __future__ import annotations

import codecs
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

WRAPPERS = ("model", "state_dict")
"""Keys under which frameworks keep the state_dict of a checkpoint."""


def load_weights(model: nn.Module, path: Path) -> str:
    """Loads .safetensors, .pth (tensors; whatever else is in it is not built) or a model zoo's .pkl of arrays.

    Returns the file's sha256. Raises FileNotFoundError, or ValueError naming the keys that are missing, unexpected
    or of another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    state = read_state(path)
    expected = model.state_dict()
    # Buffers that a model makes itself, such as a pixel mean, are in files of older versions.
    own = {name for name, _ in model.named_buffers()} - expected.keys()
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    faults = [f"lacks {key}" for key in expected.keys() - state.keys() - counters]
    faults += [f"has {key}, which the model has not" for key in state.keys() - expected.keys() - own]
    faults += [
        f"{key} has shape {tuple(state[key].shape)}, the model's {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more differences)" if len(faults) > 1 else ""
        raise ValueError(f"{path}: weights of another model: {min(faults)}{more}")
    model.load_state_dict({key: state.get(key, value) for key, value in expected.items()})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name. Raises ValueError naming the file."""
    readers = {".safetensors": _read_safetensors, ".pkl": _read_pickle}
    state = readers.get(path.suffix, _read_torch)(path)
    for wrapper in WRAPPERS:
        state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    state = {key: _as_tensor(value) for key, value in state.items()} if isinstance(state, Mapping) else {None: state}
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise ValueError(f"{path}: not a state_dict of tensors")
    # DistributedDataParallel puts its own name before every key.
    wrapped = all(key.startswith("module.") for key in state)
    return {key.removeprefix("module."): value for key, value in state.items()} if wrapped else state


def _as_tensor(value: object) -> object:
    """An array of numbers as a tensor; anything else as it is."""
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
    """A checkpoint of tensors alone, or of tensors and other objects, such as a trainer's state, that are ignored."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch finds wrong, what helps is the same
        if "Unsupported global" not in str(error):
            raise ValueError(f"{path}: not a file that torch.save has written") from None
    restricted = SimpleNamespace(__name__="restricted", Unpickler=_Restricted, load=_load_restricted)
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


class _Inert:
    """Stands for every object of a pickle that is no array: it is built, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return _Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Restricted(pickle.Unpickler):
    """Builds arrays, tensors and plain containers; any other class or function becomes `_Inert`."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)
        if module == "numpy._core.numeric" and name == "_frombuffer":
            return np._core.numeric._frombuffer
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return getattr(torch._utils, name)
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        return _Inert


def _load_restricted(file: BinaryIO, **options: str) -> object:
    return _Restricted(file, **options).load()
