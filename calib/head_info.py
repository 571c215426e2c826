"""The description of a head, which is stored beside its weights.

Letters in shapes: `H` outputs of the detector's first fully connected layer, `Q` directions, `D` numbers of a pooled
feature, `K` classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from calib.classifiers import ClassifierKind
from calib.scoring import Level
from extract.class_scores import Activation, Average


@dataclass(frozen=True)
class HeadInfo:
    """Description of a head, stored beside its weights.

    Attributes:
        kind: head type, one of `calib.config.HEAD_TYPES`.
        level: feature level of its input, "pooled", "hidden" or "embedding".
        feature_shape: shape of one RoI's features, (C, 7, 7), (H+Q,) or (C,).
        widths: layer sizes, from the flattened feature to K+1; at level hidden from H, without the first layer.
        frozen_layers: number of layers at the bottom that are the detector's own and not trained; at level hidden
            without the first layer.
        category_ids: category ids of the classes 0…K-1 in the annotation file.
        names: names of these classes.
        instance_counts: training instances of these classes; they decide which columns a fusion replaces.
        stages: matching IoU of each stage.
        stage_average: what is averaged over stages, "scores" or "logits".
        detector: name of the detector that the features come from.
        weights_sha256: sha256 of that detector's weights file; empty if unknown.
        tensors_sha256: sha256 of that detector's tensors; empty if unknown.
        settings: that detector's input size, normalisation and options; empty if unknown.
        cache_fingerprint: fingerprint of the cache that the head was trained on.
        config: configuration of the training.
        class_outputs: the detector's output of each class, -1 where it has none; empty if output i is class i.
        num_outputs: number of the detector's outputs besides background, where `class_outputs` is not empty.
        pooled_after_convolutions: whether pooled features are the output of the box head's convolutions, as in the
            detector's description; False in heads of versions whose pooled features always were the box head's input.
        rank: Q of a head that corrects the first layer in low rank, else 0.
        pooled_size: D, numbers of a flattened pooled feature; 0 unless `rank` is given.
        choice: the head type that auto chose, and the figures: a `calib.choice.Choice` as a dict; empty otherwise.
        classifier: kind of the last layer, of `calib.classifiers.CLASSIFIERS`.
        groups: G of a classifier of groups, else 0.
        activation: what turns the head's logits into scores.
    """

    kind: str
    level: Level
    feature_shape: tuple[int, ...]
    widths: tuple[int, ...]
    frozen_layers: int
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    instance_counts: tuple[int, ...]
    stages: tuple[float, ...]
    stage_average: Average = "scores"
    detector: str = ""
    weights_sha256: str = ""
    tensors_sha256: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    cache_fingerprint: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    class_outputs: tuple[int, ...] = ()
    num_outputs: int = 0
    pooled_after_convolutions: bool = False
    rank: int = 0
    pooled_size: int = 0
    choice: dict[str, Any] = field(default_factory=dict)
    classifier: ClassifierKind = "linear"
    groups: int = 0
    activation: Activation = "softmax"

    @property
    def name(self) -> str:
        """Head type and loss, the scorer's name."""
        loss = self.config.get("loss")
        return f"{self.kind}-{loss}" if loss else self.kind

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Returns whether RoIs with features of this shape can be scored: a head without correction ignores Q."""
        if self.level == "hidden" and not self.rank:
            return len(shape) == 1 and shape[0] >= self.feature_shape[0]
        return shape == self.feature_shape


def describe_head(info: HeadInfo, parameters: int) -> list[tuple[str, str]]:
    """Returns what the repr of a head of so many parameters shows: (name, text)."""
    counts, config = info.instance_counts, info.config
    layers = " → ".join(f"{width:,}" for width in info.widths)
    frozen = f"; the first {info.frozen_layers} are the detector's" if info.frozen_layers else ""
    correction = f"; the detector's first layer is corrected along {info.rank} directions" if info.rank else ""
    averaged = f", {info.stage_average} averaged over {len(info.stages)} stages" if len(info.stages) > 1 else ""
    trained = f"{config['steps']:,} steps, seed {config.get('seed')}" if "steps" in config else "not by this library"
    return [
        ("Head", f"{info.name}, {parameters:,} parameters"),
        (
            "classes",
            f"{len(info.names):,}, of {min(counts, default=0):,} to {max(counts, default=0):,} training instances",
        ),
        ("features", f"{info.level} {' × '.join(map(str, info.feature_shape))}"),
        ("layers", f"{layers} ({info.classifier}){frozen}{correction}"),
        ("scores", f"{info.activation}{averaged}"),
        ("detector", info.detector or "unknown"),
        ("trained", trained),
    ]
