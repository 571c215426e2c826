"""Head types: where a new head's layers come from. A new type is one row of `RECIPES` and its name in `HeadType`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from calib.classifiers import ClassifierKind
from calib.config import HEAD_TYPES, HeadType
from calib.heads import Head, HeadInfo, hidden_input, linear_layers
from calib.hidden_input import HiddenInput
from calib.scoring import Level, instance_counts_of
from extract.cache.format import layers_above
from extract.class_scores import check_average
from extract.data.class_map import MIN_LOGIT
from extract.rois import POOLED_AFTER_CONVOLUTIONS

if TYPE_CHECKING:
    from extract import RoICache
    from extract.cache.format import Layers, Projection


class Recipe(NamedTuple):
    """A head type for one feature level: layers reused from the detector, new hidden layers, a new classifier.

    Attributes:
        head_type: name of the type.
        level: feature level of the cache.
        reuse: which of the detector's own fully connected layers come first: none, the hidden ones, or all, classifier
            included; with all there is no new classifier. At level hidden the first layer is in the features.
        freeze: whether reused layers are not trained.
        new_hidden: number of new hidden layers.
        low_rank: whether the first layer, which the features of level hidden come from, is corrected in low rank.
        classifier: kind of the last layer; what it has besides weight and bias is always trained.
    """

    head_type: HeadType
    level: Level
    reuse: Literal["none", "hidden", "all"]
    freeze: bool
    new_hidden: int
    low_rank: bool = False
    classifier: ClassifierKind = "linear"


FEATURE_LEVELS: tuple[Level, ...] = ("pooled", "hidden", "embedding")
RECIPES = (
    Recipe("linear", "pooled", reuse="hidden", freeze=True, new_hidden=0),
    Recipe("linear", "embedding", reuse="none", freeze=False, new_hidden=0),
    Recipe("linear", "hidden", reuse="hidden", freeze=True, new_hidden=0),
    Recipe("2fc_rand", "pooled", reuse="none", freeze=False, new_hidden=1),
    Recipe("3fc_rand", "pooled", reuse="none", freeze=False, new_hidden=2),
    Recipe("3fc_ft", "pooled", reuse="all", freeze=False, new_hidden=0),
    Recipe("3fc_ft", "hidden", reuse="all", freeze=False, new_hidden=0),
    Recipe("3fc_lowrank", "hidden", reuse="all", freeze=False, new_hidden=0, low_rank=True),
    *(Recipe("lws", level, reuse="all", freeze=True, new_hidden=0, classifier="scaled") for level in FEATURE_LEVELS),
    *(
        Recipe("disalign", level, reuse="all", freeze=True, new_hidden=0, classifier="aligned")
        for level in FEATURE_LEVELS
    ),
)
_REUSED = {"none": slice(0), "hidden": slice(-1), "all": slice(None)}


def has_new_classifier(head_type: str) -> bool:
    """Returns whether heads of this type have a classifier that is not the detector's."""
    return all(recipe.reuse != "all" for recipe in RECIPES if recipe.head_type == head_type)


def build_head(
    cache: RoICache, head_type: str, hidden: int, seed: int, config: dict[str, Any], freeze_layers: int = 0
) -> Head:
    """Builds an untrained head for the features of a cache.

    New hidden layers are initialised as in Glorot and Bengio (2010), new classifiers from a normal distribution with
    standard deviation 0.01; biases are 0. The scores of classes that the detector lacks are 0.

    Args:
        cache: gives the feature shape, the classes and the detector's own layers.
        head_type: one of `calib.config.HEAD_TYPES`.
        hidden: width of new hidden layers.
        seed: of the initialisation.
        config: the training configuration to store with the head.
        freeze_layers: how many of the detector's own layers, from the first on, are not trained; see `calib.Config`.

    Raises:
        ValueError: unknown type, a cache of a feature level that the type does not support, a cache that lacks the
            detector's layers or directions, or more layers to freeze than the head can do without.
    """
    recipe = _find_recipe(cache, head_type)
    if recipe.low_rank and not cache.projections:
        raise ValueError(
            f"{cache.url}: head {head_type!r} needs a projection, which the cache lacks; --head-type 3fc_ft needs none"
        )
    reused = _reused_layers(cache, recipe)
    widths = [_input_width(cache), *(len(bias) for _, bias in reused[0])]
    if recipe.reuse != "all":
        widths += [hidden] * recipe.new_hidden + [cache.num_classes + 1]
    if widths[-1] != cache.num_classes + 1:
        raise ValueError(f"{cache.url}: its classifier has {widths[-1]} outputs, {cache.num_classes + 1} needed")
    frozen_layers = _frozen_layers(cache, recipe, len(reused[0]), freeze_layers)
    head = Head(_describe(cache, recipe, tuple(widths), frozen_layers, config))
    generator = torch.Generator().manual_seed(seed)
    for stage, layers in enumerate(reused):
        linears = linear_layers(head.stages[stage])
        _copy_layers(linears[: len(layers)], layers, f"{cache.url}: detector/stage_{stage}")
        _initialise(linears[len(layers) :], generator)
        if recipe.low_rank:
            _copy_projection(hidden_input(head.stages[stage]), cache.projections[stage])
    if cache.class_map:
        _silence(head, cache.class_map.missing)
    return head


def _find_recipe(cache: RoICache, head_type: str) -> Recipe:
    by_level = {recipe.level: recipe for recipe in RECIPES if recipe.head_type == head_type}
    if not by_level:
        raise ValueError(f"head_type is {head_type!r}, expected one of {', '.join(HEAD_TYPES)}")
    if cache.level not in by_level:
        others = " or ".join(recipe.head_type for recipe in RECIPES if recipe.level == cache.level)
        raise ValueError(
            f"{cache.url}: head {head_type!r} needs feature level {' or '.join(map(repr, by_level))}, "
            f"the cache has {cache.level!r}" + (f"; --head-type {others} supports it" if others else "")
        )
    return by_level[cache.level]


def _reused_layers(cache: RoICache, recipe: Recipe) -> list[Layers]:
    """Returns per stage the detector's layers that the head begins with, possibly none."""
    if recipe.reuse == "none":
        return [[] for _ in cache.stages]
    stages = [cache.fc_layers(stage) for stage in range(len(cache.stages))]
    if not all(stages):
        others = " and ".join(r.head_type for r in RECIPES if r.level == recipe.level and r.reuse == "none")
        raise ValueError(
            f"{cache.url}: head {recipe.head_type!r} needs the detector's own layers, which the cache lacks; "
            f"{others} need none"
        )
    return [layers_above(recipe.level, layers)[_REUSED[recipe.reuse]] for layers in stages]


def _input_width(cache: RoICache) -> int:
    """Returns the inputs of the first fully connected layer of a head."""
    if cache.level == "hidden":
        return len(cache.fc_layers(0)[0][1])
    return math.prod(cache.fields["features"][1:])


def _frozen_layers(cache: RoICache, recipe: Recipe, reused: int, freeze_layers: int) -> int:
    """Returns how many layers of the head are frozen, the one below the features of level hidden not counted.

    Raises:
        ValueError: `freeze_layers` is more than there are layers of the detector, or leaves nothing to train, or
            freezes a layer that the recipe corrects.
    """
    below = 1 if recipe.level == "hidden" else 0
    limit = 0 if recipe.low_rank else below + reused - (recipe.reuse == "all")
    if freeze_layers > limit:
        raise ValueError(
            f"{cache.url}: freeze_layers is {freeze_layers}, expected at most {limit} for head {recipe.head_type!r} on "
            f"{recipe.level} features"
        )
    return reused if recipe.freeze else max(freeze_layers - below, 0)


def _describe(
    cache: RoICache, recipe: Recipe, widths: tuple[int, ...], frozen_layers: int, config: dict[str, Any]
) -> HeadInfo:
    feature_shape = tuple(cache.fields["features"][1:])
    rank = feature_shape[0] - widths[0] if recipe.low_rank else 0
    return HeadInfo(
        kind=recipe.head_type,
        level=recipe.level,
        feature_shape=(widths[0] + rank,) if recipe.level == "hidden" else feature_shape,
        widths=widths,
        frozen_layers=frozen_layers,
        category_ids=tuple(cache.classes["category_id"].tolist()),
        names=tuple(cache.classes["name"].tolist()),
        instance_counts=instance_counts_of(cache),
        stages=tuple(cache.stages),
        stage_average=check_average(cache.detector.get("stage_average", "scores")),
        detector=str(cache.detector.get("name", "")),
        weights_sha256=str(cache.detector.get("weights_sha256", "")),
        tensors_sha256=str(cache.detector.get("tensors_sha256", "")),
        settings=dict(cache.detector.get("settings", {})),
        cache_fingerprint=cache.fingerprint,
        config=config,
        class_outputs=cache.class_map.outputs if cache.class_map else (),
        num_outputs=cache.class_map.num_outputs if cache.class_map else 0,
        pooled_after_convolutions=bool(cache.detector.get(POOLED_AFTER_CONVOLUTIONS, False)),
        rank=rank,
        classifier=recipe.classifier,
        pooled_size=cache.projections[0].directions.shape[1] if recipe.low_rank else 0,
    )


@torch.no_grad()
def _copy_layers(linears: list[nn.Linear], layers: Layers, source: str) -> None:
    """Copies weights and biases; raises ValueError naming an array of another shape."""
    for depth, (linear, arrays) in enumerate(zip(linears, layers, strict=True)):
        for name, values in zip(("weight", "bias"), arrays, strict=True):
            parameter = linear.get_parameter(name)
            if parameter.shape != values.shape:
                raise ValueError(f"{source}/{name}_{depth} is {values.shape}, expected {tuple(parameter.shape)}")
            parameter.copy_(torch.from_numpy(np.array(values, np.float32)))


@torch.no_grad()
def _copy_projection(first: HiddenInput, projection: Projection) -> None:
    for name, values in projection._asdict().items():
        first.get_buffer(name).copy_(torch.from_numpy(np.array(values)))


@torch.no_grad()
def _silence(head: Head, classes: np.ndarray) -> None:
    """Makes the scores of classes 0. Training keeps them there: no RoI has such a label, so their gradient is 0."""
    for stage in head.stages:
        classifier = linear_layers(stage)[-1]
        classifier.weight[torch.from_numpy(classes)] = 0
        classifier.bias[torch.from_numpy(classes)] = MIN_LOGIT


@torch.no_grad()
def _initialise(linears: list[nn.Linear], generator: torch.Generator) -> None:
    """Initialises new hidden layers and, last, the new classifier."""
    for linear in linears:
        linear.bias.zero_()
        if linear is linears[-1]:
            linear.weight.normal_(std=0.01, generator=generator)
        else:
            nn.init.xavier_uniform_(linear.weight, generator=generator)
