"""Losses and samplings against plain transcriptions, in their limiting cases, and in training, fusion and export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

import calib
import fuse
from calib.class_sampling import class_probabilities
from calib.classifiers import AlignedLinear, GroupedLinear, build_classifier, group_log_scores
from calib.config import LOSS_NAMES, SAMPLINGS
from calib.deployment import on_pooled_features
from calib.head_types import build_head
from calib.heads import linear_layers
from calib.losses import LOSSES, adapt_head, build_loss
from calib.losses.bags import Bags
from calib.losses.balanced_softmax import BalancedSoftmax
from calib.losses.base import CrossEntropy
from calib.losses.eql import EQL
from calib.losses.federated import Federated
from calib.losses.reweighted import Reweighted
from calib.losses.seesaw import Seesaw
from calib.scoring import Original
from fuse.config import FusionConfig
from fuse.plugins import Calibration
from tests import loss_references as reference
from tests.toy_cache import CLASSES, toy_cache, toy_classes

TABLE = toy_classes()
COUNTS, IMAGES = (TABLE[column].to_numpy(np.float64) for column in ("instance_count", "image_count"))
BINS = [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9, 10, 11]]  # counts 1 4 9 | 16 … 81 | 100 121 144


def _draw(size=60, width=CLASSES + 1, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(2 * rng.normal(size=(size, width))).float().requires_grad_()
    labels = np.where(rng.random(size) < 0.4, CLASSES, rng.integers(0, CLASSES, size))
    return logits, torch.from_numpy(labels)


def _mean(loss, logits, targets, step=0):
    return float(loss(logits, targets, step).detach()) / len(targets)


def _arrays(logits, targets):
    return logits.detach().numpy().astype(np.float64), targets.numpy()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (BalancedSoftmax(TABLE), lambda z, y: reference.balanced_softmax(z, y, COUNTS)),
        (Reweighted(TABLE), lambda z, y: reference.grw(z, y, COUNTS, 0.8)),
        (Seesaw(TABLE), lambda z, y: reference.seesaw(z, y, COUNTS, 0.8, 2)),
        (Seesaw(TABLE, p=0.5, q=0), lambda z, y: reference.seesaw(z, y, COUNTS, 0.5, 0)),
        (EQL(TABLE, max_images=6), lambda z, y: reference.eql(z, y, IMAGES, 6)),
    ],
    ids=["balanced-softmax", "reweighted", "seesaw", "seesaw-p", "eql"],
)
def test_losses_are_their_formulas(loss, expected):
    logits, targets = _draw()
    assert _mean(loss, logits, targets) == pytest.approx(expected(*_arrays(logits, targets)), rel=1e-5)


def test_federated_loss_is_on_a_draw_of_classes():
    logits, targets = _draw(3)
    targets[:] = torch.tensor([2, CLASSES, 5])
    loss = Federated(TABLE, num_classes=6)
    drawn = []
    for step in range(200):
        kept = loss.draw_classes(torch.isin(torch.arange(CLASSES), torch.tensor([2, 5])), step)
        assert kept[2] and kept[5] and kept.sum() == 6
        expected = reference.federated(*_arrays(logits, targets), np.flatnonzero(kept.numpy()).tolist())
        if step < 5:
            assert _mean(loss, logits, targets, step) == pytest.approx(expected, rel=1e-5)
        drawn.append(kept.numpy())
    share = np.delete(np.mean(drawn, 0), [2, 5])
    assert share[-1] > 1.5 * share[0], "frequent classes are drawn more often"
    torch.testing.assert_close(loss.draw_classes(kept & False, 7), loss.draw_classes(kept & False, 7))


@pytest.mark.parametrize("others", [1e9, 0.2])
def test_bags_is_its_formula(others):
    logits, targets = _draw(width=CLASSES + 2 + len(BINS))
    loss = Bags(TABLE, others=others)
    assert [np.flatnonzero(loss.group.numpy() == g).tolist() for g in range(3)] == BINS
    inside = np.array([np.isin(targets.numpy(), members).sum() for members in BINS])
    weights = np.minimum(1, others * inside / (len(targets) - inside))
    assert _mean(loss, logits, targets) == pytest.approx(
        reference.bags(*_arrays(logits, targets), BINS, weights), rel=1e-5
    )
    expected = [reference.merge_score(z, BINS) for z in logits.detach().numpy().astype(np.float64)]
    np.testing.assert_allclose(group_log_scores(logits.detach(), loss.group).exp(), expected, rtol=1e-4)


def test_bins_of_bags_without_rois_have_no_loss():
    logits, _ = _draw(4, width=CLASSES + 2 + len(BINS))
    for targets in (torch.full((4,), CLASSES), torch.tensor([0, 1, 2, CLASSES])):
        expected = reference.bags(*_arrays(logits, targets), BINS, [1, 1, 1])
        assert _mean(Bags(TABLE), logits, targets) == pytest.approx(expected, rel=1e-5)


EQUAL = TABLE.assign(instance_count=5, image_count=200)
PLAIN = [
    BalancedSoftmax(TABLE, tau=0),
    BalancedSoftmax(EQUAL),
    Reweighted(TABLE, rho=0),
    Reweighted(EQUAL),
    Seesaw(TABLE, p=0, q=0),
    Bags(TABLE, edges=()),
    Bags(TABLE, edges=(1000,)),
]


@pytest.mark.parametrize("loss", PLAIN, ids=lambda loss: type(loss).__name__)
def test_limiting_cases_are_cross_entropy_to_the_bit(loss):
    logits, targets = _draw()
    assert loss(logits, targets, 3) == cross_entropy(logits, targets, reduction="sum")
    assert CrossEntropy(TABLE)(logits, targets, 3) == cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("loss", [EQL(TABLE, max_images=0), EQL(EQUAL), Federated(TABLE)], ids=["0", "equal", "all"])
def test_limiting_cases_of_sigmoid_losses_are_binary_cross_entropy(loss):
    logits, targets = _draw()
    expected = binary_cross_entropy_with_logits(logits, one_hot(targets, CLASSES + 1).float(), reduction="sum")
    assert loss(logits, targets, 3).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_losses_have_gradients_and_are_described(name):
    loss = build_loss(name, TABLE)
    assert type(loss) is LOSSES[name] and loss.source and loss.needs and loss.__doc__
    logits, targets = _draw(width=CLASSES + 2 + len(BINS) if name == "bags" else CLASSES + 1)
    loss(logits, targets, 0).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0
    assert tuple(LOSSES) == LOSS_NAMES


def test_aligned_classifiers_are_their_formula():
    layer = build_classifier("aligned", 5, 4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.normal_(generator=generator)
        z = x @ layer.weight.T + layer.bias
        torch.testing.assert_close(layer(x), z, rtol=1e-6, atol=1e-6)
        assert isinstance(layer, AlignedLinear)
        for parameter in (layer.logit_scale, layer.logit_bias, *layer.confidence.parameters()):
            parameter.normal_(generator=generator)
        confidence = torch.sigmoid(x @ layer.confidence.weight.T + layer.confidence.bias)
        expected = confidence * (layer.logit_scale * z[:, :3] + layer.logit_bias) + (1 - confidence) * z[:, :3]
        torch.testing.assert_close(layer(x), torch.cat([expected, z[:, 3:]], 1))


@pytest.mark.long
def test_scaled_classifiers_start_as_the_detectors_own_and_train_scales_only(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", "embedding", images=6)
    for head_type in ("lws", "disalign"):
        head = build_head(cache, head_type, 1, 0, {})
        expected = Original().scores(cache[0])
        np.testing.assert_allclose(head.scores(cache[0]), expected, rtol=2e-2, atol=1e-3)
        trained = calib.train_head(cache, head_type=head_type, steps=3, device="cpu")
        (weight, bias) = cache.fc_layers()[-1]
        (layer,) = linear_layers(trained.stages[0])
        np.testing.assert_array_equal(layer.weight.detach(), weight)
        np.testing.assert_array_equal(layer.bias.detach(), bias)
        assert not np.array_equal(trained.scores(cache[0]), head.scores(cache[0]))


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("losses") / "c.zarr", "embedding", (0.5, 0.6), 10, average="logits")


CASES = [("linear", name) for name in LOSS_NAMES] + [
    ("lws", "cross-entropy"),
    ("disalign", "reweighted"),
    ("lws", "eql"),
]


@pytest.mark.long
@pytest.mark.parametrize(("head_type", "loss"), CASES)
@pytest.mark.parametrize("average", ["scores", "logits"])
def test_trained_heads_are_saved_fused_and_exported(cascade, tmp_path, head_type, loss, average):
    options = {"head_type": head_type, "loss": loss, "steps": 4, "device": "cpu"}
    head = calib.train_head(cascade, out=str(tmp_path / "head"), **options)
    assert head.name == (head_type if loss == "cross-entropy" else f"{head_type}-{loss}")
    rois, mask = cascade.image(107), np.arange(CLASSES) < 5
    head = head.averaged(average)
    scores = head.scores(rois)
    assert scores.shape == (30, CLASSES + 1) and ((scores >= 0) & (scores <= 1)).all()
    assert head.info.activation != "softmax" or np.allclose(scores.sum(1), 1)
    loaded = calib.load_head(tmp_path / "head").averaged(average)
    np.testing.assert_array_equal(loaded.scores(rois), scores)
    assert loaded.name == head.name
    calibration = Calibration.from_scorer(head, {**cascade.detector, "nms_iou": 0.5}, FusionConfig(mode="cat"))
    module = Calibration.from_config(vars(calibration.to_config())).module().eval().requires_grad_(False)
    module.load_scorer(head, mask)
    expected = fuse.fuse_scores(Original("logits").scores(rois), scores, mask, "cat")
    np.testing.assert_allclose(module.scores(rois), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(("head_type", "loss"), [("linear", "bags"), ("disalign", "reweighted"), ("3fc_ft", "eql")])
def test_heads_on_hidden_features_are_deployed_on_pooled_ones(tmp_path, head_type, loss):
    hidden = toy_cache(tmp_path / "h.zarr", "hidden", images=6)
    pooled = toy_cache(tmp_path / "p.zarr", images=6)
    head = calib.train_head(hidden, head_type=head_type, loss=loss, steps=3, device="cpu")
    deployed = on_pooled_features(head, [pooled.fc_layers()[0]], pooled.fields["features"][1:])
    np.testing.assert_allclose(deployed.scores(pooled[0]), head.scores(hidden[0]), rtol=3e-2, atol=2e-3)


@pytest.mark.long
def test_a_resumed_run_of_drawn_classes_is_the_same(cascade, tmp_path, monkeypatch):
    options = {"head_type": "linear", "loss": "federated", "sampling": "progressive", "steps": 6, "device": "cpu"}
    monkeypatch.setattr("calib.losses.federated.Federated.__init__", _few_classes)
    whole = calib.train_head(cascade, out=str(tmp_path / "whole"), **options)
    from calib import train

    def interrupted(interrupted, step, device):
        return step == 3

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "any_interrupted", interrupted)
        calib.train_head(cascade, out=str(tmp_path / "parts"), **options)
    resumed = calib.train_head(cascade, out=str(tmp_path / "parts"), **options)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)


def _few_classes(self, classes, seed=0):
    super(Federated, self).__init__(classes, seed)
    self.num_classes = 4
    self.register_buffer("draw_weights", torch.ones(len(classes)))


def test_bags_needs_a_new_classifier(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=3)
    head = build_head(cache, "3fc_ft", 8, 0, {})
    with pytest.raises(ValueError, match="loss is 'bags', which needs a new classifier: head type 3fc_ft keeps"):
        adapt_head(head, build_loss("bags", TABLE))
    adapted = adapt_head(build_head(cache, "3fc_rand", 8, 0, {}), build_loss("bags", TABLE))
    assert isinstance(linear_layers(adapted.stages[0])[-1], GroupedLinear)
    assert adapted.info.groups == 3


def test_probabilities_of_classes():
    counts = np.array([0, 4, 9, 86])
    np.testing.assert_allclose(class_probabilities(counts, "class-balanced", 0.5), np.full(4, 1 / 4))
    np.testing.assert_allclose(class_probabilities(counts, "instance-balanced", 0), np.array([1, 4, 9, 86]) / 100)
    np.testing.assert_allclose(class_probabilities([1, 4, 9, 4], "square-root", 0), np.array([1, 2, 3, 2]) / 8)
    for t in (0, 0.25, 1):
        expected = (1 - t) * np.array([1, 4, 9, 86]) / 100 + t / 4
        np.testing.assert_allclose(class_probabilities(counts, "progressive", t), expected)


@pytest.mark.long
def test_samplers_draw_classes_by_their_counts(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", "logits", images=60)
    drawn = {}
    for sampling in SAMPLINGS:
        sampler = calib.BiLevelSampler(cache, classes_per_step=1, sampling=sampling, steps=400)
        labels = [sampler.step(i).labels[0] for i in range(400)]
        drawn[sampling] = np.bincount(labels, minlength=CLASSES), np.bincount(labels[-50:], minlength=CLASSES)
    expected = COUNTS / COUNTS.sum()
    np.testing.assert_allclose(drawn["instance-balanced"][0] / 400, expected, atol=0.07)
    np.testing.assert_allclose(drawn["square-root"][0] / 400, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum(), atol=0.07)
    assert (
        drawn["class-balanced"][0][:6].sum()
        > drawn["progressive"][0][:6].sum()
        > drawn["instance-balanced"][0][:6].sum()
    )
    assert drawn["progressive"][1][:6].sum() > 12, "the end is class-balanced"
    plain, explicit = calib.BiLevelSampler(cache), calib.BiLevelSampler(cache, sampling="class-balanced", steps=3)
    np.testing.assert_array_equal(plain.step(5).rows, explicit.step(5).rows)


@pytest.mark.parametrize(("field", "value"), [("loss", "focal"), ("sampling", "uniform")])
def test_unknown_losses_and_samplings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is '{value}', expected one of "):
        calib.Config(cache="c", out="o", **{field: value})


def test_the_default_loss_leaves_no_trace_in_the_identity():
    config = calib.Config(cache="c", out="o")
    assert config.identity("f")["loss"] is None and config.identity("f")["sampling"] is None
    assert replace(config, loss="eql").identity("f")["loss"] == "eql"
