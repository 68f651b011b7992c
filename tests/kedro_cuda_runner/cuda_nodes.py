"""Node functions that use a real CUDA device, which a node's process imports from here."""

from __future__ import annotations

import ctypes
import os
import signal
import time


def take(gb, seconds=0.5):
    """Hold GPU memory on every device for a while, keep it busy, and return when and where."""
    import torch

    started = time.time()
    devices = range(torch.cuda.device_count())
    held = [torch.ones(int(gb * 1e9), dtype=torch.uint8, device=f"cuda:{i}") for i in devices]
    matrix = torch.ones(2048, 2048, device="cuda:0")
    while time.time() < started + seconds:
        matrix = (matrix @ matrix).clamp(-1, 1)
        torch.cuda.synchronize()
    uuids = [str(torch.cuda.get_device_properties(i).uuid) for i in devices]
    return {"from": started, "to": time.time(), "uuids": uuids, "bytes": sum(map(len, held))}


def take_all(_):
    """Allocate until memory runs out."""
    import torch

    held = []
    while True:
        held.append(torch.ones(2**30, dtype=torch.uint8, device="cuda"))


def take_and_be_killed(gb):
    take(gb, 0.1)
    os.kill(os.getpid(), signal.SIGKILL)


def take_and_crash(gb):
    take(gb, 0.1)
    ctypes.string_at(0)


def sum_over_ranks(value):
    """Add up the ranks' numbers on the devices, through NCCL."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    mine = torch.tensor([accelerator.process_index + value], device=accelerator.device)
    total = accelerator.reduce(mine, reduction="sum").item()
    result = {"total": total, "ranks": accelerator.num_processes}
    accelerator.end_training()
    return result


def give_a_tensor(_):
    import torch

    return torch.ones(4, device="cuda")
