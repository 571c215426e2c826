"""Weights files: matching ones are loaded, others are refused by name, and no code in a file runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import tests.frameworks.torchvision as builders
from extract.detectors.weights import load_weights, read_state_dict


def test_weights_files(tmp_path):
    from safetensors.torch import save_file

    model = builders.single_level()
    state = model.state_dict()
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": wrapped, "iteration": 5}, tmp_path / "checkpoint.pth")
    assert load_weights(builders.single_level(), tmp_path / "half.safetensors") != ""
    other = builders.single_level()
    nn.init.zeros_(other.roi_heads.box_predictor.cls_score.weight)
    load_weights(other, tmp_path / "checkpoint.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), state.values(), strict=True))


def test_wrong_weights_files(tmp_path):
    model = builders.single_level()
    state = model.state_dict()

    def refused(content, name="w.pth"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(ValueError) as error:
            load_weights(model, path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        return str(error.value)

    assert "lacks rpn.head.bbox_pred.bias" in refused({k: v for k, v in state.items() if "rpn.head.bbox" not in k})
    assert "has extra, which the model does not have" in refused({**state, "extra": torch.zeros(1)})
    message = refused({**state, "roi_heads.box_predictor.cls_score.bias": torch.zeros(99)})
    assert "roi_heads.box_predictor.cls_score.bias has shape (99,), the model's (8,)" in message
    assert "not a file that torch.save has written" in refused(b"garbage")
    assert "not a pickle of arrays" in refused(b"garbage", "w.pkl")
    assert "not a safetensors file" in refused(b"garbage", "w.safetensors")
    assert "not a state_dict of tensors" in refused([1, 2])
    for wrong in ({"a": np.array(["text"])}, {"a": np.array([None])}, {3: np.zeros(2)}, {"model": {b"a": np.zeros(2)}}):
        assert "not a state_dict of tensors" in refused(pickle.dumps(wrong), "w.pkl")
    with pytest.raises(FileNotFoundError, match="none.pth: no such weights file"):
        load_weights(model, tmp_path / "none.pth")


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


def test_other_objects_in_a_checkpoint_are_ignored_and_never_run(tmp_path):
    model = builders.single_level()
    state = OrderedDict(model.state_dict())
    trace = tmp_path / "trace"
    content = {"state_dict": state, "trainer": Trainer(), "hook": Malicious(f"touch {trace}")}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert load_weights(builders.single_level(), path)
    arrays = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x", "hook": Malicious(f"touch {trace}")}
    for protocol in (2, 4):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(arrays, protocol))
        read = read_state_dict(path)
        assert all(torch.equal(read[key], value) for key, value in state.items())
    assert not trace.exists()


def test_files_may_hold_buffers_that_are_not_persistent(tmp_path):
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
    assert model.pixel_mean.item() == 1
