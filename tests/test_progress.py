"""Progress where there is no terminal: whole lines, none of them for short work."""

from __future__ import annotations

import io
import time

import pytest

from extract.utils.progress import progress_bar, say_reading


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which passes when the test says so."""
    now = [100.0]
    monkeypatch.setattr("extract.utils.progress_lines.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_line_every_so_often_with_an_estimate(clock, capsys):
    with progress_bar(total=200, desc="detect", unit="image") as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.update()
        bar.set_postfix_str("loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "detect: 4 of 200 images in 00:02, about 01:38 left"
    assert lines[1] == "detect: 64 of 200 images in 00:32, about 01:08 left"
    assert lines[2].startswith("detect: 100 of 200 images in 00:50, about 00:50 left") and len(lines) == 3


def test_short_work_is_silent(clock, capsys):
    assert list(progress_bar(range(5), desc="merge", unit="image")) == [0, 1, 2, 3, 4]
    bar = progress_bar(total=3, desc="x", unit="image", shown=False)
    clock[0] += 99
    bar.update(3)
    bar.close()
    assert capsys.readouterr().err.splitlines() == []


def test_a_resumed_run_estimates_from_its_own_images(clock, capsys):
    with progress_bar(total=100, initial=50, desc="extract", unit="image") as bar:
        clock[0] += 10
        bar.update(10)
    assert capsys.readouterr().err.splitlines() == ["extract: 60 of 100 images in 00:10, about 00:40 left"]


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", terminal)
    list(progress_bar(range(3), desc="detect", unit="image"))
    assert "100%" in terminal.getvalue() and "\r" in terminal.getvalue()


def test_one_long_item_has_lines_as_well(monkeypatch, capsys):
    monkeypatch.setattr("extract.utils.progress.FIRST_LINE", 0.05)
    with progress_bar(total=2, desc="evaluate", unit="row") as bar:
        for _ in range(100):
            if "evaluate: 0 of 2 rows in " in (text := capsys.readouterr().err):
                break
            time.sleep(0.05)
        bar.update(2)
    assert "0 of 2 rows" in text and capsys.readouterr().err.splitlines()[-1].startswith("evaluate: 2 of 2 rows in ")


def test_nothing_is_printed_after_the_end(monkeypatch, capsys):
    monkeypatch.setattr("extract.utils.progress.FIRST_LINE", 0.05)
    progress_bar(total=2, desc="evaluate", unit="row").close()
    capsys.readouterr()  # on a busy machine a line may have been due before
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_large_files_say_how_long_they_take(tmp_path, caplog):
    file = tmp_path / "train.json"
    file.write_bytes(b"{}")
    caplog.set_level("INFO")
    say_reading(file)
    assert caplog.messages == []
    with file.open("wb") as large:
        large.truncate(1_200_000_000)
    say_reading(file)
    assert caplog.messages == [f"reading {file}: 1.2 GB, about 10 s"]
