"""Calibrated models as modules of their framework: parts, devices, copies and memory."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import calib
import extract
import fuse.__main__
from extract.detectors import load_detector
from fuse.commands.export import export
from fuse.commands.live_config import ExportConfig
from fuse.live import CalibratedDetector
from fuse.plugins import Calibration, CalibrationConfig
from tests import frameworks
from tests.conftest import CLASSES
from tests.exactness import assert_same_detections, make_images

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # mmdetection's masks
]


def make_calibration(stages: int) -> Calibration:
    """A method without training, which needs no features."""
    config = CalibrationConfig(
        widths=(CLASSES + 1,),
        stages=stages,
        level="logits",
        mode="cat",
        activation="softmax",
        original_average="scores",
        calibrated_average="scores",
        threshold=0.05,
        scale=0.0,
        score_threshold=0.0,
        iou_threshold=0.5,
        max_detections=20,
        skip_empty=False,
    )
    return Calibration.from_config(vars(config))


def test_pooled_features_that_an_earlier_version_exported_are_refused():
    config = vars(make_calibration(1).to_config()) | {"level": "pooled"}
    config.pop("pooled_after_convolutions")  # as in files of earlier versions
    calibration = Calibration.from_config(config)
    calibration.mapped(SimpleNamespace(description={}))
    with pytest.raises(ValueError, match="pooled features are the box head's input, this version's are the output"):
        calibration.mapped(SimpleNamespace(description={"pooled_after_convolutions": True}))


def test_an_option_of_a_newer_version_is_refused():
    with pytest.raises(ValueError, match=r"has gate_2, which .* \(written by a newer version\)"):
        Calibration.from_config(vars(make_calibration(1).to_config()) | {"gate_2": True})


def build(name: str, folder: Path) -> tuple[nn.Module, nn.Module, Callable[[nn.Module], object]]:
    """Returns the original model, the calibrated one with random weights, and the framework's call of it."""
    spec = frameworks.SPECS[name](folder)
    original = load_detector(spec)
    calibration = make_calibration(len(original.stages))
    pixels = make_images((96, 144))[0].pixels
    if name == "torchvision":
        from fuse.plugins.torchvision import CalibratedRCNN

        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return original.model, CalibratedRCNN(frameworks.torchvision_model(), calibration), lambda m: m([tensor])
    if name.startswith("detectron2"):
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        import fuse.plugins.detectron2 as plugin

        (folder / "model.yaml").write_bytes(plugin.config_content(spec, calibration, folder))
        cfg = get_cfg()
        cfg.merge_from_file(str(folder / "model.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        inputs = {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
        return original.model, build_model(cfg), lambda m: m([inputs])
    import fuse.plugins.mmdet as plugin

    (folder / "model.py").write_bytes(plugin.config_content(spec, calibration, folder))
    module = frameworks.import_framework("mmdet")
    return (
        original.model,
        module.init_model(str(folder / "model.py")),
        lambda m: module.infer(m, make_images((96, 144))),
    )


@pytest.mark.parametrize("name", ["torchvision", "detectron2-cascade", "mmdet-hybrid"])
def test_a_calibrated_model_is_an_ordinary_module(name, tmp_path, monkeypatch):
    original, model, run = build(name, tmp_path)
    expected = {*original.state_dict(), *(f"calibration.{key}" for key in model.calibration.state_dict())}
    assert set(model.state_dict()) == expected and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    run(model)
    adapter = model.adapter
    run(model)
    assert model.adapter is adapter, "built once"
    assert set(model.state_dict()) == expected, "the adapter is not part of the model"
    copied = copy.deepcopy(model)
    assert copied.adapter.model.backbone is copied.backbone is not model.backbone
    copied.to("meta")
    assert copied.adapter.device.type == "meta" and adapter.device.type == "cpu"
    reference = weakref.ref(copied)
    gc.disable()
    try:
        del copied
        assert reference() is None, "no reference cycle keeps a model in memory"
    finally:
        gc.enable()


def test_a_lazy_config_is_exported_as_it_came(tmp_path):
    spec = frameworks.import_framework("detectron2").write_reference("lazy", tmp_path).spec
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import LazyConfig, instantiate

    import fuse.plugins.detectron2 as plugin

    original, out = load_detector(spec), tmp_path / "out"
    calibration = replace(make_calibration(1), widths=(original.num_classes + 1,))
    scores = calibration.module()
    scores.shift.copy_(torch.linspace(0, 1, original.num_classes + 1))
    scores.tail[::2] = True
    out.mkdir()
    (out / "model.yaml").write_bytes(plugin.config_content(spec, calibration, out))
    state = {f"calibration.{name}": value for name, value in scores.state_dict().items()}
    torch.save(plugin.checkpoint({**original.model.state_dict(), **state}, original, ()), out / "model.pth")

    cfg = LazyConfig.load(str(out / "model.yaml"))
    model = instantiate(cfg.model)
    DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    assert type(model) is plugin.CalibratedRCNN and model.options == calibration
    (augmentation,) = instantiate(cfg.dataloader.test.mapper.augmentations)
    assert (augmentation.short_edge_length, augmentation.max_size) == ((128, 128), 180)
    image = torch.from_numpy(make_images((96, 144))[0].pixels.transpose(2, 0, 1).copy())
    (found,) = model([{"image": image}])
    output = original.forward_preprocessed([{"image": image}], [0], "logits")
    (expected,) = output.to_framework(calibration.detect(scores, output))
    assert len(found["instances"]) == 20
    for name, value in expected["instances"].get_fields().items():
        other = found["instances"].get(name)
        assert torch.equal(getattr(value, "tensor", value), getattr(other, "tensor", other))


def test_a_lazy_config_is_exported_by_the_command_line(tiny, tmp_path, capsys):
    spec = frameworks.import_framework("detectron2").write_reference("lazy", tmp_path).spec
    names = [c["name"] for c in json.loads((tiny.data / "train.json").read_text())["categories"]]
    (tmp_path / "names.txt").write_text("\n".join([*names, *["N/A"] * 8]))
    config = tiny.config("val", tmp_path / "val.zarr", min_images_per_class=1, **vars(spec))
    cache = extract.run(replace(config, classes=tmp_path / "names.txt"))
    options = {"mode": "calibrated", "max_detections": 20}
    flags = ["--detector", "detectron2", "--config-file", spec.config_file, "--device", "cpu", "--method", "norcal"]
    flags += ["--fit-cache", cache.url, "--mode", "calibrated", "--max-detections", 20, "--out", tmp_path / "out"]
    assert fuse.__main__.main(["export", *map(str, flags)]) == 0
    printed = capsys.readouterr().out
    image = make_images((96, 144))[0].pixels
    namespace = {"image": np.ascontiguousarray(image[..., ::-1])}
    exec(printed[printed.index("import torch\n") : printed.index(f"{tmp_path}/out/scores.pt2 is")], namespace)
    live = CalibratedDetector(detector := load_detector(spec), calib.posthoc.NorCal().fit(cache), **options)
    ((expected, _),) = live.predict(image)
    found, _ = detector.to_arrays(namespace["outputs"])
    assert len(found.labels) and detector.num_classes > cache.num_classes
    assert_same_detections(found, expected)
    rows = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [row["name"] for row in rows][: len(names)] == names and len(rows) == detector.num_classes


def test_a_lazy_config_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    spec = frameworks.import_framework("detectron2").write_reference("lazy", tmp_path).spec
    with spec.config_file.open("a") as file:
        file.write("\nmodel.roi_heads.mask_head.conv_norm = lambda channels: None\n")
    config = ExportConfig(**vars(spec), head=tmp_path / "no_head", out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"lazy.py: model.roi_heads.mask_head.conv_norm is <function .*cannot be"):
        export(config)
    assert not config.out.exists()


def test_torchvision_files_that_are_not_json(tmp_path):
    from fuse.plugins.torchvision import calibrated

    (tmp_path / "model.pth").touch()
    for content, message in ((b"{", "not a JSON object"), (b"[]", "not a JSON object"), (b"{}", "not the description")):
        (tmp_path / "calibration.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"calibration.json: {message}"):
            calibrated(frameworks.torchvision_model(), tmp_path)
