"""Heads on disk: a folder with `head.safetensors` (weights) and `config.json` (the description, `HeadInfo`)."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from calib.heads import Head, HeadInfo
from extract.utils.files import write_bytes

FORMAT = "tailcal-head"
VERSION = 1
WEIGHTS_FILE = "head.safetensors"
INFO_FILE = "config.json"


def save_head(head: Head, path: str | Path) -> None:
    """Writes the folder of a head. `config.json` is written last: it marks the head as complete."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / INFO_FILE).unlink(missing_ok=True)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}
    write_bytes(path / WEIGHTS_FILE, save(tensors))
    info = msgspec.json.encode({"format": FORMAT, "version": VERSION, **asdict(head.info)})
    write_bytes(path / INFO_FILE, msgspec.json.format(info, indent=2) + b"\n")


def load_head(path: str | Path, device: str | torch.device = "cpu") -> Head:
    """Loads the head that `save_head` or `python -m calib.train` wrote to a folder.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, of another version, or its tensors do not fit `config.json`.
    """
    path = Path(path)
    head = Head(load_info(path))
    file = path / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged: {error}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != expected.get(name):
            raise ValueError(f"{file}: {name} is {found}, expected {expected.get(name)} from {INFO_FILE}")
    head.load_state_dict(tensors)
    return head.to(device).eval()


def load_info(path: str | Path) -> HeadInfo:
    """Reads and checks the `config.json` of a head's folder. Raises FileNotFoundError or ValueError."""
    file = Path(path) / INFO_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no finished head there; calib.train makes one, and finishes one it began")
    try:
        raw = msgspec.json.decode(file.read_bytes(), type=dict)
        if raw.get("format") != FORMAT:
            raise ValueError(f"format is {raw.get('format')!r}, expected {FORMAT!r}")
        if raw.get("version") != VERSION:
            raise ValueError(f"version is {raw.get('version')!r}, this library reads {VERSION}")
        info = msgspec.convert(raw, HeadInfo)
        ends = (math.prod(info.feature_shape) - info.rank, len(info.category_ids) + 1)
        if len(info.widths) < 2 or (info.widths[0], info.widths[-1]) != ends:
            raise ValueError(f"widths are {info.widths}, expected to lead from {ends[0]} to {ends[1]}")
        for field in ("names", "instance_counts"):
            if (count := len(getattr(info, field))) != len(info.category_ids):
                raise ValueError(f"{count} {field} for {len(info.category_ids)} category_ids")
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"{file}: {error}") from None
    return info
