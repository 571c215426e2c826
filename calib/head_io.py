"""Heads on disk: a folder with `head.safetensors` (weights) and `config.json` (the description, `HeadInfo`).

`config.json` has the sha256 of the weights' file and of its own content, which loading compares. Heads of versions
without them load unchecked.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from calib.heads import Head, HeadInfo
from calib.metrics import METRICS_FILE, TENSORBOARD_FOLDER
from extract.utils.errors import one_line, other_version
from extract.utils.files import file_sha256, write_bytes
from extract.utils.folders import can_be_replaced, put_in_place, settle, unused_partial
from extract.utils.locks import one_writer

FORMAT = "tailcal-head"
VERSION = 1
WEIGHTS_FILE = "head.safetensors"
INFO_FILE = "config.json"
WEIGHTS_SUM, INFO_SUM = "head_sha256", "config_sha256"
"""Fields of `config.json`: sha256 of the weights' file, and of the other fields."""
LARGEST_WIDTH = 2**31


def save_head(head: Head, path: str | Path) -> None:
    """Writes the folder of a head; at every moment a head that is there already is the old or the new one, whole.

    Metrics in the folder stay. A folder that also has other files keeps them; it cannot be replaced as a whole, and has
    no head between the old and the new one.

    Raises InUseError if another process is writing the folder.
    """
    path = Path(os.path.realpath(path))
    with one_writer(path):
        settle_head(path)
        own = (WEIGHTS_FILE, INFO_FILE, METRICS_FILE, TENSORBOARD_FOLDER)
        if not ((path / INFO_FILE).exists() and can_be_replaced(path, own)):
            write_head(head, path)
            return
        new = unused_partial(path)
        shutil.copytree(path, new, ignore=shutil.ignore_patterns(WEIGHTS_FILE, INFO_FILE))
        write_head(head, new)
        put_in_place(new, path)


def settle_head(path: Path) -> bool:
    """Finishes or undoes a replacement of a head that was killed at its end; returns whether it has finished one."""
    return settle(path, lambda folder: read_format(folder) == FORMAT, INFO_FILE)


def read_format(path: Path) -> object:
    """Returns the format that a folder's `config.json` names; None if there is none."""
    try:
        return msgspec.json.decode((path / INFO_FILE).read_bytes(), type=dict).get("format")
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None


def write_head(head: Head, path: Path) -> None:
    """Writes the files of a head to a folder. `config.json` is written last: it marks the head as complete."""
    path.mkdir(parents=True, exist_ok=True)
    (path / INFO_FILE).unlink(missing_ok=True)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}
    weights = save(tensors)
    write_bytes(path / WEIGHTS_FILE, weights)
    info = {"format": FORMAT, "version": VERSION, **asdict(head.info), WEIGHTS_SUM: hashlib.sha256(weights).hexdigest()}
    info[INFO_SUM] = _info_sha256(info)
    write_bytes(path / INFO_FILE, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")


def load_head(path: str | Path, device: str | torch.device = "cpu") -> Head:
    """Loads the head that `save_head` or `python -m calib.train` wrote to a folder.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, of another version, or its tensors do not fit `config.json`.
    """
    path = Path(path)
    raw = _read_info(path)
    info, file = _check_info(raw, path / INFO_FILE), path / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    _check_size(info, file)
    head = Head(info)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged: {one_line(error)}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != expected.get(name):
            raise ValueError(f"{file}: {name} is {found}, expected {expected.get(name)} from {INFO_FILE}")
    _check_weights(raw, file)
    head.load_state_dict(tensors)
    return head.to(device).eval()


def load_info(path: str | Path) -> HeadInfo:
    """Reads and checks the `config.json` of a head's folder. Raises FileNotFoundError or ValueError."""
    return _check_info(_read_info(Path(path)), Path(path) / INFO_FILE)


def _read_info(path: Path) -> dict[str, Any]:
    """Reads `config.json`. Raises FileNotFoundError, or ValueError for what is no JSON object."""
    file = path / INFO_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no finished head there; calib.train makes one, and finishes one it began")
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"{file}: {one_line(error)}") from None


def _check_info(raw: dict[str, Any], file: Path) -> HeadInfo:
    """Returns the description in the content of `config.json`. Raises ValueError naming the file and the field."""
    try:
        if raw.get("format") != FORMAT:
            raise ValueError(f"format is {raw.get('format')!r}, expected {FORMAT!r}")
        if (version := raw.get("version")) != VERSION:
            raise ValueError(f"format {other_version(version, VERSION)}")
        info = msgspec.convert(raw, HeadInfo)
        ends = (math.prod(info.feature_shape) - info.rank, len(info.category_ids) + 1)
        if len(info.widths) < 2 or (info.widths[0], info.widths[-1]) != ends:
            raise ValueError(f"widths are {info.widths}, expected to lead from {ends[0]} to {ends[1]}")
        if not all(0 < width < LARGEST_WIDTH for width in info.widths):
            raise ValueError(f"widths are {info.widths}, expected 1 to {LARGEST_WIDTH - 1}")
        for field in ("names", "instance_counts"):
            if (count := len(getattr(info, field))) != len(info.category_ids):
                raise ValueError(f"{count} {field} for {len(info.category_ids)} category_ids")
        if INFO_SUM in raw and raw[INFO_SUM] != _info_sha256(raw):
            raise ValueError(f"damaged, or changed by hand: its content does not have the sha256 in {INFO_SUM}")
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"{file}: {one_line(error)}") from None
    return info


def _check_size(info: HeadInfo, file: Path) -> None:
    """Raises ValueError if the file is too small for the head's layers, before memory is allocated for them."""
    weights = sum(a * b for a, b in pairwise(info.widths))
    weights += info.rank * info.pooled_size + info.groups * info.widths[-2]
    size = file.stat().st_size
    if min(info.rank, info.pooled_size, info.groups) < 0 or weights * len(info.stages) > size:
        raise ValueError(f"{file}: has {size:,} bytes, too few for widths {info.widths} in {INFO_FILE}")


def _check_weights(raw: dict[str, Any], file: Path) -> None:
    """Raises ValueError if the file is not the one that `config.json` was written for."""
    if WEIGHTS_SUM in raw and file_sha256(file) != raw[WEIGHTS_SUM]:
        raise ValueError(f"{file}: damaged, or of another head: its sha256 is not the {WEIGHTS_SUM} of {INFO_FILE}")


def _info_sha256(info: dict[str, Any]) -> str:
    """Returns the sha256 of the fields of `config.json` without their own."""
    others = {name: value for name, value in info.items() if name != INFO_SUM}
    return hashlib.sha256(msgspec.json.encode(others, order="sorted")).hexdigest()
