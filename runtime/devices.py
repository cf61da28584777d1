"""What a launch depends on besides its arguments: the current device, and what torch allows."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_thread = threading.local()


def is_here(x: Tensor) -> bool:
    """Whether kernels, which start on the current device, start on that of ``x``."""
    if not x.is_cuda:
        return True
    device = x.get_device()
    try:
        known = device in _thread.devices
    except AttributeError:
        _thread.devices, known = set(), False
    if not known:
        # A thread has no CUDA context of a device until it asks the runtime for something; the driver would refuse.
        torch.cuda.mem_get_info(device)
        _thread.devices.add(device)
    return device == torch._C._cuda_getDevice()


def tf32_allowed() -> bool:
    """Whether products of float32 numbers may be less exact."""
    return torch.get_float32_matmul_precision() != "highest"
