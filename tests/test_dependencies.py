"""setup.cfg names every package that the library imports, and constraints.txt a version of each that it allows."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = {"extract", "calib", "fuse"}
DISTRIBUTIONS = {"PIL": "pillow", "markupsafe": "jinja2"}
"""Of modules that are named otherwise, or part of another one's interface."""
ELSEWHERE = {"detectron2", "mmcv"}
"""Not on PyPI, or in CI without compiled operators."""


def requirements() -> dict[str, Requirement]:
    """All of install_requires and of the extras, by name."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    named = [line for text in lines for line in text.splitlines() if line and not line.startswith("#")]
    all_of_them = [Requirement(line) for line in named if not line.startswith("tailcal[")]
    return {canonicalize_name(one.name): one for one in all_of_them}


def imported() -> set[str]:
    """Top-level modules of others that the library imports, anywhere in a file."""
    names: set[str] = set()
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    for node in chain.from_iterable(ast.walk(ast.parse(file.read_text())) for file in files):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - PACKAGES


@pytest.mark.long
def test_what_is_imported_is_required():
    needed = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported() - ELSEWHERE}
    assert needed - requirements().keys() == set()


def test_constraints_are_versions_that_are_allowed():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, version in pinned}
    required = requirements()
    assert required.keys() - versions.keys() - ELSEWHERE == set()
    assert {name for name in required.keys() & versions if versions[name] not in required[name].specifier} == set()


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_public_name_is_a_modules(package):
    """The first import of the module would hide the name, before version 0.6 of lazy-loader."""
    stub = (ROOT / package / "__init__.pyi").read_text()
    imports = re.findall(r"from \.(\w+)[\w.]* import (\w+)", stub)
    assert imports and [name for module, name in imports if name == module] == []
