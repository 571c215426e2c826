"""README.md and docs: links, commands and Python code are valid."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest
import tyro

import calib.__main__
import extract.__main__
import fuse.__main__
from extract.data.annotations import read_annotations

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "extract": extract.__main__.COMMANDS,
    "calib.train": {"": calib.__main__.TRAIN},
    "fuse": fuse.__main__.COMMANDS,
}
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.S)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pages
def test_links(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pages
def test_paths(page):
    """Paths from the root, in backticks; NAME stands for a name to choose."""
    named = re.findall(r"`((?:extract|calib|fuse|benchmarks|tests|docs|examples)/[\w/.]*)`", page.read_text())
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_commands(page):
    for program, arguments in commands(page.read_text()):
        table = COMMANDS[program]
        name = arguments.pop(0) if arguments and arguments[0] in table else ""
        kind = resolve_name(table[name].config)
        assert isinstance(tyro.cli(kind, args=arguments), kind)


def test_every_command_is_there():
    for table in COMMANDS.values():
        for command in table.values():
            assert is_dataclass(resolve_name(command.config)) and callable(resolve_name(command.function))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Programs and arguments of the complete commands in indented blocks; those with an ellipsis are left out."""
    indented = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    lines = indented.replace("\\\n", " ").splitlines()
    found = [re.search(r"-m (extract|calib\.train|fuse)\b(.*)", line) for line in lines if not set(line) & set("→…")]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def test_commands_are_found():
    found = [program for page in PAGES for program, _ in commands(page.read_text())]
    assert found.count("extract") >= 8 and found.count("calib.train") >= 2 and found.count("fuse") >= 8


@pages
def test_make_targets(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), flags=re.M)) <= targets


@pytest.fixture
def files(tiny, tmp_path, monkeypatch) -> None:
    """Caches, annotations and a photo of the tiny dataset in the working directory, under the names on the pages."""
    for split in ("train", "val"):
        extract.run(tiny.config(split, tmp_path / f"{split}.zarr"))
    shutil.copy(tiny.data / "val.json", tmp_path)
    shutil.copy(next((tiny.data / "val").glob("*.png")), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)


def test_python_of_the_readme(files):
    (block,) = PYTHON.findall((ROOT / "README.md").read_text())
    exec(block.replace("steps=2000", "steps=2"), {})
    assert Path("detections.json").is_file()


def test_python_of_the_guide(files, tiny, tmp_path, monkeypatch):
    detector = extract.load_detector(tiny.config("val", tmp_path))
    monkeypatch.setattr(extract, "load_detector", lambda spec: detector)
    namespace: dict[str, object] = {}
    for block in PYTHON.findall((ROOT / "docs" / "guide.md").read_text()):
        exec(block.replace("steps=2000", "steps=2"), namespace)
    assert Path("stock.pth").is_file() and "boxes" in namespace["outputs"]
    editable = read_annotations(Path("editable.json"))
    assert sorted(editable.boxes[:, 0]) == pytest.approx(sorted(namespace["detections"].boxes[:, 0]), abs=1e-3)
