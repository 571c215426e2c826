"""The folder of a training run: whether it is one, and the checkpoint in it.

A checkpoint is one safetensors file with weights, momentum and the state of the run, which has a sha256 over all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from calib.head_io import FORMAT, INFO_FILE, WEIGHTS_FILE, load_info, read_format
from calib.heads import Head
from calib.metrics import METRICS_FILE, TENSORBOARD_FOLDER, is_metrics_file
from extract.utils.files import PARTIAL, is_partial, remove_partials, write_bytes
from extract.utils.folders import partial_folder, remove_folder
from extract.utils.identity import refuse_changes

CHECKPOINT_FILE = "checkpoint.safetensors"
_OWN_FILES = (TENSORBOARD_FOLDER, METRICS_FILE, CHECKPOINT_FILE, WEIGHTS_FILE, INFO_FILE)


def holds_finished(out: Path, identity: dict[str, Any]) -> bool:
    """Returns whether the folder holds the finished head of this configuration; False for anything else."""
    try:
        return is_finished(out, identity)
    except ValueError:
        return False


def is_finished(out: Path, identity: dict[str, Any]) -> bool:
    """Returns whether the folder holds the finished head of this configuration.

    Raises:
        ValueError: the folder holds other files, or a run of another configuration.
    """
    _check_folder(out)
    finished = (out / INFO_FILE).exists()
    if finished:
        refuse_changes(out, load_info(out).config, identity)
    elif (out / CHECKPOINT_FILE).exists():
        refuse_changes(out, _read_state(out / CHECKPOINT_FILE)["config"], identity)
    return finished


def writing_folder(out: Path, overwrite: bool) -> Path:
    """Returns the folder in which a run writes: with `overwrite` beside `out`, whose place it takes when finished."""
    return partial_folder(Path(os.path.realpath(out))) if overwrite else out


def discard_other(out: Path, identity: dict[str, Any]) -> None:
    """Removes what an interrupted `--overwrite` of another configuration has left beside `out`.

    Raises:
        ValueError: `out`, or the folder beside it, holds other files.
    """
    folder = writing_folder(out, overwrite=True)
    for one in (out, folder):
        _check_folder(one)
    if folder.exists() and not _is_of(folder, identity):
        remove_folder(folder)


def _is_of(folder: Path, identity: dict[str, Any]) -> bool:
    """Returns whether a run that was begun in the folder is of this configuration."""
    try:
        is_finished(folder, identity)
    except ValueError:
        return False
    return (folder / CHECKPOINT_FILE).exists()


def prepare_folder(out: Path) -> None:
    """Creates the folder of a run.

    Raises:
        ValueError: the folder holds other files.
    """
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)


def save_checkpoint(
    out: Path, step: int, head: Head, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Writes the state after `step` steps; replaces the folder's checkpoint atomically."""
    tensors = {f"head.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    state = {"step": step, "config": head.info.config, "choice": head.info.choice, "scaler": scaler.state_dict()}
    state["sha256"] = _sha256(tensors, state)
    write_bytes(out / CHECKPOINT_FILE, save(tensors, {"state": msgspec.json.encode(state).decode()}))


def read_choice(out: Path) -> dict[str, Any]:
    """Returns the head type's choice in the folder's checkpoint; empty if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    file = out / CHECKPOINT_FILE
    return _read_state(file).get("choice", {}) if file.exists() else {}


def load_checkpoint(out: Path, head: Head, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    """Loads the folder's checkpoint into head, optimizer and scaler; returns its step, 0 if there is no checkpoint.

    Raises:
        ValueError: the file is damaged.
    """
    file = out / CHECKPOINT_FILE
    if not file.exists():
        return 0
    state = _read_state(file)
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    if "sha256" in state and state["sha256"] != _sha256(tensors, state):
        raise ValueError(f"{file}: damaged: its content does not have the sha256 in it; remove it to start anew")
    head.load_state_dict({name: tensors[f"head.{name}"] for name in head.state_dict()})
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            optimizer.state[parameter]["momentum_buffer"].copy_(tensors[f"momentum.{name}"])
    scaler.load_state_dict(state["scaler"])
    return state["step"]


def remove_checkpoint(out: Path) -> None:
    """Removes the checkpoint of a finished run, and what killed processes have left of files they were writing."""
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    remove_partials(out)


def _read_state(file: Path) -> dict[str, Any]:
    """Returns step, config and scaler of a checkpoint. Raises ValueError for another or a damaged file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return msgspec.json.decode(tensors.metadata()["state"], type=dict)
    except (SafetensorError, TypeError, KeyError, msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"{file}: damaged or not a checkpoint ({error}); remove it to start anew") from None


def _check_folder(out: Path) -> None:
    """Raises ValueError for a folder that is neither empty nor a run's, so that no other files are overwritten.

    A finished run has a config.json, an unfinished one a checkpoint; before the first checkpoint it has only metrics,
    and weights if it was killed before it could write the config.json.
    """
    if not out.exists():
        return
    if (out / INFO_FILE).is_file():
        is_run = read_format(out) == FORMAT
    elif (out / CHECKPOINT_FILE).is_file():
        is_run = "config" in _read_state(out / CHECKPOINT_FILE)
    else:
        is_run = out.is_dir() and _has_only_metrics(out)
    if not is_run:
        raise ValueError(f"{out}: exists and is not the folder of a head")


def _has_only_metrics(out: Path) -> bool:
    """Returns whether the folder is empty or has only metrics and weights, beside partial files of this library."""
    names = {file.name for file in out.iterdir() if not is_partial(file.name)}
    names -= {name + PARTIAL for name in _OWN_FILES}  # of earlier versions
    own = {METRICS_FILE, TENSORBOARD_FOLDER, WEIGHTS_FILE}
    return not names or (names <= own and is_metrics_file(out / METRICS_FILE))


def _sha256(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str:
    """Returns the sha256 of a checkpoint's tensors, with their names and shapes, and of its state."""
    description = {name: value for name, value in state.items() if name != "sha256"}
    digest = hashlib.sha256(msgspec.json.encode(description, order="sorted"))
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().cpu().numpy().data)
    return digest.hexdigest()
