"""`python -m extract inspect | browse | verify | export | import`."""

from __future__ import annotations

import io
import logging

import pandas as pd

from extract.accuracy import describe_accuracy
from extract.cache.damage import describe_damage, find_damage, mark_damaged
from extract.cache.format import CacheError
from extract.cache.hdf5 import export_hdf5, import_hdf5
from extract.cache.opening import open_cache, open_unchecked
from extract.cache.reader import RoICache
from extract.command_configs import BrowseConfig, ExportConfig, ImportConfig, InspectConfig, VerifyConfig
from extract.detectors import catalog_dataset
from extract.sheet import contact_sheet
from extract.uses import command_for
from extract.utils.files import write_bytes
from extract.verify import LogitCheck

log = logging.getLogger(__name__)


def inspect(config: InspectConfig) -> None:
    """Prints what a cache holds."""
    cache = open_cache(config.cache)
    print(cache)
    for name, value in cache.detector.get("settings", {}).items():
        print(f"{name.replace('_', ' '):<14} {' '.join(map(str, value)) or '-' if isinstance(value, list) else value}")
    groups = cache.classes.groupby("frequency")
    table = groups[["image_count", "instance_count"]].sum().set_axis(["training images", "training instances"], axis=1)
    table.insert(0, "classes", groups.size())
    print(table.reindex(list("rcf")).dropna().astype(int).to_string())
    if cache.class_map:
        print(_outputs_table(cache).to_string())
    log.info("next: %s", command_for(cache))


def browse(config: BrowseConfig) -> None:
    """Writes the contact sheet of a cache."""
    cache = open_cache(config.cache)
    dataset = catalog_dataset(config.annotations, str(cache.provenance.get("config", {}).get("detector", "")))
    annotations, images = dataset or (config.annotations, None)
    images = config.images or images
    if images is None:
        raise ValueError(f"images: give the folder of the images that {config.annotations} names")
    options = {name: getattr(config, name) for name in ("by", "classes", "max_rows", "columns", "allow_outside")}
    file = io.BytesIO()
    contact_sheet(cache, annotations, images, **options).save(file, "png", optimize=True)
    write_bytes(config.out, file.getvalue())
    print(f"{config.out}: RoIs of {cache.url} by {config.by}")
    log.info("next: python -m extract verify %s", cache.url)


def verify(config: VerifyConfig) -> None:
    """Reads everything once and recomputes logits; raises CacheError naming the images at fault."""
    cache = open_unchecked(config.cache)
    logits = LogitCheck(cache)
    damages = list(find_damage(cache, logits.add))
    if damages:
        if config.repair:
            mark_damaged(cache, damages)
        raise CacheError(describe_damage(cache, damages, config.repair))
    if not cache.has_manifest:
        log.info("%s: an earlier version has written it, without a manifest: not all of it can be checked", cache.url)
    logits.raise_if_failed()
    checked = "no features to recompute logits from"
    if logits.worst is not None:
        checked = f"logits equal to within {logits.worst:.1e}"
    if "logits" not in cache.fields:
        checked = "logits are computed from the features"
    print(f"{cache.url}: {len(cache):,} images, {int(cache.offsets[-1]):,} RoIs intact, {checked}")
    print(describe_accuracy(cache))
    log.info("next: %s", command_for(cache))


def _outputs_table(cache: RoICache) -> pd.DataFrame:
    """Returns a row for each output of a detector whose outputs are in another order than the class table."""
    assert cache.class_map is not None
    classes, table = cache.class_map.classes, cache.classes[["category_id", "name"]]
    rows = [table.loc[c].tolist() if c >= 0 else ["-", "no category"] for c in classes.tolist()]
    return pd.DataFrame(rows, columns=table.columns, index=pd.RangeIndex(len(rows), name="output"))


def export_file(config: ExportConfig) -> None:
    """Writes a cache to an HDF5 file."""
    export_hdf5(open_cache(config.cache), config.file)
    print(f"{config.file}: {config.file.stat().st_size / 1e6:,.1f} MB")
    log.info("next: python -m extract import %s CACHE reads it back", config.file)


def import_file(config: ImportConfig) -> None:
    """Writes a cache from an HDF5 file."""
    cache = import_hdf5(config.file, config.cache, config.overwrite)
    print(cache)
    log.info("next: %s", command_for(cache))
