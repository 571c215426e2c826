"""Learned fusion: weights follow the evidence, fall back to the bin without, and the scorer is as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import fuse
from calib.head_io import load_head, save_head
from calib.scoring import Original
from extract.cache.opening import open_cache
from fuse.evaluation.dataset import load_annotations
from fuse.learned import LearnedFusion
from fuse.learned_io import files_of, load_calibrated, save_learned
from fuse.selection.learned import _decided_pairs, _fit, fit_learned
from tests.fuse_fixtures import K, write_tiny


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_a_class_leans_on_the_classifier_that_is_right_and_others_on_their_bin():
    """Classes 0 to 3 of the rarest bin; classifier 0 is right for class 0, 1 for classes 1 and 2; 3 has no pairs."""
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 4000)
    z = rng.normal(-2, 2, (len(classes), 2))
    right = np.where(classes == 0, z[:, 0], z[:, 1])
    targets = rng.random(len(classes)) < _sigmoid(right)
    scores = np.log(_sigmoid(z))
    inputs = np.concatenate([scores, np.zeros((len(z), 1)), np.ones((len(z), 1))], 1).astype(np.float32)
    weights = _fit(inputs, classes, targets, np.array([3, 4, 5, 5, 500]))
    assert weights.shape == (4, 5)
    assert weights[0, 0] > 2 * weights[1, 0] and weights[1, 1] > 2 * weights[0, 1]
    assert weights[1, 3] > weights[0, 3] > 0  # as most of its bin
    assert weights[1, 3] < weights[1, 1] + 0.2
    assert np.abs(weights[:2, 4] - weights[:2, 3]).max() < 0.5  # another bin without evidence is not extrapolated to


def test_pairs_are_those_that_the_annotations_decide():
    best = np.array([[0.5, 0.5, 0.5, 0.001], [0.5, 0.001, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.001] * 4])
    # An object of class 1; background; ignored; and an object whose scores are too low: were it a pair all the same,
    # low scores would speak for a class.
    labels = np.array([1, 4, -1, 3])
    known, partial = np.array([True, True, False, True]), np.array([True, False, False, False])
    pairs = _decided_pairs(labels, best, known, partial)
    # Class 0 is annotated in part, so that it has no negatives; class 2 is not annotated; the ignored RoI is left out.
    assert list(zip(pairs.rows, pairs.classes, pairs.targets, strict=True)) == [(0, 1, True), (1, 3, False)]


@pytest.mark.parametrize("protocol", ["federated", "exhaustive"])
def test_it_detects_as_any_scorer_does(tmp_path, protocol):
    annotation_file, cache_path, head_path = write_tiny(tmp_path)
    cache, head = open_cache(str(cache_path)), load_head(head_path)
    original = Original.from_description(cache.detector)
    learned = fit_learned(cache, load_annotations(annotation_file), [original, head], protocol)
    assert learned.level == "embedding" and learned.weights.shape == (4, 5) and np.isfinite(learned.weights).all()
    rois = cache[0]
    scores, (first, second) = learned.scores(rois), (scorer.scores(rois) for scorer in (original, head))
    p = np.clip(rois.objectness, 1e-4, 1 - 1e-4).astype(np.float64)[:, None]
    w = learned.weights.astype(np.float64)
    z = w[0] * np.log(first[:, :-1]) + w[1] * np.log(second[:, :-1]) + w[2] * np.log(p / (1 - p)) + w[3]
    np.testing.assert_allclose(scores[:, :-1], _sigmoid(z), rtol=1e-4)
    np.testing.assert_array_equal(scores[:, -1], first[:, -1])
    ap = fuse.evaluate(annotation_file, fuse.detect(cache, learned, mode="calibrated"), cache.classes, iou_type="bbox")
    own = fuse.evaluate(annotation_file, fuse.detect(cache, mode="original"), cache.classes, iou_type="bbox")
    assert ap["AP"].item() > own["AP"].item()
    again = fit_learned(cache, load_annotations(annotation_file), [original, head], protocol)
    np.testing.assert_array_equal(again.weights, learned.weights)


@pytest.fixture
def saved(tmp_path) -> tuple[LearnedFusion, Path]:
    """A learned fusion of the original scores and two heads, and its folder."""
    _, cache_path, head_path = write_tiny(tmp_path)
    cache, head, other = open_cache(str(cache_path)), load_head(head_path), load_head(head_path)
    other.stages[0][-1].bias.data[0] = 3
    weights = np.random.default_rng(0).normal(size=(5, K)).astype(np.float32)
    original = Original.from_description(cache.detector)
    fusion = LearnedFusion((original, head, other), weights, head.instance_counts, None)
    save_learned(fusion, tmp_path / "learned")
    return fusion, tmp_path / "learned"


def test_a_folder_gives_back_the_scorer(saved, tmp_path):
    fusion, folder = saved
    loaded, cache = load_calibrated(folder), open_cache(str(tmp_path / "val.zarr"))
    assert isinstance(loaded, LearnedFusion) and loaded.level == "embedding"
    np.testing.assert_array_equal(loaded.scores(cache[0]), fusion.scores(cache[0]))
    assert loaded.category_ids == tuple(cache.classes["category_id"]) and loaded.class_names[0] == "ant"
    assert loaded.instance_counts == fusion.instance_counts and loaded.class_map is None and loaded.projections == []
    loaded.check_cache(cache)
    assert load_calibrated(tmp_path / "head").name == "linear"
    own = ["learned.json", "1/head.safetensors", "1/config.json", "2/head.safetensors", "2/config.json"]
    assert [str(file.relative_to(folder)) for file in files_of(folder)] == own
    save_learned(LearnedFusion(fusion.scorers[:2], fusion.weights[:4], fusion.instance_counts), folder)
    assert len(load_calibrated(folder).heads) == 1 and not (folder / "2").exists(), "in place of what was there"


def test_the_old_folder_stays_until_the_new_one_is_whole(saved, monkeypatch):
    fusion, folder = saved
    old = {file: file.read_bytes() for file in files_of(folder)}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    other = LearnedFusion(fusion.scorers[:2], fusion.weights[:4], fusion.instance_counts)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("fuse.learned_io.write_bytes", killed)
        save_learned(other, folder)
    assert {file: file.read_bytes() for file in files_of(folder)} == old
    assert [path.name for path in folder.parent.glob("*learned*")] == ["learned"], "nothing is left beside"
    save_learned(other, folder)
    assert len(load_calibrated(folder).heads) == 1


def test_a_folder_with_other_files_is_left_alone(saved):
    fusion, folder = saved
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="learned: has notes.txt, which is no part of a learned fusion"):
        save_learned(fusion, folder)
    assert (folder / "notes.txt").read_text() == "mine" and load_calibrated(folder).name == "learned"


def change_weights(folder: Path) -> None:
    content = json.loads((folder / "learned.json").read_text())
    content["weights"][0][0] += 1
    (folder / "learned.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weights, "learned.json: damaged, or changed by hand"),
        (lambda folder: (folder / "learned.json").write_bytes(b"{"), "learned.json: not a learned fusion: "),
        (lambda folder: (folder / "learned.json").write_text('{"format": "tailcal-head"}'), "missing required field"),
        (lambda folder: save_head(load_head(folder / "1"), folder / "2"), "2: is another head than the one that "),
        (lambda folder: shutil.rmtree(folder / "2"), "2: no finished head there"),
        (lambda folder: (folder / "learned.json").unlink(), "learned: no finished head there"),
    ],
)
def test_damage_gets_one_line(saved, damage, message):
    _, folder = saved
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_calibrated(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_newer_version_is_named(saved):
    file = saved[1] / "learned.json"
    file.write_text(file.read_text().replace('"version":1', '"version":2,"weights":{}'))
    with pytest.raises(ValueError, match=r"format version 2, this library reads 1 \(written by a newer version\)"):
        load_calibrated(saved[1])


def test_other_scorers_are_not_saved(saved, tmp_path):
    fusion, _ = saved
    with pytest.raises(ValueError, match="scorers are linear, linear, expected the original scores and trained heads"):
        save_learned(LearnedFusion(fusion.scorers[1:], fusion.weights, fusion.instance_counts), tmp_path / "other")
    assert not (tmp_path / "other").exists()
