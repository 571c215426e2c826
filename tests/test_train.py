"""Training: schedule, learning, determinism, resuming after crashes and interrupts, command line."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import calib
import calib.train as trainer
from calib.__main__ import main
from calib.features import Features
from extract.utils.memory import available_memory
from tests.toy_cache import CLASSES, toy_cache

torch.set_num_threads(1)
OPTIONS = {"head_type": "2fc_rand", "hidden": 16, "steps": 120, "checkpoint_every": 50}


@pytest.fixture(autouse=True)
def default_interrupt():
    """Ctrl-C raises KeyboardInterrupt, here and in subprocesses, also if the shell has them ignore SIGINT."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("train") / "train.zarr")


def assert_same(first, second):
    weights = first.state_dict(), second.state_dict()
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name


def records(out, *, timed=False):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return lines if timed else [{k: v for k, v in line.items() if k != "rois_per_s"} for line in lines]


def test_schedule_is_the_papers_and_scales():
    paper = calib.Config(cache="c", out="o")
    assert (paper.steps, paper.classes_per_step, paper.momentum, paper.weight_decay) == (
        12_000,
        16,
        0.9,
        1e-4,
    )
    lr = [paper.lr_at(step) for step in (0, 7_999, 8_000, 10_999, 11_000, 11_999)]
    assert lr == [0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    short = calib.Config(cache="c", out="o", steps=1_200)
    assert [short.lr_at(step) for step in (799, 800, 1_099, 1_100)] == [0.01, 0.001, 0.001, 0.0001]
    fixed = calib.Config(cache="c", out="o", milestones=(5, 0.5), steps=100)
    assert [fixed.lr_at(step) for step in (4, 5, 49, 50)] == [0.01, 0.001, 0.001, 0.0001]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", 0, "steps is 0, expected at least 1"),
        ("lr", -1.0, "lr is -1.0, expected more than 0"),
        ("momentum", 1.0, r"momentum is 1.0, expected a number in \[0, 1\)"),
        ("milestones", (0.5, -1), r"milestones is \(0.5, -1\), expected numbers above 0"),
        ("head_type", "4fc", "head_type is '4fc', expected one of auto, linear, 2fc_rand"),
        ("precision", "fp8", "precision is 'fp8', expected one of fp32, bf16, fp16"),
    ],
)
def test_bad_configurations_are_named(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        calib.Config(cache="c", out="o", **{field: value})


@pytest.mark.long
@pytest.mark.parametrize("head_type", ["linear", "2fc_rand", "3fc_rand", "3fc_ft"])
def test_training_learns_the_classes(cache, head_type):
    head = calib.train_head(cache, head_type=head_type, hidden=32, steps=150, lr=0.03)
    rois = cache.image(100)
    labels = rois.labels[:, 0]
    scores = head.scores(rois)
    assert scores.shape == (30, CLASSES + 1)
    right = scores.argmax(1) == labels
    # The toy detector's layers are random, so a linear head on its embedding learns less.
    assert right[labels < CLASSES].mean() > (0.4 if head_type == "linear" else 0.9)


def test_linear_leaves_the_detectors_layers_alone(cache):
    head = calib.train_head(cache, head_type="linear", steps=5)
    for layer, (weight, bias) in zip((head.stages[0][0], head.stages[0][2]), cache.fc_layers(0), strict=False):
        np.testing.assert_array_equal(layer.weight.numpy(), weight)
        np.testing.assert_array_equal(layer.bias.numpy(), bias)


@pytest.mark.long
def test_a_cascade_trains_one_head_per_stage(tmp_path):
    cascade = toy_cache(tmp_path / "c.zarr", stages=(0.5, 0.6, 0.7))
    together = calib.train_head(cascade, head_type="3fc_ft", steps=40)
    rois = cascade.image(100)
    before = np.abs(together.logits(rois) - rois.logits).max(axis=(0, 2))
    assert len(together.stages) == 3 and (before > 0.1).all()


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_ends_near_full_precision(cache, precision):
    full, mixed = (calib.train_head(cache, **{**OPTIONS, "precision": p}) for p in ("fp32", precision))
    rois = cache.image(100)
    np.testing.assert_allclose(mixed.scores(rois), full.scores(rois), atol=0.1)
    assert all(p.dtype == torch.float32 for p in mixed.parameters())


@pytest.mark.long
def test_the_same_seed_gives_the_same_head(cache):
    first, second = (calib.train_head(cache, **OPTIONS, seed=3) for _ in range(2))
    assert_same(first, second)
    other = calib.train_head(cache, **OPTIONS, seed=4)
    assert not torch.equal(other.stages[0][0].weight, first.stages[0][0].weight)


@pytest.mark.long
def test_streamed_features_give_the_same_head(cache, monkeypatch):
    expected = calib.train_head(cache, **OPTIONS)
    monkeypatch.setattr(trainer, "Features", lambda cache, device: Features(cache, device, memory=0))
    assert_same(calib.train_head(cache, **OPTIONS), expected)


@pytest.mark.long
@pytest.mark.parametrize("stages", [(0.5,), (0.5, 0.6)])
@pytest.mark.parametrize("memory", [0, 10**9])
def test_fetched_features_are_those_of_their_rows(tmp_path, stages, memory):
    cache = toy_cache(tmp_path / "c.zarr", stages=stages)
    expected = cache.read("features").astype(np.float32)
    features = Features(cache, torch.device("cpu"), memory)
    assert features.in_memory == (memory > 0)
    for rows in ([np.array([7, 3, 800]), np.array([3, 5])], [np.array([1]), np.arange(100)], [np.array([], int)] * 2):
        rows = rows[: len(stages)]
        assert all(features.is_own(r).all() for r in rows)
        for stage, gathered in enumerate(features.widen(features.fetch(rows))):
            np.testing.assert_array_equal(gathered, expected[rows[stage], stage].reshape(-1, 147))


def test_available_memory_is_what_machine_and_container_have_left(tmp_path):
    meminfo, cgroup, own = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own"
    meminfo.write_text("MemTotal:       9000 kB\nMemAvailable:     7000 kB\nHugePages_Total:       0\n")
    own.write_text("4:cpu,memory:/outer/inner\n0::/outer/inner\n")
    assert available_memory(meminfo, cgroup, own) == 7000 * 1024
    inner, v1 = cgroup / "outer" / "inner", cgroup / "memory" / "outer"
    for folder, limit, usage, inactive in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (inner, "memory.max", "memory.current", "inactive_file"),
        (v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / usage).write_text("3000000\n")
        (folder / "memory.stat").write_text(f"anon 100\n{inactive} 500000\nactive_file 200000\n")
        for value, left in (("4000000", 1_500_000), ("2000000", 0), ("10000000000", 7000 * 1024)):
            (folder / limit).write_text(f"{value}\n")
            assert available_memory(meminfo, cgroup, own) == left
    (inner / "memory.max").write_text("max\n")
    (cgroup / "memory.max").write_text("3700000\n")
    assert available_memory(meminfo, cgroup, own) == 1_200_000
    assert available_memory(meminfo, cgroup, tmp_path / "none") == 7000 * 1024


@pytest.mark.long
def test_metrics_and_finished_folder(cache, tmp_path):
    out = tmp_path / "head"
    head = calib.train_head(str(cache.url), out=str(out), **OPTIONS)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "head.safetensors", "metrics.jsonl", "tensorboard",
    ]  # fmt: skip
    lines = records(out, timed=True)
    assert [line["step"] for line in lines] == [50, 100, 120]
    assert list(lines[0]) == ["step", "lr", "loss", "fg_accuracy", "bg_accuracy", "rois_per_s"]
    assert [line["lr"] for line in lines] == [0.01, 0.001, 0.0001]
    assert lines[-1]["loss"] < 0.5 * math.log(CLASSES + 1) and lines[-1]["rois_per_s"] > 0
    assert_same(calib.load_head(out), head)
    info = calib.load_head(out).info
    assert info.cache_fingerprint == cache.fingerprint and info.detector == "toy"
    assert info.config["steps"] == 120 and "out" not in info.config


@pytest.mark.long
def test_without_tensorboard_there_are_json_lines(cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level("INFO"):
        calib.train_head(cache, out=str(tmp_path / "head"), **OPTIONS)
    assert "TensorBoard is not installed (extra 'report')" in caplog.text
    assert not (tmp_path / "head" / "tensorboard").exists() and len(records(tmp_path / "head")) == 3


def call_before_step(monkeypatch, step, act):
    """Calls `act` once, before step `step` is sampled."""
    original = trainer.BiLevelSampler.step

    def patched(sampler, index, stage=0):
        if index == step:
            monkeypatch.setattr(trainer.BiLevelSampler, "step", original)
            act()
        return original(sampler, index, stage)

    monkeypatch.setattr(trainer.BiLevelSampler, "step", patched)


def crash():
    raise RuntimeError("power cut")


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resume_equals_an_uninterrupted_run(cache, tmp_path, monkeypatch, capsys, precision):
    options = {**OPTIONS, "precision": precision}
    whole = calib.train_head(cache, out=str(tmp_path / "whole"), **options)
    out = tmp_path / "resumed"

    call_before_step(monkeypatch, 77, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        calib.train_head(cache, out=str(out), **options)
    call_before_step(monkeypatch, 93, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        calib.train_head(cache, out=str(out), **options)
    assert "resumed: stopped after step 94; the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(calib.train_head(cache, out=str(out), **options), whole)
    # The interrupted run has one more record, at its last step; the other intervals are equal.
    assert [r["step"] for r in records(out)] == [50, 94, 100, 120]
    assert [records(out)[i] for i in (0, 3)] == [records(tmp_path / "whole")[i] for i in (0, 2)]


LONG = {**OPTIONS, "steps": 1000, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def long_run(cache):
    return calib.train_head(cache, **LONG)


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_or_interrupted_process_resumes_exactly(cache, tmp_path, long_run, number, code):
    out = tmp_path / "head"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in LONG.items()]
    command = [sys.executable, "-m", "calib.train", f"--cache={cache.url}", f"--out={out}", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "checkpoint.safetensors").exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == "" and not (out / "config.json").exists()
    assert ("the same command resumes" in stderr) == (number == signal.SIGINT)
    assert_same(calib.train_head(cache, out=str(out), **LONG), long_run)
    steps = [record["step"] for record in records(out)]
    assert steps == sorted(set(steps)) and steps[-1] == LONG["steps"]


@pytest.mark.long
def test_commands_exit_codes_and_messages(cache, tmp_path, capsys, monkeypatch):
    out = tmp_path / "head"
    command = ["--cache", cache.url, "--out", str(out), "--head-type", "2fc_rand", "--hidden", "8", "--steps", "5"]
    assert main(command) == 0
    done = f"{out}: head 2fc_rand, 1 stage(s), 12 classes, 1,301 parameters, 5 steps, finished\n"
    assert capsys.readouterr().out == done
    weights = (out / "head.safetensors").read_bytes()
    monkeypatch.setattr(trainer, "build_head", None)  # a finished head is not trained again
    assert main(["train", *command]) == 0
    assert capsys.readouterr().out == done
    monkeypatch.undo()

    assert main([*command, "--lr", "0.1"]) == 1
    changed = "was made with other options: lr (0.01 there, 0.1 now); --overwrite starts anew"
    assert capsys.readouterr().err == f"error: {out}: {changed}\n"
    assert main([*command, "--lr", "0.1", "--overwrite"]) == 0
    assert (out / "head.safetensors").read_bytes() != weights

    assert main(["--cache", str(tmp_path / "none"), "--out", str(out)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no RoI cache there\n"
    assert main(["--cache", cache.url, "--out", str(tmp_path / "new"), "--device", "abacus"]) == 1
    assert capsys.readouterr().err.startswith("error: device 'abacus' cannot be used: ")
    assert not (tmp_path / "new").exists()
    assert main(["--cache", cache.url, "--out", cache.url]) == 1
    assert "exists and is not the folder of a head" in capsys.readouterr().err
    assert main(["--cache", cache.url]) == 2
    assert main(["--cache", cache.url, "--out", str(out), "--head-type", "4fc"]) == 2


@pytest.mark.parametrize(
    ("program", "arguments", "prog"),
    [
        ("/usr/bin/tailcal-train", ["--help"], "tailcal-train"),
        ("calib/__main__.py", ["--help"], "python -m calib"),
        ("calib/__main__.py", ["train", "--help"], "python -m calib train"),
    ],
)
def test_help_shows_the_name_of_the_command(capsys, monkeypatch, program, arguments, prog):
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    assert main() == 0
    assert capsys.readouterr().out.startswith(f"usage: {prog} [-h] ")


def test_a_val_cache_is_refused(tmp_path, capsys):
    val = toy_cache(tmp_path / "val.zarr", images=1, split="val")
    assert main(["--cache", val.url, "--out", str(tmp_path / "head")]) == 1
    refusal = "is a cache of split 'val', a head is trained on one extracted with --split train"
    assert capsys.readouterr().err == f"error: {val.url}: {refusal}\n"
    assert not (tmp_path / "head").exists()


@pytest.mark.long
def test_a_cache_of_other_features_is_another_cache(cache, tmp_path):
    out = str(tmp_path / "head")
    calib.train_head(cache, out=out, **OPTIONS)
    other = toy_cache(tmp_path / "other.zarr", seed=1)
    assert other.images.equals(cache.images) and other.fingerprint != cache.fingerprint
    with pytest.raises(ValueError, match=r"other options: cache \(.* there, .* now\); --overwrite starts anew"):
        calib.train_head(other, out=out, **OPTIONS)


def test_a_changed_configuration_does_not_resume(cache, tmp_path, monkeypatch):
    out = str(tmp_path / "head")
    call_before_step(monkeypatch, 60, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        calib.train_head(cache, out=out, **OPTIONS)
    with pytest.raises(ValueError, match=r"steps \(120 there, 130 now\), seed \(0 there, 1 now\); --over"):
        calib.train_head(cache, out=out, **{**OPTIONS, "steps": 130, "seed": 1})
    other = toy_cache(tmp_path / "other.zarr", images=29)
    with pytest.raises(ValueError, match=r"made with other options: cache \(.* there, .* now\);"):
        calib.train_head(other, out=out, **OPTIONS)
    checkpoint = tmp_path / "head" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: damaged .*; remove it to start anew"):
        calib.train_head(cache, out=out, **OPTIONS)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "bert"}', "tensorboard/events": ""},
        {"config.json": "not json", "metrics.jsonl": ""},
        {"config.json": "\udcff"},
        {"tensorboard/events": ""},
        {"metrics.jsonl": '{"step": 1, "loss": 2}\n', "tensorboard/events": ""},
        {"metrics.jsonl": "", "notes.txt": ""},
        {"checkpoint.safetensors": "somebody else's", "metrics.jsonl": ""},
        {"head.safetensors": "somebody else's"},
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_left_alone(cache, tmp_path, files, overwrite):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"is not the folder of a head|damaged or not a checkpoint"):
        calib.train_head(cache, out=str(tmp_path), overwrite=overwrite, **OPTIONS)
    found = {
        str(p.relative_to(tmp_path)): p.read_text(errors="surrogateescape") for p in tmp_path.rglob("*") if p.is_file()
    }
    assert found == files


@pytest.mark.long
@pytest.mark.parametrize("step", [10, 70])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_is_recognised_before_and_after_its_first_checkpoint(cache, tmp_path, monkeypatch, step, overwrite):
    out = tmp_path / "head"

    call_before_step(monkeypatch, step, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        calib.train_head(cache, out=str(out), **OPTIONS)
    (out / "checkpoint.safetensors.partial").write_bytes(b"cut short")
    assert (out / "checkpoint.safetensors").exists() == (step == 70)
    calib.train_head(cache, out=str(out), overwrite=overwrite, **OPTIONS)
    assert (out / "config.json").exists()


@pytest.mark.long
def test_overwriting_keeps_the_old_head_until_training_begins(cache, tmp_path):
    calib.train_head(cache, out=str(tmp_path / "head"), **OPTIONS)
    bare = toy_cache(tmp_path / "bare.zarr", images=2, fc_layers=False)
    with pytest.raises(ValueError, match="needs the detector's own layers"):
        calib.train_head(bare, out=str(tmp_path / "head"), head_type="3fc_ft", overwrite=True)
    calib.load_head(tmp_path / "head")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(cache, tmp_path, monkeypatch, value):
    features = cache.read("features")
    features[int(cache.offsets[4]) + 1] = value  # a ground-truth box of the fifth image
    monkeypatch.setattr(type(cache), "take", lambda cache, name, rows: features[rows])
    with pytest.raises(ValueError, match=r"image 128: features of RoI 1 \(row 121\), stage 0, are not finite"):
        calib.train_head(cache, out=str(tmp_path / "head"), **OPTIONS)
    assert not (tmp_path / "head" / "config.json").exists()


def test_a_diverging_run_names_the_learning_rate(cache):
    with pytest.raises(ValueError, match=r"loss is not finite between steps 0 and 50.* lower lr \(now 1e\+20\)"):
        calib.train_head(cache, **{**OPTIONS, "lr": 1e20})
