"""`sigmoid`: each key is weighed by itself; no row sums to one."""

import math

from torch import Tensor

import kernels
from kernels.parts import Parts
from models.attention.base import BEYOND_SOFTMAX, Mechanism


class Sigmoid(Mechanism):
    """Sigmoid attention: no normalisation, so no mass that must go somewhere.

    Paper: 2409.04431, section 2; variant (f) of 2502.06415, table 2
    Formula: y_i = Σ_j σ(S_ij − ln n) v_j, n the training context whatever the sequence's length
    Parameters: none
    """

    start = "not softmax: row i sums to about (visible keys) / (n + 1)"
    backends = BEYOND_SOFTMAX

    def parts(self, q_BHTD: Tensor, k_BGTD: Tensor, hidden_BTC: Tensor) -> Parts:
        """The score and its bias; n is fixed so that a short prompt sees the same function."""
        return Parts(score=kernels.Sigmoid(bias=-math.log(self.shape.context)))
