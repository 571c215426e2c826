"""Training under torchrun gives the head of a single process, also after kills and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import calib
from tests.toy_cache import toy_cache

pytestmark = pytest.mark.process

torch.set_num_threads(1)
OPTIONS = {"head_type": "2fc_rand", "hidden": 16, "steps": 120, "checkpoint_every": 25}
WORKER = """
import os, signal, sys, time
import calib.train as trainer
from calib import choice
from calib.__main__ import main
from calib.features import Features

how, original = sys.argv[1], trainer.BiLevelSampler.step

def step(sampler, index, stage=0):
    if how == "killed" and index == 60 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupted" and index >= 80:
        if index == 80 and os.environ["RANK"] == "0":
            os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.02)
    return original(sampler, index, stage)

trainer.BiLevelSampler.step = step
if how == "streamed":
    trainer.Features = lambda cache, device: Features(cache, device, memory=0)
if how == "choosing":
    choice.HELD_OUT_STEPS = 4
sys.modules["torch.utils.tensorboard"] = None  # takes long to import
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def default_interrupt():
    """torchrun receives SIGINT, also if the shell has the tests ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def run(folder, processes, how, cache, options):
    """Trains to `folder`/head; returns exit code, stdout and stderr."""
    (folder / "worker.py").write_text(WORKER)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launcher, folder / "worker.py", how, f"--cache={cache.url}", f"--out={folder / 'head'}", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done.returncode, done.stdout, done.stderr


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = ("lr", "loss", "fg_accuracy", "bg_accuracy")
    return {line["step"]: [line[name] for name in names] for line in lines if "lr" in line}


def assert_equal_to_rounding(out, expected, steps):
    """The heads are equal, and the metrics at these steps."""
    weights, curves = [calib.load_head(o).state_dict() for o in (out, expected)], [losses(o) for o in (out, expected)]
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    for step in steps:
        np.testing.assert_allclose(curves[0][step], curves[1][step], rtol=1e-4, err_msg=f"step {step}")


def test_killed_and_interrupted_runs_go_on_with_any_number_of_processes(tmp_path):
    cache = toy_cache(tmp_path / "cascade.zarr", stages=(0.5, 0.6, 0.7))
    out, alone = tmp_path / "head", tmp_path / "alone"
    code, stdout, stderr = run(tmp_path, 2, "killed", cache, OPTIONS)
    assert code == 1 and stdout == "" and "Signal 9 (SIGKILL)" in stderr
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint.safetensors", "metrics.jsonl"]

    code, stdout, stderr = run(tmp_path, 3, "interrupted", cache, OPTIONS)
    stopped = max(losses(out))
    assert code != 0 and stdout == "" and 80 < stopped < OPTIONS["steps"], stderr
    assert stderr.count(f"stopped after step {stopped}; the same command resumes") == 1
    assert not (out / "config.json").exists()

    calib.train_head(cache, out=str(out), **OPTIONS)
    calib.train_head(cache, out=str(alone), **OPTIONS)
    assert_equal_to_rounding(out, alone, (25, 50, 75))


def test_a_process_without_an_image_of_a_step_takes_part(tmp_path):
    # One class, one image: one process has all RoIs of a step, since streamed images are not divided.
    cache = toy_cache(tmp_path / "train.zarr")
    options = {**OPTIONS, "classes_per_step": 1, "lr": 0.001}
    code, stdout, stderr = run(tmp_path, 2, "streamed", cache, options)
    assert code == 0 and stdout.count("finished") == 1, stderr
    calib.train_head(cache, out=str(tmp_path / "alone"), **options)
    assert_equal_to_rounding(tmp_path / "head", tmp_path / "alone", (25, 50, 75, 100, 120))


@pytest.mark.parametrize("loss", ["bags", "reweighted", "federated"])
def test_losses_over_all_rois_of_a_step_are_those_of_one_process(tmp_path, loss):
    cache = toy_cache(tmp_path / "train.zarr")
    options = {**OPTIONS, "steps": 20, "classes_per_step": 2, "lr": 0.001, "loss": loss, "sampling": "progressive"}
    code, stdout, stderr = run(tmp_path, 2, "streamed", cache, options)
    assert code == 0 and stdout.count("finished") == 1, stderr
    calib.train_head(cache, out=str(tmp_path / "alone"), **options)
    assert_equal_to_rounding(tmp_path / "head", tmp_path / "alone", (20,))


def test_all_processes_choose_the_same_head_type(tmp_path, monkeypatch):
    monkeypatch.setattr("calib.choice.HELD_OUT_STEPS", 4)
    cache = toy_cache(tmp_path / "hidden.zarr", "hidden", projection=9)
    options = {"steps": 10, "lr": 0.001}
    code, stdout, stderr = run(tmp_path, 2, "choosing", cache, options)
    assert code == 0 and stdout.count("finished") == 1, stderr
    alone = calib.train_head(cache, out=str(tmp_path / "alone"), **options)
    assert_equal_to_rounding(tmp_path / "head", tmp_path / "alone", (10,))
    found, expected = (head.info.choice["held_out"] for head in (calib.load_head(tmp_path / "head"), alone))
    for name in ("3fc_ft", "3fc_lowrank"):
        np.testing.assert_allclose(list(found[name].values()), list(expected[name].values()), rtol=1e-3)
