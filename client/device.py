"""Choosing what trains, and making it repeatable."""

import torch

from client.site_file import Compute


class DeviceError(ValueError):
    """The device named in site.toml is not there."""


def choose_device(compute: Compute) -> torch.device:
    """Return the device that ``compute.device`` names; ``auto`` is CUDA where there is one, else the processor.

    Raises:
        DeviceError: a CUDA device is named and this machine has none of that number.
    """
    if compute.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(compute.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f'compute.device = {compute.device}: {_devices_seen()}; check the driver, or set device = "cpu"'
        )
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether *device* is a CUDA device that computes in bfloat16 itself; older ones only imitate it, slowly."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def prepare_torch(compute: Compute) -> None:
    """Set threads and precision for the whole process: deterministic algorithms, no TF32."""
    if compute.num_threads:
        torch.set_num_threads(compute.num_threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _devices_seen() -> str:
    count = torch.cuda.device_count()
    if count == 0:
        return "torch sees no CUDA device"
    return f"torch sees {count} CUDA device{'s' if count > 1 else ''}, numbered from 0"
