"""`python -m fuse select` on a tiny dataset: what is tried, chosen, recorded and compared."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import calib
from calib.config import HEAD_TYPES, LOSS_NAMES
from calib.posthoc import METHODS, build_method
from extract.cache.opening import open_cache
from fuse.__main__ import main
from fuse.commands.select_config import SelectConfig
from fuse.config import FusionConfig
from fuse.selection import scorers
from fuse.selection.choice import choose
from fuse.selection.grids import POSTHOC, TRAINED, rows_of, settings_of
from tests.fuse_fixtures import annotations, tiny_cache

IMAGES = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A training file of which two images are held out, a val file, and their caches; all images are of one kind."""
    folder = tmp_path_factory.mktemp("select")
    train, val = annotations(IMAGES, seed=0), annotations(IMAGES, seed=3)
    held_out = {**train, "images": train["images"][:2]}
    for name, content in (("train", train), ("val", val)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    tiny_cache(folder / "train.zarr", train, split="train")
    tiny_cache(folder / "holdout.zarr", held_out)
    tiny_cache(folder / "val.zarr", val)
    return folder


def arguments(files, out, **changes) -> list[str]:
    """The command line."""
    options = {
        "cache": files / "val.zarr",
        "train": files / "train.zarr",
        "holdout": files / "holdout.zarr",
        "annotations": files / "val.json",
        "train-annotations": files / "train.json",
        "out": out,
        "steps": 3,
    }
    return ["select", *(str(part) for name, value in (options | changes).items() for part in (f"--{name}", value))]


@pytest.mark.long
def test_select_tries_chooses_records_and_compares(files, tmp_path, capsys):
    out = tmp_path / "out"
    command = [*arguments(files, out), "--methods", "norcal", "logn", "crt", "--bins", "10", "100"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    record = json.loads((out / "selection.json").read_text())
    assert record["held_out"] == {"images": 2, "fingerprint": open_cache(str(files / "holdout.zarr")).fingerprint}
    modes = ["calibrated", "avg", "cat@10", "cat@100"]
    of_heads = [f"{mode}@{tail}" for mode in ("det", "cat-thr", "cat-scale") for tail in (10, 100)]
    tried = [f"norcal {label} {mode}" for label in ("gamma=0.2", "gamma=1.2") for mode in modes]
    assert {*tried, *(f"crt steps=3 {mode}" for mode in [*modes, *of_heads])} <= set(record["tried"])
    assert len(record["tried"]) == 14 * 4 + 4 + 10
    for method, one in record["chosen"].items():
        own = {name: row["AP"] for name, row in record["tried"].items() if name.split()[0] == method}
        assert own[one["row"]] == one["AP"] == max(own.values())
    best = max(record["chosen"], key=lambda method: record["chosen"][method]["AP"])
    assert record["winner"] == best and record["chosen"][best]["row"] in printed.splitlines()[-2]
    table = pd.read_csv(out / "metrics.csv", index_col=["iou_type", "row"]).loc["segm"]
    assert set(table.index) == {"original", "learned", *(one["row"] for one in record["chosen"].values())}
    assert list(record["learned"]) == ["original", "crt steps=3", "objectness", "constant"]
    held_out, final = (calib.load_head(out / name / "crt-steps-3") for name in ("trial_heads", "heads"))
    train = open_cache(str(files / "train.zarr"))
    assert final.info.cache_fingerprint == train.fingerprint != held_out.info.cache_fingerprint
    learned = next(line for line in printed.splitlines() if "learned" in line and line.startswith("python -m fuse"))
    detect = [str(tmp_path / "again") if part == "runs/chosen" else part for part in learned.split()[3:]]
    assert main([*detect, "--bins", "10", "100", "--bootstrap", "0"]) == 0
    again = pd.read_csv(tmp_path / "again" / "metrics.csv", index_col=["iou_type", "row"])
    assert again.loc[("segm", "calibrated"), "AP"] == table.loc["learned", "AP"]
    capsys.readouterr()
    assert main(command) == 0  # the same again takes the heads that are there
    assert capsys.readouterr().out == printed
    assert main([*command, "--engine", "hotcoco"]) == 1
    assert "was made with other options: engine" in capsys.readouterr().err


@pytest.mark.long
def test_overwrite_keeps_the_old_results_until_the_new_ones_are_whole(files, tmp_path, monkeypatch):
    out, trained = tmp_path / "out", []
    command = [*arguments(files, out), "--methods", "norcal", "crt", "--bootstrap", "0"]
    assert main([*command, "--seed", "1"]) == 0
    old, train = contents(out), scorers.train

    def counted(cache, config):
        trained.append(config.out)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(cache, config)

    monkeypatch.setattr(scorers, "train", counted)
    assert main([*command, "--overwrite"]) == 130
    assert contents(out) == old and len(trained) == 2
    monkeypatch.setattr(scorers, "train", train)
    head = tmp_path / "out.partial" / "trial_heads" / "crt-steps-3" / "head.safetensors"
    written = head.stat().st_mtime_ns
    (tmp_path / "out.partial" / f"selection.json.{'a' * 32}.partial").write_text("left by a kill")
    assert main([*command, "--overwrite"]) == 0
    new = out / "trial_heads" / "crt-steps-3" / "head.safetensors"
    assert new.stat().st_mtime_ns == written, "resumes with the head that was trained"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert main([*arguments(files, tmp_path / "fresh"), *command[len(arguments(files, out)) :]]) == 0
    assert contents(out) == contents(tmp_path / "fresh") != old


def contents(folder) -> dict[str, bytes]:
    """The content of a folder's files by name, without what holds times."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "metrics.jsonl" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "tensorboard" not in path.parts}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "holdout.zarr"}, "holdout.zarr: is a val cache, expected one extracted with --split train"),
        ({"holdout": "train.zarr"}, "train.zarr: is a train cache, whose ground-truth boxes would compete"),
        ({"train-annotations": "val.json", "holdout": "other.zarr"}, "other.zarr: in other.zarr"),
        ({"methods": "best"}, "methods has 'best', expected some of norcal, "),
        ({"steps": 0}, "steps is (0,), expected numbers of at least 1"),
    ],
)
def test_bad_input_gets_one_line(changes, message, files, tmp_path, capsys):
    if "holdout" in changes and not (files / str(changes["holdout"])).exists():
        tiny_cache(files / "other.zarr", annotations(2), detector="another")
    zarrs = {name: files / value if str(value).endswith(("zarr", "json")) else value for name, value in changes.items()}
    code = main(arguments(files, tmp_path / "out", **zarrs))
    error = capsys.readouterr().err
    if "other.zarr" in message:
        assert code == 1 and "detector" in error and len(error.strip().splitlines()) == 1
    else:
        assert code in (1, 2) and message in error.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_the_grids_name_every_method_and_every_loss():
    assert set(POSTHOC) == set(METHODS)
    options = list(TRAINED.values())
    assert {one.get("loss", "cross-entropy") for one in options} == set(LOSS_NAMES)
    assert {one["head_type"] for one in options} == set(HEAD_TYPES) - {"2fc_rand", "3fc_rand"}
    for setting in settings_of([*POSTHOC, *TRAINED], (5,)):
        if setting.is_trained:
            calib.Config(cache="", out="", **setting.options)
        else:
            build_method(setting.method, **setting.options)
    names = [
        row.name for s in settings_of([*POSTHOC, *TRAINED], (5, 9)) for row in rows_of(s, FusionConfig(), (10, 100), "")
    ]
    assert len(names) == len(set(names)) >= 60


def test_of_equal_rows_the_first_is_chosen():
    rows = [
        row
        for setting in settings_of(["logn", "tau-norm"], ())
        for row in rows_of(setting, FusionConfig(), (10,), "softmax")
    ]
    ap = pd.DataFrame({"AP": [1.0] * len(rows)}, index=[row.name for row in rows])
    ap.loc["tau-norm tau=0.5 avg", "AP"] = 1.5
    chosen = choose(rows, ap)
    assert chosen.winner == "tau-norm" and chosen.chosen["tau-norm"].name == "tau-norm tau=0.5 avg"
    assert chosen.chosen["logn"].name == "logn calibrated"
    with pytest.raises(ValueError, match="no class has ground truth in the held-out images"):
        choose(rows, ap * float("nan"))


def test_options_have_no_default_that_another_place_states():
    config = SelectConfig(cache="", train="", holdout="", annotations="", train_annotations="", out="")
    assert config.bins == (10, 100, 1000) and config.methods == ()
