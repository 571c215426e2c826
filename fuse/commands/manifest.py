"""run.json: what a folder's results are of, so that no other run's are mixed with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import msgspec

from fuse.config import FusionOptions, MergeConfig

RECORD = "run.json"


def run_record(config: FusionOptions | MergeConfig, **fingerprints: str) -> bytes:
    """The options as JSON; `x_fingerprint`, if given, stands for what lies at the path in option `x`.

    Raises ValueError if the folder holds results of something else and `overwrite` is not set.
    """
    record = config.out / RECORD
    left_out = {"out", "overwrite", *(name.removesuffix("_fingerprint") for name in fingerprints)}
    own = {name: _text(value) for name, value in asdict(config).items() if name not in left_out} | fingerprints
    if record.exists() and not config.overwrite:
        found = _read(record)
        changed = [name for name in own | found if own.get(name) != found.get(name)]
        if changed:
            changes = ", ".join(f"{name} {found.get(name)} → {own.get(name)}" for name in changed)
            raise ValueError(f"{config.out}: holds results of another configuration ({changes}); use --overwrite")
    return msgspec.json.format(msgspec.json.encode(own))


def files_fingerprint(paths: Iterable[Path]) -> str:
    """sha256 that tells whether the files hold the same, in the same order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _text(value: object) -> str:
    """Numbers and paths that are equal have equal texts."""
    return f"{value:g}" if isinstance(value, float) else str(value.resolve() if isinstance(value, Path) else value)


def _read(record: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(record.read_bytes(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise ValueError(f"{record}: damaged: {error}") from None
