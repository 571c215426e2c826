"""What a training run reports: JSON lines, TensorBoard where it is installed, and sums over a few steps."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import torch

from extract.utils.distributed import all_reduce_sum, world_size
from extract.utils.files import write_bytes

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Tally:
    """Sums of loss and correct RoIs, kept on the device so that no step waits for the others."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._losses = 0

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes one stage of one step: its mean loss, logits (n, K+1) and labels (n,).

        Of several processes each gives its RoIs, and a loss whose mean over the processes is that of the step.
        """
        foreground = labels < logits.shape[1] - 1
        correct = logits.argmax(1) == labels
        parts = (loss, foreground.sum(), (foreground & correct).sum(), (~foreground).sum(), correct.sum())
        self._sums += torch.stack([part.detach().to(torch.float64) for part in parts])
        self._losses += 1

    def take(self) -> dict[str, float]:
        """Mean loss, accuracies of foreground and background, and the number of RoIs, of all processes together;
        starts over at zero."""
        loss, foreground, right, background, all_right = all_reduce_sum(self._sums).tolist()
        values = {
            "loss": loss / max(self._losses, 1) / world_size(),
            "fg_accuracy": right / max(foreground, 1),
            "bg_accuracy": (all_right - right) / max(background, 1),
            "rois": foreground + background,
        }
        self._sums.zero_()
        self._losses = 0
        return values


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard. An empty folder name keeps nothing."""

    def __init__(self, out: str, step: int) -> None:
        """Drops records after `step`, which a resumed run makes again."""
        self._file = self._board = None
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

    def write(self, record: dict[str, float]) -> None:
        """Stores one record; its "step" is the number of steps done."""
        if self._file is not None:
            self._file.write(msgspec.json.encode(record) + b"\n")
        if self._board is not None:
            for name in record.keys() - {"step"}:
                self._board.add_scalar(name, record[name], record["step"])

    def close(self) -> None:
        """Flushes and closes what is open."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def is_metrics_file(path: Path) -> bool:
    """Whether a file of this name was begun by a `MetricsLog`; it may still be empty."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return not content or b'"fg_accuracy"' in content


def _step_of(line: bytes) -> float:
    """The step of a record; infinite for a line that an interruption cut short."""
    try:
        return msgspec.json.decode(line, type=dict)["step"]
    except (msgspec.MsgspecError, KeyError):
        return float("inf")
