"""Checkpoint files, read without running code in them: .safetensors, files of `torch.save`, pickles of arrays."""

from __future__ import annotations

import codecs
import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from extract.utils.errors import one_line

TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
"""Of files that `torch.save` writes: a ZIP archive, or the magic number of versions before 1.6."""
OTHER_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer instead of the file: `git lfs pull` fetches it",
    b"<": "a web page or XML, perhaps that of a failed download",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed by gzip: unpack it",
}
"""How files begin that are taken for weights, and what they are."""


def read_checkpoint(path: Path) -> Mapping[Any, Any]:
    """Reads a checkpoint; its format is told by its content, else by its suffix.

    Objects other than tensors, arrays and plain values, such as a trainer's, become placeholders without behaviour. A
    model that was saved as a whole becomes its state_dict.

    Raises FileNotFoundError, or ValueError naming the file and what it is instead.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder, expected a' if path.is_dir() else 'no such'} weights file")
    with path.open("rb") as file:
        beginning = file.read(32)
    for start, description in OTHER_BEGINNINGS.items():
        if beginning.startswith(start):
            raise ValueError(f"{path}: not a state_dict of tensors but {description}")
    if beginning.startswith(TORCH_BEGINNINGS):
        content = _read_torch(path)
    elif path.suffix == ".safetensors" or beginning[8:10] == b'{"':
        content = _read_safetensors(path)
    elif path.suffix == ".pkl" or beginning.startswith(b"\x80"):
        content = _read_pickle(path)
    else:
        content = _read_torch(path)
    content = module_state(content) if isinstance(content, Placeholder) else content
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: not a state_dict of tensors but a {type(content).__name__}")
    return content


class Placeholder:
    """The replacement of every object of a pickle that is not an array; its methods do nothing.

    Attributes:
        state: the attributes that the pickle holds for the object; not set if it holds none.
    """

    state: Mapping[str, Any]
    dump_patches = False  # torch before 1.6 compares sources of modules' classes

    def __new__(cls, *args: object, **kwargs: object) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Placeholder:
        return Placeholder()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.state = state

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def module_state(placeholder: Placeholder, prefix: str = "") -> dict[str, Tensor]:
    """Returns the state_dict of a module that was pickled as a whole; {} for other objects."""
    attributes = getattr(placeholder, "state", {})
    temporary = attributes.get("_non_persistent_buffers_set")
    state = {}
    kinds = ("_parameters", "_buffers", "_modules")
    parameters, buffers, modules = (v if isinstance(v := attributes.get(kind), dict) else {} for kind in kinds)
    for name, value in {**parameters, **buffers}.items():
        if isinstance(value, Tensor) and not (isinstance(temporary, set) and name in temporary):
            state[f"{prefix}{name}"] = value
    for name, child in modules.items():
        if isinstance(child, Placeholder) and prefix.count(".") < 100:  # a module may hold itself
            state |= module_state(child, f"{prefix}{name}.")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a safetensors file: {one_line(error)}") from None


def _read_torch(path: Path) -> object:
    if any(name.endswith("/constants.pkl") for name in _archived(path)):
        raise ValueError(f"{path}: a TorchScript program, which is code: save the model's state_dict()")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises exceptions of many types
        if "Unsupported global" not in str(error):
            raise ValueError(f"{path}: damaged, or not a file that torch.save has written") from None
    restricted = SimpleNamespace(__name__="restricted", Unpickler=_RestrictedUnpickler, load=_load_restricted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the source of a placeholder is not that of the class
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read without running code of its own: {one_line(error)}") from None


def _archived(path: Path) -> list[str]:
    """Returns the names of the files in a ZIP archive; [] for what is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _read_pickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            return _load_restricted(file, encoding="latin1")
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path}: not a pickle of arrays: {one_line(error)}") from None


def _load_storage(content: bytes) -> object:
    """Loads a tensor's storage in a plain pickle; torch's own function would not restrict it."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler of arrays, tensors and plain containers; any other class or function becomes `Placeholder`."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(import_module("numpy._core.multiarray"), name)
        if module == "numpy._core.numeric" and name == "_frombuffer":
            return getattr(import_module(module), name)
        if module == "torch._utils" and name in _REBUILD:
            return getattr(torch._utils, name)
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        return Placeholder


def _load_restricted(file: BinaryIO, **options: Any) -> object:
    return _RestrictedUnpickler(file, **options).load()
