"""The directions of level "hidden": leading principal directions of pooled features, from a sample of training RoIs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import linear

from extract.cache.format import Layers, Projection
from extract.cache.opening import open_cache
from extract.config import Config
from extract.detectors.identity import check_same_detector
from extract.hidden import hidden_layers
from extract.utils.progress import progress_bar

if TYPE_CHECKING:
    from extract.extractor import Extractor
    from extract.rois import RoIs

log = logging.getLogger(__name__)

MIN_IMAGES, MAX_IMAGES, IMAGES_PER_SAMPLED = 64, 512, 16
"""Bounds of the number of images sampled; in between one in 16 is, so that extraction takes hardly longer."""
SAMPLED_ROIS = 4096
"""RoIs sampled at most, of all images together. As fp32 those of LVIS detectors take 0.2 GB per stage."""
OVERSAMPLING, ITERATIONS = 16, 4
"""Additional random directions and power iterations of the randomised singular value decomposition."""
STREAM = 2
"""Random stream of the sample; see `extract.extractor`."""


def sample_images(count: int, seed: int) -> np.ndarray:
    """Returns the positions, ascending, of the images that directions are fitted on, of `count` images."""
    amount = min(max(count // IMAGES_PER_SAMPLED, MIN_IMAGES), MAX_IMAGES, count)
    return np.sort(np.random.default_rng([seed, STREAM]).choice(count, amount, replace=False))


def sample_rois(image_id: int, rois: int, images: int, seed: int) -> np.ndarray:
    """Returns the indices, ascending, of the RoIs that are sampled of one of `images` sampled images."""
    amount = min(-(-SAMPLED_ROIS // images), rois)
    return np.sort(np.random.default_rng([seed, image_id, STREAM]).choice(rois, amount, replace=False))


def fit_on_images(extractor: Extractor, config: Config) -> tuple[list[Projection], RoIs]:
    """Fits each stage's projection on a sample of an extractor's images.

    Returns also the RoIs of one of them with hidden features.
    Raises ValueError as `fit_projections` does.
    """
    sample = extractor.pooled_sample(sample_images(len(extractor.positions), config.seed))
    log.info("%d principal directions are fitted on %d images first", config.projection, len(sample.positions))
    template: list[RoIs] = []

    def samples() -> Iterator[np.ndarray]:
        outputs = sample.forward_blocks(range(sample.num_blocks))
        for output in progress_bar(outputs, total=sample.num_blocks, desc="fit directions", unit="block"):
            for rois in sample.finish_block(output):
                template[:] = [rois]
                rows = sample_rois(rois.image_id, len(rois), len(sample.positions), config.seed)
                yield np.asarray(rois.features)[rows]

    projections = fit_projections(samples(), config.projection, config.seed)
    return projections, with_hidden_features(template[0], extractor.fc_layers, projections)


def with_hidden_features(rois: RoIs, stages: Sequence[Layers], projections: Sequence[Projection]) -> RoIs:
    """Returns RoIs with hidden features, float32, in place of pooled ones, on the CPU."""
    pooled = torch.as_tensor(rois.features).flatten(2).float()
    layers = hidden_layers(stages, projections)
    hidden = [linear(pooled[:, stage], *layer).numpy() for stage, layer in enumerate(layers)]
    return replace(rois, features=np.stack(hidden, 1))


def blank_projections(stages: Sequence[Layers], size: int) -> list[Projection]:
    """Returns projections of the right shapes, for an estimate of the time and the size."""
    widths = [layers[0][0].shape[1] for layers in stages]
    return [Projection(np.eye(size, width, dtype=np.float32), np.zeros(width, np.float32)) for width in widths]


def projections_of(url: str, detector: Mapping[str, Any], stages: Sequence[Layers], size: int) -> list[Projection]:
    """Returns the projections of a cache of level "hidden".

    Args:
        url: of the cache.
        detector: description of the detector that they must be of.
        stages: the detector's fully connected layers.
        size: `Config.projection`; unless that is the default, the cache must have as many directions.

    Raises ValueError or FileNotFoundError naming the cache.
    """
    cache = open_cache(url)
    projections = cache.projections
    if not projections:
        raise ValueError(f"{url}: has no projection (level {cache.level!r}), from which directions could be taken")
    check_same_detector(url, cache.detector, "directions are needed for", detector)
    found, expected = (
        [one.shape[1] for one in ones] for ones in ([p.directions for p in projections], [s[0][0] for s in stages])
    )
    if found != expected:
        raise ValueError(f"{url}: directions of {found} pooled features per stage, the detector has {expected}")
    if size not in (Config.projection, len(projections[0].directions)):
        raise ValueError(f"projection is {size}: {url} has {len(projections[0].directions)} directions")
    return projections


def fit_projections(samples: Iterable[np.ndarray], size: int, seed: int) -> list[Projection]:
    """Returns each stage's projection onto `size` leading principal directions.

    Args:
        samples: of each image, pooled features (n, S, *D) float16.
        size: Q.
        seed: of the random directions that the decomposition starts from.

    Raises ValueError if the sample has too few RoIs or features for so many directions.
    """
    pooled = np.concatenate([part.reshape(*part.shape[:2], -1) for part in samples])
    if (most := min(len(pooled) - 1, pooled.shape[2])) < size:
        raise ValueError(
            f"projection is {size}, expected at most {most}: {len(pooled)} RoIs of {pooled.shape[2]} pooled features "
            "are sampled, from which directions are fitted; 0 for none"
        )
    return [principal_directions(pooled[:, stage], size, seed) for stage in range(pooled.shape[1])]


def principal_directions(features: np.ndarray, size: int, seed: int) -> Projection:
    """Returns the `size` leading principal directions of features (n, D), and their mean.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithm 4.4: randomised subspace
    iteration, then the exact decomposition within the subspace. The largest number of each direction is positive.
    """
    x = torch.from_numpy(features.astype(np.float32))
    center = x.mean(0)
    x -= center
    width = min(size + OVERSAMPLING, *x.shape)
    subspace = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(seed))
    for _ in range(ITERATIONS):
        subspace = torch.linalg.qr(x.T @ (x @ subspace)).Q
    _, _, rotation = torch.linalg.svd(x @ subspace, full_matrices=False)
    directions = (rotation @ subspace.T)[:size]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return Projection((directions * largest.sign()).numpy(), center.numpy())


def projection_sha256(projections: Sequence[Projection]) -> str:
    """Returns the sha256 of projections, which provenance records where they were taken from another cache."""
    digest = hashlib.sha256()
    for array in (array for projection in projections for array in projection):
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()
