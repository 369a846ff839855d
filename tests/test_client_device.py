"""Which device trains, where there is no CUDA device and where some are pretended; test_gpu.py has real ones."""

import pytest
import torch

from client.device import DeviceError, choose_device, has_bfloat16, prepare_torch
from client.site_file import Compute
from client.training import Machine


def pretend(monkeypatch: pytest.MonkeyPatch, num_devices: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)


def test_auto_is_the_processor_where_there_is_no_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    assert choose_device(Compute()) == torch.device("cpu")


@pytest.mark.parametrize("named", ["cuda", "cuda:0", "cuda:3"])
def test_a_named_cuda_device_is_missed_and_not_silently_replaced(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    pretend(monkeypatch, 0)
    with pytest.raises(DeviceError, match=rf"compute\.device = {named}: torch sees no CUDA device; .*cpu"):
        choose_device(Compute(device=named))


@pytest.mark.parametrize(
    ("num_devices", "words"),
    [(1, "torch sees 1 CUDA device, numbered from 0;"), (2, "torch sees 2 CUDA devices, numbered from 0;")],
)
def test_a_number_that_is_too_high_is_told_with_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, num_devices: int, words: str
) -> None:
    pretend(monkeypatch, num_devices)
    assert choose_device(Compute(device=f"cuda:{num_devices - 1}")).index == num_devices - 1
    with pytest.raises(DeviceError, match=words):
        choose_device(Compute(device=f"cuda:{num_devices}"))


def test_mixed_precision_is_left_out_on_the_processor() -> None:
    assert not has_bfloat16(torch.device("cpu"))
    assert Machine.of(Compute(device="cpu", mixed_precision=True)).mixed_precision is False


def test_no_tf32_is_left_after_preparing_torch_whatever_was_set_before() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    prepare_torch(Compute())
    assert torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is False
