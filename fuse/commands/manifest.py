"""run.json: the options and inputs of a folder's results, so that results of different runs are not mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import msgspec

from extract.utils.errors import one_line
from extract.utils.identity import refuse_changes
from fuse.commands.config import CacheConfig
from fuse.commands.live_config import PredictConfig
from fuse.commands.mask_config import MaskConfig, MergeMaskConfig
from fuse.commands.results_config import MergeConfig
from fuse.commands.select_config import SelectConfig

MANIFEST_FILE = "run.json"


def new_manifest(config: CacheConfig | MergeConfig | SelectConfig, **fingerprints: str) -> bytes:
    """Returns the options as JSON. A fingerprint `x_fingerprint` takes the place of the path in option `x`.

    Raises ValueError if the folder holds results of other options or inputs and `overwrite` is not set.
    """
    masks = MergeMaskConfig if isinstance(config, MergeConfig) else MaskConfig
    left_out = [field.name for field in fields(masks)]  # the IoU types say whether masks are evaluated
    file, current = config.out / MANIFEST_FILE, options_as_text(config, left_out=left_out, **fingerprints)
    if file.exists() and not config.overwrite:
        # Folders without a protocol are from the time when LVIS's was the only one.
        refuse_changes(config.out, {"protocol": "federated"} | _read(file), current)
    return msgspec.json.format(msgspec.json.encode(current))


def options_as_text(
    config: CacheConfig | MergeConfig | PredictConfig | SelectConfig,
    *,
    left_out: Iterable[str] = (),
    **fingerprints: str,
) -> dict[str, str]:
    """Returns the options that results depend on, without `left_out`; fingerprints as in `new_manifest`."""
    without = {
        "out",
        "overwrite",
        "strict",
        "bootstrap",
        "errors",
        "memory_limit",
        *left_out,
        *(name.removesuffix("_fingerprint") for name in fingerprints),
    }
    return {name: _text(value) for name, value in asdict(config).items() if name not in without} | fingerprints


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Returns the sha256 over the content of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _text(value: object) -> str:
    """Returns an option as text; equal numbers and equal paths have equal texts."""
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value.resolve() if isinstance(value, Path) else value)


def _read(file: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged: {one_line(error)}") from None
