"""What the rows of the stage `speed` say of the kernels' targets: ratios within one run, 1.00 being as fast.

Each is the time of what is compared with over ours, so larger is better. Backward is the time of both less forward's.
"""

from collections.abc import Iterator, Mapping

FAMILY = ("sink_logit", "sink_key", "sink_key_value", "fixed_bias", "context_bias", "context_scaling", "gated_element")
KERNELS = ("torch SDPA flash", "torch SDPA cuDNN", "torch SDPA math")
AUTHORS = {
    "context_bias": "context_bias (dense mask)",
    "sink_key_value": "sink_key_value (dense mask)",
    "sigmoid": "sigmoid (eager)",
}
OVERHEAD = {"gated_element": 0.95}  # of the others a sink, a vector or a row gate may cost 2 %
OWN_FORWARD = {"sigmoid": 0.9, "softpick": 0.9, "clipped_softmax": 0.6}
FORWARD = {64: 1.15, 128: 1.05}  # by head size, over flash attention 2

Times = Mapping[str, tuple[float, float]]  # milliseconds of forward, and of forward with backward


def lines(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line for each target that the rows allow to judge."""
    shapes: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    for key, row in rows.items():
        name, size, length = key.rsplit("/", 2)
        if "both ms" in row:
            shape = (int(size.removeprefix("D")), int(length.removeprefix("T")))
            shapes.setdefault(shape, {})[name] = float(row["forward ms"]), float(row["both ms"])
    return [
        f"D {size}, T {length}: {what} {ratio:.2f}, target {bar}: {'met' if ratio >= bar else 'MISSED'}"
        for (size, length), times in sorted(shapes.items())
        for what, ratio, bar in _ratios(size, length, times)
    ]


def _ratios(size: int, length: int, times: Times) -> Iterator[tuple[str, float, float]]:
    ours, flash = times.get("softmax [triton]"), times.get("torch SDPA flash")
    if ours and flash and size in FORWARD:
        yield "softmax's forward over FA2's", flash[0] / ours[0], FORWARD[size]
        yield "softmax's backward over FA2's", (flash[1] - flash[0]) / (ours[1] - ours[0]), 0.9
    kernels = [times[name][1] for name in KERNELS if name in times]
    for variant in ("softmax", *FAMILY):
        if kernels and (best := _best(variant, times)):
            bar = 0.95 if variant == "softmax" or length >= 4096 else 0.85
            yield f"{variant}, best back end, over torch's fastest kernel", min(kernels) / best, bar
    for variant in FAMILY:
        if ours and (own := times.get(f"{variant} [triton]")):
            yield f"{variant} over our softmax", ours[1] / own[1], OVERHEAD.get(variant, 0.98)
    for variant, bar in OWN_FORWARD.items():
        if ours and (own := times.get(f"{variant} [triton]")):
            yield f"{variant}'s forward over our softmax's", ours[0] / own[0], bar
    for variant, name in AUTHORS.items():
        if length == 4096 and name in times and (best := _best(variant, times)):
            yield f"{variant} over the authors' way", times[name][1] / best, 5.0


def _best(variant: str, times: Times) -> float | None:
    """Forward with backward on the fastest back end."""
    return min((both for name, (_, both) in times.items() if name.startswith(f"{variant} [")), default=None)
