"""The layers around attention: norms, the MLP, rotary positions.

Shapes: B batch, T tokens, H heads, D head size, C width, M MLP width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import GPTConfig
from models.initial import Constant, Initial, Linear, Normal

EPSILON = 1e-5  # GPT-2's and LLaMA-2's


class LayerNorm(nn.Module):
    """(x − mean) / sqrt(variance + 1e-5) · weight (+ bias), over the last dimension."""

    def __init__(self, width: int, *, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.initial: dict[str, Initial] = {"weight": Constant(1.0)}
        if bias:
            self.initial["bias"] = Constant(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPSILON)


class RMSNorm(nn.Module):
    """x / sqrt(mean x² + 1e-5) · weight, over the last dimension (1910.07467).

    single: one gain for all channels, from 1, so that no channel can be amplified over another (2506.19697, "single-
    scale RMSNorm"; the form and the initial value are those of its authors' example code, whose ε is 1e-6).
    """

    def __init__(self, width: int, *, single: bool = False):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(1 if single else width))
        self.initial: dict[str, Initial] = {"weight": Constant(1.0)}

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width), in the input's dtype; the mean of squares is taken in at least float32."""
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, (self.width,), self.weight.expand(self.width), EPSILON).to(x.dtype)


def norm(config: GPTConfig) -> LayerNorm | RMSNorm:
    """The configured norm over the residual stream's width."""
    if config.norm == "layernorm":
        return LayerNorm(config.width, bias=config.bias)
    return RMSNorm(config.width, single=config.norm == "rmsnorm_single")


def dropout(probability: float) -> nn.Module:
    """Dropout, or nothing at all at probability 0: PyTorch's own still makes a mask."""
    return nn.Dropout(probability) if probability else nn.Identity()


class MLP(nn.Module):
    """GELU in GPT-2's tanh form: down(gelu(up x)). SwiGLU (2002.05202): down(silu(gate x) ⊙ up x).

    SwiGLU's two input projections are one matrix, rows [up; gate].
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.width = config.hidden
        wide = 2 * self.width if self.gated else self.width
        self.up = Linear(config.width, wide, bias=config.bias, weight=Normal(config.init_std))
        self.down = Linear(self.width, config.width, bias=config.bias, weight=residual_initial(config))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.gated:
            up_BTM, gate_BTM = self.up(x_BTC).split(self.width, dim=-1)
            return self.down(F.silu(gate_BTM) * up_BTM)
        return self.down(F.gelu(self.up(x_BTC), approximate="tanh"))


def residual_initial(config: GPTConfig) -> Normal:
    """GPT-2: projections onto the residual stream shrink by 1/sqrt(2 · layers), as that many of them are summed."""
    return Normal(config.init_std * (2 * config.layers) ** -0.5)


def rotary_table(positions_T: Tensor, head_dim: int, base: float) -> Tensor:
    """Cosines and sines (2, T, 1, D/2) in float32 of position · base^(−2i/D) (RoFormer, 2104.09864, section 3.2.2)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions_T.device) / head_dim)
    angles = torch.outer(positions_T.double(), frequencies)
    return torch.stack((angles.cos(), angles.sin())).unsqueeze(2).float()


def rotate(x_BTHD: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + D/2) of every head by the angles in the table (2, T, 1, D/2); x's dtype."""
    cosine, sine = table
    left, right = x_BTHD.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1).to(x_BTHD.dtype)
