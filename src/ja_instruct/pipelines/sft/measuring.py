"""The tokens, seconds and GPU figures of a training. Imports torch: import it where it is used."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)


class UtilizationMeter:
    """The share of time in which the GPU computes, in percent, as NVML reports it.

    Nothing is measured where the driver reports none, as in some containers and on MIG devices.
    """

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._is_available = True

    def sample(self) -> None:
        """Read the utilization over the last fraction of a second."""
        if not self._is_available:
            return
        from pynvml import NVMLError

        try:
            self._samples.append(torch.cuda.utilization())
        except (NVMLError, RuntimeError, ModuleNotFoundError) as error:
            self._is_available = False
            logger.info("GPU utilization is not measured: %s", error)

    def read(self) -> dict[str, float]:
        """Return the mean since the last reading; empty without samples."""
        if not self._samples:
            return {}
        mean = sum(self._samples) / len(self._samples)
        self._samples.clear()
        return {"gpu_utilization_percent": round(mean, 1)}


class TrainingMeter:
    """Counts tokens without padding, and the seconds between ``start`` and ``pause``."""

    def __init__(self, device: torch.device) -> None:
        self._is_on_gpu = device.type == "cuda"
        self._device = device
        self._tokens = 0
        self._seconds = 0.0
        self._started: float | None = None
        self._logged = (0, 0.0)
        # fetching a count from the GPU waits for the GPU, so it is done when a total is needed
        self._uncounted: list[torch.Tensor | int] = []
        self.utilization = UtilizationMeter() if self._is_on_gpu else None

    def start(self) -> None:
        """Let the clock run."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, as for evaluations and checkpoints."""
        if self._started is not None:
            if self._is_on_gpu:
                torch.cuda.synchronize(self._device)
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def add(self, tokens: torch.Tensor | int) -> None:
        """Count the tokens of a batch."""
        self._uncounted.append(tokens)
        if self.utilization is not None:
            self.utilization.sample()

    def totals(self) -> tuple[int, float]:
        """Return tokens and seconds so far, with the clock paused."""
        self.pause()
        self._tokens += sum(int(tokens) for tokens in self._uncounted)
        self._uncounted.clear()
        return self._tokens, self._seconds

    def entry(self) -> dict[str, float]:
        """Return the figures for a log entry; the speed is that since the entry before it."""
        tokens, seconds = self.totals()
        self.start()
        earlier_tokens, earlier_seconds = self._logged
        self._logged = (tokens, seconds)
        speed = (tokens - earlier_tokens) / max(seconds - earlier_seconds, 1e-9)
        figures = {
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(speed, 1),
        }
        if self._is_on_gpu:
            figures["gpu_memory_gb"] = torch.cuda.max_memory_reserved(self._device) / 1e9
        return figures | (self.utilization.read() if self.utilization is not None else {})

    def state(self) -> dict[str, Any]:
        """Return the arguments of ``resume``, with the clock paused."""
        tokens, seconds = self.totals()
        return {"tokens": tokens, "seconds": seconds, "logged": self._logged}

    def resume(self, tokens: int, seconds: float, logged: Sequence[float]) -> None:
        """Continue from the totals of a run that was interrupted, and those of its last entry."""
        self._tokens, self._seconds = tokens, seconds
        self._logged = (int(logged[0]), logged[1])
