"""Peak throughput of NVIDIA GPUs: dense (without sparsity), with fp32 accumulation, from the vendor's data sheets.

Data sheets that only state values with sparsity state twice the dense ones; these are halved here.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Peak(NamedTuple):
    """Dense peaks in TFLOP/s; None if the GPU does not have this precision in hardware."""

    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


PEAKS: dict[str, Peak] = {
    # HGX B200: nvidia.com/en-us/data-center/hgx (per baseboard of 8 GPUs)
    r"B200": Peak(2250, 2250, 1125, 75),
    # NVIDIA GH200 Grace Hopper Superchip data sheet
    r"GH200.*": Peak(989.5, 989.5, 494.5, 67),
    # NVIDIA H200 Tensor Core GPU data sheet
    r"H200 NVL": Peak(835.5, 835.5, 417.5, 60),
    r"H200": Peak(989.5, 989.5, 494.5, 67),
    # NVIDIA H100 Tensor Core GPU data sheet
    r"H100 NVL": Peak(835.5, 835.5, 417.5, 60),
    r"H100 PCIe": Peak(756.5, 756.5, 378, 51),
    r"H100 80GB HBM3": Peak(989.5, 989.5, 494.5, 67),
    # NVIDIA A100 Tensor Core GPU data sheet
    r"A100[- ].*": Peak(312, 312, 156, 19.5),
    # NVIDIA A30, A40 and A10 data sheets
    r"A30": Peak(165, 165, 82, 10.3),
    r"A40": Peak(149.7, 149.7, 74.8, 37.4),
    r"A10": Peak(125, 125, 62.5, 31.2),
    # NVIDIA L40S, L40 and L4 data sheets
    r"L40S": Peak(362.05, 362.05, 183, 91.6),
    r"L40": Peak(181.05, 181.05, 90.5, 90.5),
    r"L4": Peak(121, 121, 60, 30.3),
    # NVIDIA V100 Tensor Core GPU data sheet
    r"V100S-PCIE.*": Peak(130, None, None, 16.4),
    r"V100-SXM2.*": Peak(125, None, None, 15.7),
    r"V100-PCIE.*": Peak(112, None, None, 14),
    # NVIDIA T4 data sheet
    r"T4": Peak(65, None, None, 8.1),
    # NVIDIA RTX Blackwell, Ada and Ampere GA102 GPU architecture white papers
    r"RTX 5090": Peak(209.5, 209.5, 104.8, 104.8),
    r"RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    r"RTX 3090": Peak(71, 71, 35.6, 35.6),
}
"""Pattern of the whole device name, without `NVIDIA`, `Tesla` and `GeForce` -> peaks."""


def peak_tflops(device: str, precision: str, tf32: bool) -> float | None:
    """Look up the peak of a GPU.

    Args:
        device: Its name, as in `torch.cuda.get_device_name`.
        precision: fp32, bf16 or fp16.
        tf32: Whether fp32 may be computed as TF32. It then is, on GPUs that support it.

    Returns:
        TFLOP/s; None if it is not known, such as for a part of a GPU (MIG).
    """
    name = re.sub(r"^(NVIDIA )?(Tesla |GeForce )?", "", device)
    if re.search(r"\bMIG\b", name):
        return None
    peak = next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)
    if peak is None:
        return None
    if precision == "fp32":
        return peak.tf32 if tf32 and peak.tf32 else peak.fp32
    return peak.fp16 if precision == "fp16" else peak.bf16
