"""Peaks by the device names that the driver reports."""

from __future__ import annotations

import pytest

from pipeline.common.gpu_peaks import PEAKS, peak_tflops


@pytest.mark.parametrize(
    ("device", "bf16"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_names_of_devices(device: str, bf16: float) -> None:
    assert peak_tflops(device, "bf16", tf32=False) == bf16


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA A10G",
        "NVIDIA H800",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_others_have_no_known_peak(device: str) -> None:
    assert peak_tflops(device, "bf16", tf32=True) is None


def test_precisions() -> None:
    a100, v100 = "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-16GB"
    assert [peak_tflops(a100, "fp32", tf32) for tf32 in (False, True)] == [19.5, 156]
    assert [peak_tflops(v100, "fp32", tf32) for tf32 in (False, True)] == [15.7, 15.7]
    assert peak_tflops(v100, "fp16", tf32=True) == 125
    assert peak_tflops(v100, "bf16", tf32=True) is None
    assert peak_tflops("Tesla T4", "fp16", tf32=False) == 65


def test_no_peak_is_one_with_sparsity() -> None:
    """Tensor cores run TF32 at half the rate of half precision at most."""
    assert all(peak.tf32 is None or 1.9 < peak.fp16 / peak.tf32 < 2.1 for peak in PEAKS.values())
    assert all(peak.bf16 in (None, peak.fp16) for peak in PEAKS.values())
