"""What benchmarks.compile_kernels holds against a compiled kernel."""

from dataclasses import replace

from benchmarks.compile_kernels import Code, rows

CODE = Code(
    kernel="dkdv",
    variant="softmax",
    head_dim=128,
    dtype="bfloat16",
    architecture=90,
    tiles="32×128 w8 s2",
    registers=222,
    stack=0,
    spills=0,
    shared=98_304,
    mma="HGMMA HMMA",
    seconds=3.0,
)


def test_what_is_a_fault() -> None:
    assert CODE.faults() == []
    assert CODE.line().endswith("222 registers, 98304 bytes shared, 3 s; ok")
    assert "8 bytes of stack, 2 spilling instructions" in replace(CODE, stack=8, spills=2).line()
    assert replace(CODE, shared=232_449).faults() == ["232449 bytes of shared memory, 232448 allowed"]
    # Hopper runs Ampere's instruction too, at a fraction of the rate: allowed for large heads alone.
    assert len(replace(CODE, mma="HMMA").faults()) == 1
    assert replace(CODE, mma="HMMA", head_dim=256).faults() == []
    assert len(replace(CODE, mma="", head_dim=256).faults()) == 1
    assert replace(CODE, mma="", dtype="float32").faults() == []
    assert replace(CODE, mma="", kernel="rows").faults() == []
    assert replace(CODE, mma="UTCHMMA", architecture=100).faults() == []


def test_a_row_for_each_launch() -> None:
    other = replace(CODE, variant="softpick", registers=255, spills=2, mma="HMMA")
    (row,) = rows([CODE, other])
    assert row == [
        "dkdv",
        "bfloat16",
        "128",
        "sm_90",
        CODE.tiles,
        "2",
        "222 to 255",
        "96 of 227",
        "HGMMA HMMA, HMMA",
        "1",
    ]
