"""`elastic_softmax`: softmax less a learned share of uniform attention."""

import torch
from torch import Tensor, nn

from kernels.parts import Elastic, Parts
from models.attention.base import BEYOND_SOFTMAX, AttentionShape, Mechanism
from models.initial import Constant


class ElasticSoftmax(Mechanism):
    """Softmax shifted by a learned multiple of uniform attention and cut at 0: what lies below gets no weight.

    Paper: 2601.00919, "Elastic-Softmax"
    Formula: y_i = Σ_j relu(p_ij + τ_h / n_i) v_j, p_ij = exp(S_ij − L_i), n_i the number of keys that row i sees
    Parameters: τ (H): −1, where uniform attention is the threshold

    −1 is second-hand: a public reimplementation states it as the paper's; the paper's text has not been checked. The
    first query, whose one key has p = 1, starts dead. Only the normalisation: the paper's learned position biases are
    not part of it.
    """

    start = "not softmax: what exceeds uniform attention, so nearly 0"
    backends = BEYOND_SOFTMAX

    def __init__(self, shape: AttentionShape):
        super().__init__(shape)
        self.offset = nn.Parameter(torch.empty(shape.heads))
        self.initial = {"offset": Constant(-1.0)}

    def parts(self, q_BHTD: Tensor, k_BGTD: Tensor, hidden_BTC: Tensor) -> Parts:
        """The score and its offset."""
        return Parts(Elastic(self.offset))
