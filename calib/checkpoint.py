"""Checkpoints of a training run: one safetensors file, weights, momentum and the run's state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from calib.head_io import FORMAT, INFO_FILE, WEIGHTS_FILE, load_info
from calib.heads import Head
from calib.metrics import METRICS_FILE, TENSORBOARD_FOLDER, is_metrics_file
from extract.utils.files import PARTIAL, write_bytes

CHECKPOINT_FILE = "checkpoint.safetensors"
# config.json goes last: as long as it is there, the folder is known as a head's.
_OWN_FILES = (TENSORBOARD_FOLDER, METRICS_FILE, CHECKPOINT_FILE, WEIGHTS_FILE, INFO_FILE)


def is_finished(out: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the finished head of this very configuration.

    Raises:
        ValueError: it holds something else, or a run of another configuration.
    """
    _check_folder(out)
    finished = (out / INFO_FILE).exists()
    if finished:
        _refuse_changes(out, load_info(out).config, identity)
    elif (out / CHECKPOINT_FILE).exists():
        _refuse_changes(out, _header(out / CHECKPOINT_FILE)["config"], identity)
    return finished


def prepare_folder(out: Path, overwrite: bool) -> None:
    """Makes the output folder; `overwrite` empties it of a run. Raises as `is_finished` does."""
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in _OWN_FILES if overwrite else ():
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)


def save_checkpoint(
    out: Path,
    step: int,
    head: Head,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    identity: dict[str, Any],
) -> None:
    """Replaces the folder's checkpoint atomically by the state after `step` steps."""
    tensors = {f"head.{name}": tensor.contiguous() for name, tensor in head.state_dict().items()}
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
    state = {"step": step, "config": identity, "scaler": scaler.state_dict()}
    write_bytes(out / CHECKPOINT_FILE, save(tensors, {"state": msgspec.json.encode(state).decode()}))


def load_checkpoint(out: Path, head: Head, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    """Puts the checkpoint, if there is one, into head, optimizer and scaler; returns the steps done.

    Raises:
        ValueError: the file is damaged.
    """
    file = out / CHECKPOINT_FILE
    if not file.exists():
        return 0
    state = _header(file)
    with safe_open(file, framework="pt") as tensors:
        head.load_state_dict({name: tensors.get_tensor(f"head.{name}") for name in head.state_dict()})
        for name, parameter in head.named_parameters():
            if parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"].copy_(tensors.get_tensor(f"momentum.{name}"))
    scaler.load_state_dict(state["scaler"])
    return state["step"]


def remove_checkpoint(out: Path) -> None:
    """Removes the checkpoint of a finished run."""
    (out / CHECKPOINT_FILE).unlink(missing_ok=True)


def _header(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return msgspec.json.decode(tensors.metadata()["state"], type=dict)
    except (SafetensorError, TypeError, KeyError, msgspec.MsgspecError) as error:
        raise ValueError(f"{file}: damaged or not a checkpoint ({error}); remove it to start anew") from None


def _check_folder(out: Path) -> None:
    """Raises ValueError for what is neither empty nor a run's, so that nothing of anybody else is replaced.

    A run is known by its config.json, before that by its checkpoint, before that by having nothing but metrics.
    """
    if not out.exists():
        return
    if (out / INFO_FILE).is_file():
        own = _format(out / INFO_FILE) == FORMAT
    elif (out / CHECKPOINT_FILE).is_file():
        own = "config" in _header(out / CHECKPOINT_FILE)
    else:
        own = out.is_dir() and _only_metrics(out)
    if not own:
        raise ValueError(f"{out}: exists and is not the folder of a head")


def _format(file: Path) -> object:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict).get("format")
    except (ValueError, msgspec.MsgspecError):
        return None


def _only_metrics(out: Path) -> bool:
    names = {file.name for file in out.iterdir()} - {name + PARTIAL for name in _OWN_FILES}
    return not names or (names <= {METRICS_FILE, TENSORBOARD_FOLDER} and is_metrics_file(out / METRICS_FILE))


def _refuse_changes(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in now if now[name] != there.get(name)]
    if changed:
        changes = ", ".join(f"{name} {str(there.get(name))[:20]} → {str(now[name])[:20]}" for name in changed)
        raise ValueError(f"{out}: was begun with another configuration ({changes}); --overwrite starts anew")
