"""How busy the GPU is while training. Imports torch: import this module where it is used."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


class UtilizationMeter:
    """The share of time in which the GPU computed anything, in percent, as NVML gives it.

    One sample a batch, each over the last fraction of a second. Where the driver does not tell,
    such as in some containers and on MIG devices, nothing is measured.
    """

    def __init__(self) -> None:
        """Start with no samples."""
        self._samples: list[int] = []
        self._is_available = True

    def sample(self) -> None:
        """Ask the driver once."""
        if not self._is_available:
            return
        from pynvml import NVMLError

        try:
            self._samples.append(torch.cuda.utilization())
        except (NVMLError, RuntimeError, ModuleNotFoundError) as error:
            self._is_available = False
            logger.info("GPU utilization is not measured: %s", error)

    def read(self) -> dict[str, float]:
        """Return the mean since the last reading; empty where there is none."""
        if not self._samples:
            return {}
        mean = sum(self._samples) / len(self._samples)
        self._samples.clear()
        return {"gpu_utilization_percent": round(mean, 1)}
