"""Checksums of exports: of all files, as `sha256sum -c SHA256SUMS` compares them, and of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from extract.detectors.weights import tensors_sha256
from extract.utils.files import file_sha256, write_bytes

SUMS_FILE = "SHA256SUMS"


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes `SUMS_FILE`: the sha256 of each file by its name."""
    write_bytes(folder / SUMS_FILE, "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()).encode())


def check_sums(folder: Path) -> None:
    """Compares the files in a folder with its `SUMS_FILE`; exports of earlier versions have none.

    Raises ValueError or FileNotFoundError naming the file that is damaged or missing.
    """
    listed = folder / SUMS_FILE
    for line in listed.read_text(errors="replace").splitlines() if listed.exists() else ():
        sha256, _, name = line.partition("  ")
        if not name or Path(name).name != name:
            raise ValueError(f"{listed}: damaged: {line[:80]!r} is not a sha256 and the name of a file")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file, which {listed} lists")
        if file_sha256(folder / name) != sha256:
            text = f"damaged, or changed since the export: its sha256 is not that in {SUMS_FILE}"
            raise ValueError(f"{folder / name}: {text}; remove its line there if you have changed it")


def check_when_loaded(model: nn.Module, sha256: str) -> None:
    """Makes the model's `load_state_dict`, and what frameworks have in its place, refuse other tensors than exported.

    `sha256` is that of `tensors_sha256`; exports of earlier versions have "" and load unchecked.
    """
    if sha256:
        model.register_load_state_dict_pre_hook(partial(_check_state, sha256))


def _check_state(sha256: str, model: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    own = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if tensors_sha256(own) != sha256:
        raise ValueError(
            "the checkpoint is damaged, or of another export: its tensors do not have the sha256 in the exported "
            "config (tensors_sha256 of the calibration); clear it there if you have changed them"
        )
