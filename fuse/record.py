"""run.json: what a folder's results are of, so that no other run's are mixed with them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec

from extract.cache import RoICache
from fuse.config import FusionOptions

RECORD = "run.json"


def run_record(config: FusionOptions, cache: RoICache) -> bytes:
    """The options and the cache's fingerprint as JSON.

    Raises ValueError if the folder holds results of something else and `overwrite` is not set.
    """
    record = config.out / RECORD
    own = {name: _text(value) for name, value in asdict(config).items() if name not in ("out", "overwrite", "cache")}
    own["cache_fingerprint"] = cache.fingerprint
    if record.exists() and not config.overwrite:
        found = _read(record)
        changed = [name for name in own | found if own.get(name) != found.get(name)]
        if changed:
            changes = ", ".join(f"{name} {found.get(name)} → {own.get(name)}" for name in changed)
            raise ValueError(f"{config.out}: holds results of another configuration ({changes}); use --overwrite")
    return msgspec.json.format(msgspec.json.encode(own))


def _text(value: object) -> str:
    """Numbers and paths that are equal have equal texts."""
    return f"{value:g}" if isinstance(value, float) else str(value.resolve() if isinstance(value, Path) else value)


def _read(record: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(record.read_bytes(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise ValueError(f"{record}: damaged: {error}") from None
