"""`softmax`: the baseline."""

from typing import Annotated

from torch import Tensor

import kernels
from kernels.parts import Parts
from models.attention.base import BEYOND_SOFTMAX, Above, AttentionShape, Mechanism


class Softmax(Mechanism):
    """Plain causal softmax attention.

    Paper: 1706.03762, section 3.2.1; variant (a) of 2502.06415; soft-cap: 2408.00118, section 2
    Formula: y_i = o_i = Σ_j P_ij v_j, P_ij = exp(S_ij − L_i)
    Parameters: none

    `softcap: c` puts c tanh(S_ij / c) in the place of S_ij; Gemma 2 has c = 50.
    """

    start = "softmax exactly; near it with a soft-cap"

    def __init__(self, shape: AttentionShape, *, softcap: Annotated[float, Above(0)] | None = None):
        super().__init__(shape)
        self.score = kernels.Softmax(softcap)
        if softcap is not None:
            self.backends = BEYOND_SOFTMAX

    def parts(self, q_BHTD: Tensor, k_BGTD: Tensor, hidden_BTC: Tensor) -> Parts:
        """Nothing added."""
        return Parts(self.score)
