"""`python -m extract convert`: a cache → a cache of a later feature level, without the detector."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from extract.cache.creation import create_cache
from extract.cache.format import LEVELS, CacheError, Header, Layers, Projection, block_slice, layers_above
from extract.cache.location import refuse_same
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.cache.writer import CacheWriter
from extract.command_configs import ConvertConfig
from extract.hidden import Layer, check_layers, hidden_layer, hidden_layers
from extract.preparation import find_existing
from extract.projection import fit_projections, projection_sha256, projections_of, sample_images, sample_rois
from extract.rois import POOLED_AFTER_CONVOLUTIONS, RoIs
from extract.uses import command_for
from extract.utils.devices import resolve_device
from extract.utils.distributed import world_size
from extract.utils.locks import one_writer
from extract.utils.prefetch import prefetch
from extract.utils.progress import progress_bar

log = logging.getLogger(__name__)


def run(config: ConvertConfig) -> RoICache:
    """Converts, or resumes what was begun at `config.out`; returns the cache.

    Raises ValueError or FileNotFoundError naming the cache and what it lacks.
    """
    if world_size() > 1:
        raise ValueError("convert runs in one process: start it without torchrun")
    for read in (config.cache, config.projection_from):
        refuse_same(config.out, read)
    source = open_cache(config.cache)
    stages, taken = _layers(source, config.level), []
    if config.projection_from is not None:
        taken = projections_of(config.projection_from, source.detector, stages, config.projection)
    header = _header(source, config, taken)
    with one_writer(config.out):
        return _convert(config, source, header, stages, taken)


def _convert(
    config: ConvertConfig, source: RoICache, header: Header, stages: list[Layers], taken: list[Projection]
) -> RoICache:
    """Converts or resumes, the lock of the cache being held."""
    existing = find_existing(config.out, header, config.overwrite)
    if isinstance(existing, RoICache):
        log.info("%s is finished already", existing.url)
        return existing
    projections = existing.projections if existing else taken
    if config.level == "hidden" and config.projection and not projections:
        projections = _fit(source, config.projection)
    convert = _conversion(source, config.level, stages, projections, resolve_device(config.device))
    writer = existing or _create(source, config, header, convert, stages, projections)
    _write(source, writer, convert)
    return writer.finish()


def _layers(source: RoICache, level: str) -> list[Layers]:
    """Returns the detector's layers that a cache of the level holds. Raises ValueError if the source does not give it.

    At level "logits" there are none.
    """
    order = list(LEVELS)
    if order.index(level) <= order.index(source.level):
        raise CacheError(f"{source.url}: level {source.level!r} does not give level {level!r}")
    stages = [source.fc_layers(stage) for stage in range(len(source.stages))] if level != "logits" else []
    if level == "hidden":
        check_layers(source.url, stages)
    elif not all(stages):
        raise CacheError(f"{source.url}: has no fully connected layers, which level {level!r} follows by")
    return stages


def _header(source: RoICache, config: ConvertConfig, taken: list[Projection]) -> Header:
    options: dict[str, Any] = {**source.provenance.get("config", {}), "level": config.level}
    if config.level == "hidden":
        options["projection"] = len(taken[0].directions) if taken else config.projection
    if taken:
        options["projection_sha256"] = projection_sha256(taken)
    provenance = {**source.provenance, "config": options, "converted_from": source.fingerprint}
    unrelated = () if config.level == "hidden" else (POOLED_AFTER_CONVOLUTIONS,)
    detector = {key: value for key, value in source.detector.items() if key not in unrelated}
    return Header(source.split, config.level, source.stages, detector, provenance)


def _fit(source: RoICache, size: int) -> list[Projection]:
    """Fits projections on the RoIs that an extraction would fit them on. Raises ValueError for a val cache."""
    if source.split == "val":
        raise CacheError(
            f"{source.url}: a val cache needs --projection-from with its train cache, whose directions it takes over; "
            "--projection 0 for none"
        )
    seed = int(source.provenance.get("config", {}).get("seed", 0))
    images = sample_images(len(source), seed)

    def sample(position: int) -> np.ndarray:
        image_id, rois = (int(source.images[name].iloc[position]) for name in ("image_id", "roi_count"))
        rows = sample_rois(image_id, rois, len(images), seed)
        return source.take("features", source.offsets[position] + rows)

    return fit_projections(map(sample, progress_bar(images, desc="fit", unit="image")), size, seed)


def _conversion(
    source: RoICache, level: str, stages: list[Layers], projections: list[Projection], device: torch.device
) -> Callable[[RoIs], RoIs]:
    """Returns the function from an image's RoIs to its RoIs of another feature level."""
    if level == "logits":
        return lambda rois: replace(rois, features=None)
    networks = _networks(source.level, level, stages, projections, device)

    def convert(rois: RoIs) -> RoIs:
        features = torch.as_tensor(rois.features, device=device).float()
        if source.level == "hidden":
            features = features[..., : features.shape[-1] - source.num_directions].relu()
        outputs = [_forward(network, features[:, s].flatten(1), level) for s, network in enumerate(networks)]
        return replace(rois, features=torch.stack(outputs, 1).cpu().numpy())

    return convert


def _networks(
    source_level: str, level: str, stages: list[Layers], projections: list[Projection], device: torch.device
) -> list[list[Layer]]:
    """Returns each stage's linear layers from the source's features to those of the level, ReLU between them."""
    if level == "hidden":
        networks = [[layer] for layer in hidden_layers(stages, projections)]
    else:
        networks = [[hidden_layer(layer) for layer in layers_above(source_level, layers)[:-1]] for layers in stages]
    return [[(weight.to(device), bias.to(device)) for weight, bias in network] for network in networks]


def _forward(network: list[Layer], x: Tensor, level: str) -> Tensor:
    for depth, layer in enumerate(network):
        x = linear(x.relu() if depth else x, *layer)
    return x if level == "hidden" else x.relu()


def _create(
    source: RoICache,
    config: ConvertConfig,
    header: Header,
    convert: Callable[[RoIs], RoIs],
    stages: list[Layers],
    projections: list[Projection],
) -> CacheWriter:
    images = source.images.drop(columns="roi_count")
    capacity = max(int(source.images["roi_count"].max()), 1)
    template = convert(source[0])
    return create_cache(
        config.out, template, header, source.classes, images, capacity, stages, config.overwrite, projections
    )


def _write(source: RoICache, writer: CacheWriter, convert: Callable[[RoIs], RoIs]) -> None:
    """Converts the blocks that are not written yet; a thread reads the next images meanwhile."""
    blocks = {block: range(len(source))[block_slice(block)] for block in writer.pending()}
    positions = [position for images in blocks.values() for position in images]
    with closing(prefetch(source.image_at, positions, threads=1, depth=2)) as read:
        converted = map(convert, progress_bar(read, desc="convert", total=len(positions), unit="image"))
        for block, images in blocks.items():
            writer.write_block(block, list(islice(converted, len(images))))


def command(config: ConvertConfig) -> None:
    """Converts and prints what the new cache holds."""
    cache = run(config)
    print(cache)
    log.info("next: %s", command_for(cache))
