"""Head and fusion as a torch module and as a program of its own: the same scores as NumPy's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from extract.class_scores import scores_with_objectness, stage_scores
from fuse.export.module import CalibratedScores
from fuse.export.program import INPUTS_FILE, save_program
from fuse.scores import SCORE_MODES, fuse_scores

K, WIDTHS = 6, (8, 5, 7)


def module(mode: str, stages: int = 1, **options) -> CalibratedScores:
    made = CalibratedScores(WIDTHS, stages, mode=mode, **options).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.normal_(generator=generator)
    made.tail[:3] = True
    return made


def inputs(rois: int = 9, stages: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rois, stages, 2, 4, generator=generator),
        2 * torch.randn(rois, stages, K + 1, generator=generator),
    )


def expected(
    made: CalibratedScores, features: torch.Tensor, logits: torch.Tensor, objectness: torch.Tensor | None = None
) -> np.ndarray:
    original = stage_scores(logits.numpy(), made.original_average, made.activation)
    if made.stages:
        own = torch.stack([layer(features[:, s].flatten(1)) for s, layer in enumerate(made.stages)], 1)
        calibrated = stage_scores(own.numpy(), made.calibrated_average)
    else:
        adjusted = logits * made.scale + made.shift
        calibrated = stage_scores(adjusted.numpy(), made.calibrated_average, made.activation)
    if objectness is not None:
        original, calibrated = (scores_with_objectness(s, objectness.numpy()) for s in (original, calibrated))
    options = {"cat_threshold": made.cat_threshold, "cat_scale": made.cat_scale}
    return fuse_scores(original, calibrated, made.tail.numpy(), made.mode, **options)


@pytest.mark.parametrize("averages", [("scores", "logits"), ("logits", "scores")])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("mode", SCORE_MODES)
def test_scores_are_those_of_numpy(mode, stages, averages):
    made = module(mode, stages, original_average=averages[0], calibrated_average=averages[1], cat_threshold=0.2)
    features, logits = inputs(stages=stages)
    np.testing.assert_allclose(made(features, logits), expected(made, features, logits), atol=2e-6)
    assert made(features[:0], logits[:0]).shape == (0, K + 1)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mode", ["calibrated", "cat"])
def test_a_method_scales_and_shifts_the_original_logits(mode, activation):
    made = CalibratedScores((K + 1,), 2, mode=mode, activation=activation)
    generator = torch.Generator().manual_seed(2)
    made.scale.uniform_(0.5, 2, generator=generator)
    made.shift.normal_(generator=generator)
    made.tail[:3] = True
    features, logits = inputs(stages=2)
    np.testing.assert_allclose(made(features, logits), expected(made, features, logits), atol=2e-6)


def test_sigmoid_given_scale_and_half_floats():
    made = module("cat-scale", activation="sigmoid", cat_scale=0.5)
    features, logits = (x.half() for x in inputs())
    np.testing.assert_allclose(made(features, logits), expected(made, features.float(), logits.float()), atol=2e-6)


@pytest.mark.long
@pytest.mark.parametrize("mode", SCORE_MODES)
def test_scores_with_objectness(mode, tmp_path):
    made = module(mode, cat_threshold=0.2, with_objectness=True)
    features, logits = inputs()
    objectness = torch.linspace(0, 1, len(logits))
    np.testing.assert_allclose(
        made(features, logits, objectness), expected(made, features, logits, objectness), atol=2e-6
    )
    if mode == "cat":
        save_program(made, (2, 4), tmp_path / "scores.pt2")
        text = {INPUTS_FILE: ""}
        program = torch.export.load(tmp_path / "scores.pt2", extra_files=text).module()
        np.testing.assert_allclose(program(features, logits, objectness), made(features, logits, objectness), atol=1e-6)
        assert ", objectness float32 (R,) -> scores float32 (R, 7), background last" in text[INPUTS_FILE]


@pytest.mark.process
@pytest.mark.parametrize(("mode", "stages"), [("cat", 3), ("cat-scale", 1)])
def test_the_program_runs_without_this_library(tmp_path, mode, stages):
    made = module(mode, stages)
    save_program(made, (2, 4), tmp_path / "scores.pt2")
    features, logits = inputs(31, stages)
    torch.save({"features": features, "logits": logits}, tmp_path / "in.pt")
    code = (
        "import sys, torch; a = torch.load('in.pt', weights_only=True);"
        "p = torch.export.load('scores.pt2').module(); torch.save(p(a['features'], a['logits']), 'out.pt');"
        "assert not {'fuse', 'calib', 'extract'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    np.testing.assert_allclose(out, made(features, logits), atol=1e-6)


def test_unknown_words_are_named():
    with pytest.raises(ValueError, match="mode is 'dog', expected one of original, calibrated"):
        CalibratedScores(WIDTHS, mode="dog")
    with pytest.raises(ValueError, match="activation is 'relu'"):
        CalibratedScores(WIDTHS, activation="relu")
