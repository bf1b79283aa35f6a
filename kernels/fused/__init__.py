"""The Triton back end: the whole attention family in four kernels and their statistics in one more.

forward.py, rows.py, backward.py, columns.py hold the kernels, tiles.py what they share, configurations.py the launch
table, launch.py the launches, operators.py the torch operators,
measure.py the statistics. Under `TRITON_INTERPRET=1`, set before this module is
imported, everything runs on the CPU, slowly: for tests.
"""

from .launch import INTERPRETED
from .measure import measure
from .operators import fused

__all__ = ["INTERPRETED", "fused", "measure"]
