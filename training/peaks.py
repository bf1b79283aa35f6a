"""Peak rates of devices, for model FLOP utilisation (MFU). A device that is not listed has none: nothing is guessed.

TFLOP/s of dense matrix products that accumulate in fp32, from NVIDIA's datasheets at the boost clock; where a sheet
gives a rate with 2:4 sparsity, half of it. A key is the whole name that the driver reports, without "NVIDIA": a part of
a card (MIG), or a card of a similar name (A10G), is another device.
"""

import torch

_A100 = {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5}  # A100 datasheet, PCIe and SXM alike
_H100_SXM = {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}  # H100 datasheet
_NVL = {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60.0}  # H100 NVL and H200 NVL datasheets
_V100_SXM = {"fp16": 125.0, "fp32": 15.7}  # V100 datasheet
_V100_PCIE = {"fp16": 112.0, "fp32": 14.0}

PEAKS: dict[str, dict[str, float]] = {
    "A100-SXM4-40GB": _A100,
    "A100-SXM4-80GB": _A100,
    "A100-PCIE-40GB": _A100,
    "A100 80GB PCIe": _A100,
    "H100 80GB HBM3": _H100_SXM,
    "H100 PCIe": {"bf16": 756.0, "fp16": 756.0, "tf32": 378.0, "fp32": 51.0},  # H100 datasheet
    "H100 NVL": _NVL,
    "H200": _H100_SXM,  # H200 datasheet: the H100's compute
    "H200 NVL": _NVL,
    "B200": {"bf16": 2250.0, "fp16": 2250.0, "tf32": 1100.0, "fp32": 75.0},  # HGX B200 datasheet
    "L4": {"bf16": 121.0, "fp16": 121.0, "tf32": 60.0, "fp32": 30.3},  # L4 datasheet
    "L40S": {"bf16": 362.05, "fp16": 362.05, "tf32": 183.0, "fp32": 91.6},  # L40S datasheet
    "A10": {"bf16": 125.0, "fp16": 125.0, "tf32": 62.5, "fp32": 31.2},  # A10 datasheet
    "GeForce RTX 4090": {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6},  # Ada white paper, appendix A
    "GeForce RTX 3090": {"bf16": 71.0, "fp16": 71.0, "tf32": 35.6, "fp32": 35.6},  # GA102 white paper, appendix A
    "Tesla V100-SXM2-16GB": _V100_SXM,
    "Tesla V100-SXM2-32GB": _V100_SXM,
    "Tesla V100-PCIE-16GB": _V100_PCIE,
    "Tesla V100-PCIE-32GB": _V100_PCIE,
    "Tesla T4": {"fp16": 65.0, "fp32": 8.1},  # T4 datasheet
}


def peak(device_name: str, precision: str) -> float | None:
    """FLOP/s of a device by its driver's name under one of Lightning's precisions; None where it is not known.

    32-true counts as tf32 where torch is allowed to use it (`torch.set_float32_matmul_precision`).
    """
    dtype = {"bf16-mixed": "bf16", "bf16-true": "bf16", "32-true": "fp32"}.get(precision)
    if dtype == "fp32" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    tera = PEAKS.get(device_name.removeprefix("NVIDIA "), {}).get(dtype or "")
    return None if tera is None else tera * 1e12


def device_peak(device: torch.device, precision: str) -> float | None:
    """The peak of the device that a run is on; None on the CPU and on a device that is not listed."""
    return peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
