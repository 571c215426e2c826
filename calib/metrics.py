"""Metrics of a training run: averages over a few steps, written as JSON lines and to TensorBoard if installed."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec
import torch

from extract.utils.distributed import all_reduce_sum, world_size
from extract.utils.files import write_bytes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Record(NamedTuple):
    """Averages over the steps since the last record, over all processes.

    Attributes:
        step: number of steps done.
        lr: learning rate of the next step.
        loss: mean loss over steps and stages.
        fg_accuracy: accuracy on foreground RoIs.
        bg_accuracy: accuracy on background RoIs.
        rois_per_s: RoIs trained on per second.
    """

    step: int
    lr: float
    loss: float
    fg_accuracy: float
    bg_accuracy: float
    rois_per_s: float

    def summary(self) -> str:
        """Returns one line for the progress bar."""
        return (
            f"loss {self.loss:.3f}, fg {self.fg_accuracy:.1%}, bg {self.bg_accuracy:.1%}, {self.rois_per_s:,.0f} RoIs/s"
        )


class Tally:
    """Sums of losses and of correct RoIs, on the device, so that no step waits for a copy to the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._losses = 0
        self._since = time.perf_counter()

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds one stage of one step: its mean loss, logits (n, K+1) and labels (n,).

        Under torchrun each process adds its own RoIs, and a loss whose mean over processes is that of the step.
        """
        foreground = labels < logits.shape[1] - 1
        correct = logits.argmax(1) == labels
        parts = (loss, foreground.sum(), (foreground & correct).sum(), (~foreground).sum(), correct.sum())
        self._sums += torch.stack([part.detach().to(torch.float64) for part in parts])
        self._losses += 1

    def take(self, step: int, lr: float) -> Record:
        """Returns the record of what was added since the last call, and resets the sums. All processes call it."""
        loss, foreground, correct_foreground, background, correct = all_reduce_sum(self._sums).tolist()
        now = time.perf_counter()
        record = Record(
            step=step,
            lr=lr,
            loss=loss / max(self._losses, 1) / world_size(),
            fg_accuracy=correct_foreground / max(foreground, 1),
            bg_accuracy=(correct - correct_foreground) / max(background, 1),
            rois_per_s=(foreground + background) / (now - self._since),
        )
        self._sums.zero_()
        self._losses, self._since = 0, now
        return record


class MetricsLog:
    """The log of a run: `metrics.jsonl` and TensorBoard. With an empty folder name it writes nothing."""

    def __init__(self, out: str, step: int) -> None:
        """Removes records after `step`, which a resumed run repeats."""
        self._held_out: dict[str, float] = {}
        self._file: BinaryIO | None = None
        self._board: SummaryWriter | None = None
        if not out:
            return
        path = Path(out) / METRICS_FILE
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        write_bytes(path, b"".join(line for line in lines if _step_of(line) <= step))
        self._file = path.open("ab", buffering=0)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("TensorBoard is not installed (extra 'report'): metrics go to %s only", path)
        else:
            self._board = SummaryWriter(str(Path(out) / TENSORBOARD_FOLDER), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Appends one record."""
        values = record._asdict()
        if self._file is not None:
            self._file.write(msgspec.json.encode(values) + b"\n")
        if self._board is not None:
            step = values.pop("step")
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def write_held_out(self, step: int, figures: dict[str, float]) -> None:
        """Appends the figures of `calib.held_out` after `step` steps."""
        self._held_out = figures
        if self._file is not None:
            self._file.write(msgspec.json.encode({"step": step, "held_out": figures}) + b"\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"held_out/{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}", value, step)

    def held_out_summary(self) -> str:
        """Returns what the progress bar shows of the last figures of held-out images; "" if there are none."""
        return f", AP of held-out RoIs {self._held_out['AP']:.1f}" if self._held_out else ""

    def write_choice(self, choice: dict[str, Any]) -> None:
        """Appends the choice of the head type, as of step 0, to the file."""
        if self._file is not None:
            self._file.write(msgspec.json.encode({"step": 0, "choice": choice}) + b"\n")

    def close(self) -> None:
        """Closes the file and the TensorBoard writer."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def is_metrics_file(path: Path) -> bool:
    """Returns whether the file was written by a `MetricsLog`; it may be empty."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return not content or b'"fg_accuracy"' in content


def _step_of(line: bytes) -> float:
    """Returns the step of a record; infinity for an incomplete line."""
    try:
        return msgspec.json.decode(line, type=dict)["step"]
    except (msgspec.MsgspecError, KeyError, RecursionError):
        return float("inf")
