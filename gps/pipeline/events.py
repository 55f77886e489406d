"""The metrics of a run as events for TensorBoard."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Events:
    """Scalars for TensorBoard; one file for each process that writes to the run.

    Steps of earlier files from `step` on are forgotten, as with `purge_step` of torch's
    SummaryWriter. That one would load torch into a process that does not need it, and writes in a
    thread, whose errors end as tracebacks. Without tensorboard nothing is written. Raises OSError.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder
        self._writer: Any = None
        try:
            from tensorboard.compat.proto import (  # type: ignore[import-untyped]
                event_pb2,
                summary_pb2,
            )
            from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
                RecordWriter,
            )
        except ImportError:
            log.info("tensorboard is not installed: no event files")
            return
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{step}"
        self.path = folder / name
        self._writer = RecordWriter(open(self.path, "ab"))  # noqa: SIM115 (closed by `close`)
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=step, session_log=start)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Add the finite numbers of a row."""
        if self._writer is None:
            return
        values = [
            self._summary.Value(tag=_tag(k), simple_value=v)
            for k, v in row.items()
            if k != "iteration" and math.isfinite(v)
        ]
        self._add(step=step, summary=self._summary(value=values))

    def _add(self, **event: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None


def _tag(column: str) -> str:
    """`policy_cost_mean` becomes `policy/cost_mean`, so that TensorBoard groups the plots."""
    head, underscore, tail = column.partition("_")
    grouped = head in ("local", "policy", "seconds", "memory", "cost", "kl") and underscore
    return f"{head}/{tail}" if grouped else column
