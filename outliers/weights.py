"""Weight outliers as the code of 2502.06415 measures them: the largest |w| of a column over that column's mean.

Matrices are (outputs, inputs): a column belongs to one input feature, a row to one output feature.
"""

import torch
from torch import Tensor

EPSILON = 1e-8  # of the code


def ratios(weight_OI: Tensor, dim: int) -> Tensor:
    """max|w| / (mean|w| + 1e-8) along a dimension: dim 0 gives one ratio a column, dim 1 one a row. Float64."""
    a_OI = weight_OI.detach().abs()
    return a_OI.amax(dim).double() / (a_OI.mean(dim, dtype=torch.float64) + EPSILON)


@torch.no_grad()
def measure(weight_OI: Tensor) -> dict[tuple[str, str], Tensor]:
    """Scalars by (metric id, statistic): the maximum and the median (the lower of two) over columns and over rows.

    A weight that is sharded over several processes (a DTensor) is gathered first; every process must take part.
    """
    if hasattr(weight_OI, "full_tensor"):
        weight_OI = weight_OI.full_tensor()
    values = {}
    for metric, dim in (("weight_column_max_to_mean", 0), ("weight_row_max_to_mean", 1)):
        ratio = ratios(weight_OI, dim)
        values[metric, "max"] = ratio.amax()
        values[metric, "median"] = ratio.median()
    return values
