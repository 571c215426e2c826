"""Weights files: what frameworks load is loaded, other models are refused by name, and no code in a file runs."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import tests.frameworks.torchvision as builders
from extract.detectors.weights import hash_tensors, load_weights


@pytest.fixture(scope="module")
def state():
    """The state_dict of `single_level`."""
    return builders.single_level().state_dict()


def assert_loads(path, state):
    """The file gives a model exactly these tensors."""
    model = builders.single_level()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    loaded = load_weights(model, path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    return loaded


def refusal(content, path, model=None):
    """The one line with which a file of this content is refused, without the path."""
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError) as error:
        load_weights(model or builders.single_level(), path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "net.module.detector."])
@pytest.mark.parametrize(
    "keys", [(), ("model",), ("state_dict",), ("model_state_dict",), ("ema",), ("network", "student")]
)
def test_keys_and_prefixes_that_lead_to_the_weights(keys, prefix, state, tmp_path):
    content = {f"{prefix}{key}": value for key, value in state.items()}
    for key in reversed(keys):
        content = {key: content, "epoch": 7, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "lr": 0.1}}
    torch.save(content, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", state)


def test_a_wrapper_within_the_model(state, tmp_path):
    state = {key.replace("backbone.", "backbone._orig_mod."): value for key, value in state.items()}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", builders.single_level().state_dict())


def test_safetensors(state, tmp_path):
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    model = builders.single_level()
    load_weights(model, tmp_path / "half.safetensors")
    assert all(torch.equal(value, state[key].half().float()) for key, value in model.state_dict().items())
    save_file({f"model.{k}": v for k, v in state.items()}, tmp_path / "prefix.safetensors")
    assert_loads(tmp_path / "prefix.safetensors", state)


def test_the_content_decides_the_format(state, tmp_path):
    torch.save(state, tmp_path / "saved.pth")
    save_file(state, tmp_path / "other.safetensors")
    arrays = {key: value.numpy() for key, value in state.items()}
    (tmp_path / "arrays.pth").write_bytes(pickle.dumps(arrays))
    shutil.copy(tmp_path / "saved.pth", tmp_path / "saved.pkl")
    shutil.copy(tmp_path / "other.safetensors", tmp_path / "other.bin")
    (tmp_path / "tensors.pkl").write_bytes(pickle.dumps(dict(state)))
    for name in ("arrays.pth", "saved.pkl", "other.bin", "tensors.pkl"):
        assert_loads(tmp_path / name, state)


def test_names_of_torchvision_before_0_12(tmp_path):
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import resnet18

    def build():
        layers = {"layer3": "0", "layer4": "1"}
        backbone = BackboneWithFPN(resnet18(weights=None), layers, [256, 512], 8)
        anchors = builders.AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
        return builders.MaskRCNN(backbone, 4, rpn_anchor_generator=anchors)

    state = build().state_dict()
    old = {}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            name = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            for i in range(4):
                name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
            name = name.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.")
            old[name] = value
    assert len(old.keys() - state.keys()) == 18
    for prefix in ("", "module."):
        torch.save({"model": {f"{prefix}{key}": value for key, value in old.items()}}, tmp_path / "old.pth")
        model = build()
        load_weights(model, tmp_path / "old.pth")
        found = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
        assert all(torch.equal(value, state[key]) for key, value in found.items())


def test_versions_in_the_metadata_are_kept_behind_a_prefix(tmp_path):
    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state, prefix, metadata, *args):
            self.seen = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *args)

    model = nn.ModuleDict({"part": Versioned(2, 2)})
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert model["part"].seen == 3


def test_averaged_weights_stay_beside_the_ones_that_the_framework_loads(state, tmp_path, caplog):
    other = {key: value + 1 for key, value in state.items()}
    with_steps = {"steps": torch.tensor(9), **{f"module.{key}": value for key, value in other.items()}}
    contents = {
        "ema_state_dict": {"meta": {}, "state_dict": state, "ema_state_dict": with_steps},
        "model_ema": {"model_ema": other, "model": state},
        "ema_model.": {
            "state_dict": {f"{n}.{k}": s[k] for n, s in (("ema_model", other), ("model", state)) for k in s}
        },
        "student.": {f"{n}.{k}": s[k] for n, s in (("student", other), ("teacher", state)) for k in s},
    }
    for name, content in contents.items():
        caplog.clear()
        torch.save(content, tmp_path / "w.pth")
        assert_loads(tmp_path / "w.pth", state)
        assert name in caplog.text and "are loaded, not those under" in caplog.text
    torch.save({"meta": {"epoch": 3}, "ema_state_dict": with_steps}, tmp_path / "w.pth")
    assert assert_loads(tmp_path / "w.pth", other).meta == {"epoch": 3}


def test_two_models_in_one_file_are_refused(state, tmp_path):
    other = {key: value + 1 for key, value in state.items()}
    message = refusal({"thermal": state, "colour": other}, tmp_path / "w.pth")
    assert "holds weights of this model under thermal and under colour: save a file with those to use" in message
    torch.save({"thermal": state, "colour": dict(state)}, tmp_path / "same.pth")
    assert_loads(tmp_path / "same.pth", state)


def test_what_inference_does_not_use_is_left_out_and_counted(state, tmp_path, caplog):
    surplus = {
        **{f"ema_{key.replace('.', '_')}": value for key, value in state.items()},
        "roi_heads.keypoint_head.0.weight": torch.zeros(3),
        "semantic_head.conv.weight": torch.zeros(3),
        "rpn.head.loss_bbox.weight": torch.zeros(3),
        "roi_heads.aux_head.weight": torch.zeros(3),
        "backbone.0.num_batches_tracked": torch.tensor(3),
        "backbone.fc.weight": torch.zeros(3),
        "calibration.0.weight": torch.zeros(3),
    }
    torch.save({**state, **surplus}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", state)
    count = f"{len(surplus)} of {len(state) + len(surplus)} tensors are left out"
    assert count in caplog.text and "such as" in caplog.text and len(caplog.messages) == 1


def test_parameters_that_do_not_fit_are_listed(state, tmp_path):
    path = tmp_path / "w.pth"
    message = refusal({key: value for key, value in state.items() if "rpn.head" not in key}, path)
    assert message.startswith("weights of another model: lacks rpn.head.conv.0.0.weight, rpn.head.conv.0.0.bias, ")
    assert message.endswith(", rpn.head.cls_logits.weight and 3 more")
    wrong = {"roi_heads.box_predictor.cls_score.bias": torch.zeros(99)}
    message = refusal({**state, **wrong}, path)
    assert "roi_heads.box_predictor.cls_score.bias has shape (99), the model's (8)" in message
    part = {key: value for key, value in state.items() if "bbox_pred.bias" not in key}
    message = refusal({**part, **wrong}, path)
    assert "lacks rpn.head.bbox_pred.bias, roi_heads.box_predictor.bbox_pred.bias; roi_heads" in message


@pytest.mark.parametrize(
    "key",
    ["backbone.2.weight", "roi_heads.box_head.fc8.weight", "rpn.head.conv.1.0.bias", "roi_heads.box_head.fc6.gain"],
)
def test_further_layers_are_of_another_model(key, state, tmp_path):
    message = refusal({**state, key: torch.zeros(2)}, tmp_path / "w.pth")
    assert message == f"weights of another model: has {key}, of layers that the model does not have"


@pytest.mark.parametrize(
    ("keys", "whose"),
    [
        (("proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight"), "detectron2"),
        (("rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight"), "mmdetection"),
        (("conv1_w", "res2_0_branch2a_w", "pred_b"), "Detectron or Caffe2"),
        (("model.0.conv.weight", "model.22.cv2.0.0.conv.weight"), "an ultralytics YOLO"),
        (("layer1.0.conv1.weight", "fc.weight"), "an image classifier"),
        (("transformer.encoder.layers.0.linear1.weight",), "a DETR"),
    ],
)
def test_foreign_weights_are_told_by_their_keys(keys, whose, tmp_path):
    message = refusal({"state_dict": {key: torch.zeros(2) for key in keys}}, tmp_path / "w.pth")
    assert message.startswith("weights of another model: lacks backbone.0.weight, ") and " more" in message
    assert message.endswith(f"; its keys look like those of {whose}")


def test_files_that_are_no_weights(state, tmp_path):
    assert "damaged, or not a file that torch.save has written" in refusal(b"garbage", tmp_path / "w.pth")
    assert "not a pickle of arrays" in refusal(b"garbage", tmp_path / "w.pkl")
    assert "not a safetensors file" in refusal(b"garbage", tmp_path / "w.safetensors")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    assert "a Git LFS pointer instead of the file: `git lfs pull`" in refusal(pointer, tmp_path / "w.pth")
    assert "a web page or XML" in refusal(b"<!DOCTYPE html><html>", tmp_path / "w.pth")
    assert "not a state_dict of tensors but a list" in refusal([1, 2], tmp_path / "w.pth")
    torch.save(state, tmp_path / "whole.pth")
    truncated = (tmp_path / "whole.pth").read_bytes()[:-200]
    assert "damaged, or not a file" in refusal(truncated, tmp_path / "w.pth")
    for wrong in ({"a": np.array(["text"])}, {"a": np.array([None])}, {3: np.zeros(2)}, {"model": {b"a": np.zeros(2)}}):
        assert "not a state_dict of tensors" in refusal(pickle.dumps(wrong), tmp_path / "w.pkl")
    with pytest.raises(FileNotFoundError, match="none.pth: no such weights file"):
        load_weights(builders.single_level(), tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a folder, expected a weights file"):
        load_weights(builders.single_level(), tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "program.pt")
    message = refusal((tmp_path / "program.pt").read_bytes(), tmp_path / "w.pth")
    assert message == "a TorchScript program, which is code: save the model's state_dict()"


class Trainer:
    """An object that trainers save beside the weights, and that only its own class can read."""

    def __init__(self):
        self.history = [np.float64(1.5), {"lr": 0.1}]


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_other_objects_in_a_checkpoint_are_ignored_and_never_run(state, tmp_path):
    trace = tmp_path / "trace"
    content = {"state_dict": OrderedDict(state), "trainer": Trainer(), "hook": Malicious(f"touch {trace}")}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert_loads(path, state)
    arrays = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x", "hook": Malicious(f"touch {trace}")}
    for protocol in (2, 4):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(arrays, protocol))
        assert_loads(path, state)
    assert not trace.exists()


def test_a_model_that_was_saved_whole_gives_its_tensors_and_runs_nothing(state, tmp_path):
    model = builders.single_level()
    trace = tmp_path / "trace"
    model.hook = Malicious(f"touch {trace}")
    for name, content in {"model": model, "wrapped": {"ema": nn.DataParallel(model), "epoch": 2}}.items():
        for legacy in (False, True):
            path = tmp_path / f"{name}{legacy}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            assert_loads(path, state)
    assert not trace.exists()


def test_files_may_hold_buffers_that_are_not_persistent(tmp_path, caplog):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.BatchNorm2d(2)
            self.register_buffer("pixel_mean", torch.ones(1), persistent=False)

    state = {**Model().state_dict(), "pixel_mean": torch.zeros(1)}
    del state["layer.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pth")
    model = Model()
    load_weights(model, tmp_path / "w.pth")
    assert model.pixel_mean.item() == 1 and not caplog.text
    del state["layer.running_mean"]
    assert refusal(state, tmp_path / "w.pth", model) == "weights of another model: lacks layer.running_mean"


def test_a_detector_is_known_by_its_tensors(state, tmp_path):
    torch.save({"model": state, "optimizer": {"state": {0: torch.ones(9)}}}, tmp_path / "checkpoint.pth")
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    (one, other) = (assert_loads(tmp_path / name, state).identity for name in ("checkpoint.pth", "w.safetensors"))
    assert one["tensors_sha256"] == other["tensors_sha256"] and one["weights_sha256"] != other["weights_sha256"]
    model = builders.single_level()
    assert hash_tensors(model) == one["tensors_sha256"]
    classifier = model.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        classifier.weight.copy_(classifier.weight.roll(1, 0))
    assert hash_tensors(model) != one["tensors_sha256"], "classes in another order are another detector"


def test_counters_are_no_part_of_a_detector():
    model = nn.BatchNorm2d(2)
    before = hash_tensors(model)
    model.num_batches_tracked += 1
    assert hash_tensors(model) == before
    model.running_mean += 1
    assert hash_tensors(model) != before
    assert hash_tensors(nn.Linear(1, 1).bfloat16()) != hash_tensors(nn.Linear(1, 1))
