"""A calibrated detector given back: torchvision, detectron2 and mmdetection load it and detect as the live one does."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import calib
import extract
import fuse
from calib.deployment import on_pooled_features
from calib.heads import Head
from calib.scoring import Original
from extract.command_configs import ConvertConfig
from extract.convert import run as convert
from extract.detectors import load_detector
from extract.detectors.base import Image
from fuse.commands.export import export
from fuse.export.checksums import check_sums
from fuse.export.program import described_shape
from fuse.learned import LearnedFusion
from fuse.learned_io import save_learned
from fuse.live import CalibratedDetector
from fuse.plugins import Calibration
from tests import frameworks
from tests.conftest import CLASSES
from tests.exactness import assert_same_detections, make_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # mmdetection's masks
]
OPTIONS = {"mode": "cat", "tail": 4, "max_detections": 40}


@pytest.fixture(scope="module", params=frameworks.SPECS)
def setting(request, tiny, tmp_path_factory):
    """A detector's spec, the folders of two heads of it, and its train cache."""
    folder = tmp_path_factory.mktemp("export")
    spec = frameworks.SPECS[request.param](folder)
    config = tiny.config("train", folder / "train.zarr", min_images_per_class=1, **vars(spec))
    cache = extract.run(config)
    heads = {kind: folder / kind for kind in ("2fc_rand", "linear")}
    for kind, path in heads.items():
        calib.train_head(cache, head_type=kind, hidden=8, steps=3, out=str(path))
    return request.param, spec, heads, cache


def loaded_by_the_framework(name: str, folder, spec):
    """Follows the lines that `export` prints; returns detections of an RGB image as the framework gives them."""
    code = loading_code(name, folder, spec)
    *loading, detection = code.strip().split("\n")
    namespace = {}
    with warnings.catch_warnings(record=True):  # init_detector changes the filters, and warns of class names
        exec("\n".join(loading), namespace)
    result = next(variable for variable in ("detections", "outputs", "result") if variable in detection)

    def detect(pixels):
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        namespace["image"] = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 if name == "torchvision" else bgr
        exec(detection, namespace)
        return namespace[result]

    return detect


def loading_code(name: str, folder, spec) -> str:
    plugin = importlib.import_module(f"fuse.plugins.{name.partition('-')[0]}")
    return plugin.loading_code(spec, folder, "cpu")


@pytest.mark.parametrize("kind", ["2fc_rand", "linear"])
def test_the_framework_loads_it_and_detects_as_live(setting, kind, tmp_path, capsys):
    name, spec, heads, _ = setting
    out = tmp_path / "out"
    export(fuse.ExportConfig(**vars(spec), head=heads[kind], out=out, **OPTIONS))
    printed = capsys.readouterr().out
    assert loading_code(name, out, spec) in printed
    detector = load_detector(spec)
    live = CalibratedDetector(detector, heads[kind], **OPTIONS)
    detect = loaded_by_the_framework(name, out, spec)
    for image in make_images((96, 144), (112, 112)):
        ((expected, masks),) = live.predict(image.pixels)
        found, own_masks = detector.to_arrays(detect(image.pixels))
        assert_same_detections(found, expected)
        assert (masks is None) == (own_masks is None)
        if masks is not None:
            assert (masks == own_masks).mean() > 0.999
    (rois,) = detector.forward([image], live.level).rois
    namespace = {"features": rois.features.float(), "logits": torch.from_numpy(rois.logits)}
    exec(printed[printed.index("import torch\n") :], namespace)
    scores, program = namespace["scores"], namespace["program"]
    code = printed[printed.index("import torch\n") :]
    logits = described_shape(rois.logits.shape[1:])
    for wrong in (torch.zeros(len(rois), 9, 9), namespace["logits"].double()):
        with pytest.raises(RuntimeError) as error:
            exec(code, {**namespace, "logits": wrong})
        assert f"logits are {wrong.dtype} {tuple(wrong.shape)}, expected float32 {logits}" in str(error.value)
        with pytest.raises((AssertionError, RuntimeError), match="Guard failed: logits.size|Expected: Float, Got: dou"):
            program(namespace["features"], wrong)
    torch.export.load(out / "scores.pt2", extra_files=(extra := {"inputs.txt": ""}))
    features = described_shape(rois.features.shape[1:])
    assert extra["inputs.txt"].startswith(
        f"features float32 {features}, logits float32 {logits} -> scores float32 (R, "
    )
    np.testing.assert_allclose(scores[:, -1], live.fusion.original.scores(rois)[:, -1], atol=1e-5)
    assert scores.shape == (len(rois), CLASSES + 1)


def test_a_head_on_hidden_features_is_exported_with_its_first_layer(setting, tmp_path):
    name, spec, _, cache = setting
    detector = load_detector(spec)
    config = ConvertConfig(cache.url, str(tmp_path / "hidden.zarr"), projection=5, device="cpu")
    if not cache.fc_layers():
        with pytest.raises(ValueError, match="feature level hidden needs a box head"):
            convert(config)
        return
    hidden = convert(config)
    head = calib.train_head(hidden, head_type="3fc_lowrank", steps=20, lr=0.05, out=str(tmp_path / "head"))
    out = tmp_path / "out"
    export(fuse.ExportConfig(**vars(spec), head=tmp_path / "head", out=out, **OPTIONS))
    layers = [stage[0] for stage in detector.fc_layers("pooled")]
    shape = cache.fields["features"][1:]
    live = CalibratedDetector(detector, on_pooled_features(head, layers, shape), **OPTIONS)
    detect = loaded_by_the_framework(name, out, spec)
    image = make_images((96, 144))[0]
    ((expected, _),) = live.predict(image.pixels)
    assert_same_detections(detector.to_arrays(detect(image.pixels))[0], expected)


@pytest.mark.parametrize("mode", ["calibrated", "cat"])
def test_a_learned_fusion_is_exported_as_it_detects_live(setting, mode, tmp_path, capsys):
    name, spec, heads, cache = setting
    scorers = Original.from_description(cache.detector), *(calib.load_head(path) for path in heads.values())
    weights = np.random.default_rng(0).uniform(0.2, 1, (5, cache.num_classes)).astype(np.float32)
    save_learned(
        LearnedFusion(scorers, weights, scorers[1].instance_counts, scorers[1].class_map), tmp_path / "learned"
    )
    options, out = OPTIONS | {"mode": mode}, tmp_path / "out"
    config = fuse.ExportConfig(**vars(spec), head=tmp_path / "learned", out=out, **options)
    export(config)
    printed, detector = capsys.readouterr().out, load_detector(spec)
    live = CalibratedDetector(detector, tmp_path / "learned", **options)
    detect, image = loaded_by_the_framework(name, out, spec), make_images((96, 144))[0]
    ((expected, _),) = live.predict(image.pixels)
    assert_same_detections(detector.to_arrays(detect(image.pixels))[0], expected)
    (rois,) = detector.forward([image], live.level).rois
    namespace = {"features": rois.features.float(), "logits": torch.from_numpy(rois.logits)}
    namespace["objectness"] = torch.from_numpy(rois.objectness)
    exec(printed[printed.index("import torch\n") :], namespace)
    np.testing.assert_allclose(namespace["scores"][:, -1], live.fusion.original.scores(rois)[:, -1], atol=1e-5)
    with pytest.raises(ValueError, match="a learned fusion, of which a classifier has no rows: leave out --fold"):
        export(replace(config, fold=True, out=tmp_path / "folded", max_detections=300))
    with pytest.raises(ValueError, match="stage average is 'scores', but scorer 'learned' averages no stages"):
        export(replace(config, stage_average="scores", out=tmp_path / "averaged"))


def test_methods_that_rescale_rows_fold_exactly(setting, tmp_path):
    _, spec, _, cache = setting
    detector = load_detector(spec)
    for scorer in (calib.posthoc.NorCal().fit(cache), calib.posthoc.TauNorm(0.5).fit(cache)):
        fuse.export_folded(detector, scorer, tmp_path / "stock.pth")
        stock = load_detector(replace(spec, weights=tmp_path / "stock.pth"))
        ((expected, _),) = CalibratedDetector(detector, scorer, mode="calibrated").predict(
            make_images((96, 144))[0].pixels
        )
        ((found, _),) = CalibratedDetector(stock, mode="original").predict(make_images((96, 144))[0].pixels)
        assert_same_detections(found, expected)


def test_a_method_is_exported_as_it_detects_live(setting, tmp_path, caplog):
    caplog.set_level("INFO")
    name, spec, _, cache = setting
    options = {"mode": "cat", "tail": 4, "max_detections": 40}
    config = fuse.ExportConfig(
        **vars(spec), method="norcal", gamma=0.6, fit_cache=cache.url, out=tmp_path / "out", **options
    )
    export(config)
    last = caplog.records[-1].getMessage()
    assert last.startswith(f"next: python -m fuse predict --detector {spec.detector} ") and "--method norcal" in last
    detector = load_detector(spec)
    live = CalibratedDetector(detector, calib.posthoc.NorCal(0.6).fit(cache), **options)
    image = make_images((96, 144))[0].pixels
    ((expected, _),) = live.predict(image)
    found, _ = detector.to_arrays(loaded_by_the_framework(name, tmp_path / "out", spec)(image))
    assert_same_detections(found, expected)
    (rois,) = detector.forward([Image(0, image)], "logits").rois
    program = torch.export.load(tmp_path / "out" / "scores.pt2").module()
    logits = torch.from_numpy(rois.logits).float()
    scores = program(torch.zeros(*logits.shape[:2], 1), logits)
    np.testing.assert_allclose(scores[:, -1], live.fusion.original.scores(rois)[:, -1], atol=1e-5)


def test_a_linear_head_folds_into_a_stock_checkpoint(setting, tmp_path):
    name, spec, heads, _ = setting
    config = fuse.ExportConfig(**vars(spec), head=heads["linear"], out=tmp_path / "out", tail=4, fold=True)
    if name == "detectron2-sigmoid":
        with pytest.raises(ValueError, match="activation is sigmoid, a linear head's rows are for softmax"):
            export(config)
        return
    export(config)
    stock = load_detector(replace(spec, weights=tmp_path / "out" / "model.pth"))
    own, new = (one.fc_layers("embedding") for one in (load_detector(spec), stock))
    head: Head = calib.load_head(heads["linear"])
    tail = np.array(head.instance_counts) < 4
    for before, after, stage in zip(own, new, head.stages, strict=True):
        np.testing.assert_array_equal(after[-1][0][:-1][~tail], before[-1][0][:-1][~tail])
        np.testing.assert_allclose(after[-1][0][:-1][tail], stage[-1].weight[:-1][tail].detach(), atol=1e-6)
        np.testing.assert_allclose(after[-1][1][:-1][tail], stage[-1].bias[:-1][tail].detach(), atol=1e-6)
        np.testing.assert_array_equal(after[-1][1][-1], before[-1][1][-1])
    export(replace(config, mode="calibrated", out=tmp_path / "calibrated"))
    stock = load_detector(replace(spec, weights=tmp_path / "calibrated" / "model.pth"))
    pixels = make_images((96, 144))[0].pixels
    ((found, _),) = CalibratedDetector(stock, mode="original").predict(pixels)
    ((expected, _),) = CalibratedDetector(load_detector(spec), head, mode="calibrated").predict(pixels)
    assert_same_detections(found, expected)
    lock = config.out.with_name(f".{config.out.name}.lock")
    lock.touch()
    with pytest.raises(ValueError, match="model.pth: exists; give another folder"):
        export(config)
    assert not lock.exists(), "was left by a process that was killed at its end"
    with pytest.raises(ValueError, match="mode is 'avg', expected cat or calibrated with --fold"):
        replace(config, mode="avg")
    with pytest.raises(ValueError, match="max_detections is 7: with --fold the detector's own config decides it"):
        replace(config, max_detections=7)


def test_what_cannot_be_exported_is_named(setting, tmp_path):
    _, spec, heads, _ = setting
    config = fuse.ExportConfig(**vars(spec), head=heads["2fc_rand"], out=tmp_path / "out")
    with pytest.raises(ValueError, match="head is 2fc_rand: only a linear head has rows"):
        export(replace(config, fold=True))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_is_repeated_and_a_finished_one_is_not(setting, tmp_path):
    name, spec, heads, _ = setting
    config = fuse.ExportConfig(**vars(spec), head=heads["2fc_rand"], out=tmp_path, iou_threshold=0.3, **OPTIONS)
    last = importlib.import_module(f"fuse.plugins.{name.partition('-')[0]}").CONFIG
    model = tmp_path / "model.pth"
    ours = {model, tmp_path / "scores.pt2", tmp_path / last}
    model.touch()
    with pytest.raises(ValueError, match="model.pth: exists; give another folder"):
        export(config)
    (tmp_path / "scores.pt2").touch()
    export(config)
    assert ours <= set(tmp_path.iterdir()) and all(file.stat().st_size for file in ours)
    with pytest.raises(ValueError, match=f"{last}: exists; give another folder"):
        export(config)
    check_sums(tmp_path)
    content = torch.load(model, weights_only=True)
    state = content.get("model") or content.get("state_dict") or content
    state[max(state)].view(-1)[0] += 1e-3
    torch.save(content, model)
    with pytest.raises(ValueError, match=r"model\.pth: damaged, or changed since the export"):
        check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()  # every framework's own loader compares the tensors as well
    with pytest.raises(ValueError, match="the checkpoint is damaged, or of another export: its tensors"):
        loaded_by_the_framework(name, tmp_path, spec)


def test_options_replace_those_of_the_detector(setting):
    _, spec, heads, _ = setting
    head, description = calib.load_head(heads["linear"]), load_detector(spec).description
    own = Calibration.from_scorer(head, description, fuse.FusionConfig(max_detections=9))
    other = fuse.FusionConfig(stage_average="logits", iou_threshold=0.0)
    other = Calibration.from_scorer(head, description, other)
    assert own.fusion.iou_threshold == description["nms_iou"]
    assert own.original_average == description["stage_average"] and own.fusion.max_detections == 9
    assert (other.fusion.iou_threshold, other.original_average, other.calibrated_average) == (0.0, "logits", "logits")
    for one in (own, other, replace(own, fusion=replace(own.fusion, mode="calibrated", cat_scale=0.5))):
        assert Calibration.from_config(vars(one.to_config())) == one


def test_custom_imports_may_be_one_name(tmp_path):
    spec = frameworks.SPECS["mmdet-mask_rcnn"](tmp_path)
    plugin = importlib.import_module("fuse.plugins.mmdet")
    with spec.config_file.open("a") as file:
        file.write("\ncustom_imports = dict(imports='json', allow_failed_imports=False)\n")
    fusion = fuse.FusionConfig(iou_threshold=0.5, skip_empty=False)
    calibration = Calibration((2, 3), 1, "pooled", "softmax", "scores", "scores", fusion)
    content = plugin.config_content(spec, calibration, tmp_path).decode()
    namespace = {}
    exec(content, namespace)
    assert namespace["custom_imports"]["imports"] == ["json", "fuse.plugins.mmdet"]


def test_plugins_name_wrong_files(tmp_path):
    calibrated = importlib.import_module("fuse.plugins.torchvision").calibrated
    with pytest.raises(FileNotFoundError, match=r"calibration.json: no such file; .* writes it"):
        calibrated(frameworks.torchvision_model(), tmp_path)
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="model.pth: no such file"):
        calibrated(frameworks.torchvision_model(), tmp_path)
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="calibration.json: not the description of a calibration"):
        calibrated(frameworks.torchvision_model(), tmp_path)


def test_torchvision_never_runs_on_weights_of_another_model(tmp_path):
    calibrated = importlib.import_module("fuse.plugins.torchvision").calibrated
    fusion = fuse.FusionConfig(iou_threshold=0.5, skip_empty=False)
    calibration = Calibration((CLASSES + 1,), 1, "logits", "softmax", "scores", "scores", fusion)
    (tmp_path / "calibration.json").write_text(json.dumps(vars(calibration.to_config())))
    for content, message in ({}, "Missing key"), ({"calibration.scale": torch.zeros(3)}, "Missing key|size mismatch"):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(ValueError, match=f"model.pth: not the weights of this model: .*({message})"):
            calibrated(frameworks.torchvision_model(), tmp_path)
