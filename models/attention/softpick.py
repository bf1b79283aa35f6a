"""`softpick`: rectified softmax."""

from torch import Tensor

import kernels
from kernels.parts import Parts
from models.attention.base import BEYOND_SOFTMAX, Mechanism


class Softpick(Mechanism):
    """Rectified softmax: a key with a negative score gets exactly no weight, and a row need not sum to one.

    Paper: 2504.20966
    Formula: y_i = Σ_j relu(exp(S_ij) − 1) v_j / Σ_j |exp(S_ij) − 1|
    Parameters: none

    A row whose scores are all negative is dead: no output, no gradient.
    """

    start = "not softmax: about half of a row's keys have a weight, and its weights sum to about a half"
    backends = BEYOND_SOFTMAX

    def parts(self, q_BHTD: Tensor, k_BGTD: Tensor, hidden_BTC: Tensor) -> Parts:
        """The score."""
        return Parts(kernels.Softpick())
