"""How a run is spread over devices: the names of `trainer.strategy`, and FSDP2.

A strategy may change where numbers live, not which numbers they are: the batches, the initial values, the checkpoints
and, but for rounding, the losses are those of one device. Lightning knows strategies that do not keep this (DeepSpeed
has an optimizer and checkpoints of its own, `ddp_spawn` starts processes that do not hold our command line), so the
names are a list of what is tested.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from errors import InputError
from models.checkpoints import load
from models.config import suggestion
from training import sharded_io
from training.weights import whole, whole_state

NAMES = ("auto", "ddp", "fsdp2", "single_device")


def resolve(strategy: str | Strategy) -> str | Strategy:
    """What Lightning's Trainer takes for a value of `trainer.strategy`. InputError: one that is not in `NAMES`."""
    if strategy == "fsdp2":
        return FullySharded()
    if strategy in NAMES or type(strategy) in (DDPStrategy, SingleDeviceStrategy):
        return strategy
    given = strategy if isinstance(strategy, str) else type(strategy).__name__
    raise InputError(f"trainer.strategy is {given}{suggestion(given, NAMES)}; it is one of {', '.join(NAMES)}")


class FullySharded(ModelParallelStrategy):
    """FSDP2 (`torch.distributed.fsdp.fully_shard`) over all ranks: each holds 1/world of every parameter.

    Weights, gradients and optimizer states are DTensors, cut along their first dimension. A block is gathered when it
    computes, forward and backward; what stands outside of the blocks is gathered for the whole step. The arithmetic is
    that of `ddp`: Lightning's autocast decides about dtypes, not FSDP2's own mixed precision.

    Checkpoints are those of every other strategy: whole tensors, gathered to rank 0, or a folder of shards
    (`models.sharded`) that every strategy reads. So a run goes on under any strategy. Every rank builds the whole
    network in host memory first, which bounds its size.
    """

    sharded_checkpoints = False

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning hand us the optimizer's state, as it does elsewhere."""
        return True

    def setup_environment(self) -> None:
        """Lightning's own default is tensor parallelism within a node; here all ranks are data parallel."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, gpt: nn.Module) -> None:
        """Shard each block, then the rest. Compile blocks before: FSDP2's own calls stay outside of the graphs.

        InputError: a parameter that has no dimension to cut.
        """
        for name, parameter in gpt.named_parameters():
            if parameter.ndim == 0:
                raise InputError(f"trainer.strategy fsdp2 cannot shard {name}, a single number; give it the shape (1,)")
        mesh = self.device_mesh["data_parallel"]
        for block in gpt.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(gpt, mesh=mesh)

    # Checkpoints: whole tensors outside, shards inside.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Every rank must call it; rank 0 alone gets the tensors, or every rank its shards."""
        if self.sharded_checkpoints:
            return self.lightning_module.state_dict(keep_vars=True)
        state = whole_state(self.lightning_module)
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Keyed by the parameter's place in the groups, which does not depend on the strategy; whole on rank 0 alone,
        or every rank's shards."""
        if self.sharded_checkpoints:
            return _plain(optimizer).state_dict()
        keep = self.is_global_zero

        def gather(tensor: DTensor) -> Tensor | None:
            full = whole(tensor)
            return full.cpu() if keep else None

        state = apply_to_collection(_plain(optimizer).state_dict(), DTensor, gather)
        return state if keep else {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Rank 0 writes one file through the checkpoint IO, or every rank its part; the guarantees are the same."""
        if self.sharded_checkpoints:
            sharded_io.save(checkpoint, Path(filepath), (storage_options or {}).get("previous"))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file, and keeps its shards of it; of a sharded checkpoint it reads what it needs."""
        if Path(checkpoint_path).is_dir():
            return load(Path(checkpoint_path), empty=self._empty)
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def _empty(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """A tensor, sharded as its parameter is, to read a saved one into; None for an optimizer that is not here."""
        kind, _, key = name.partition("/")
        if kind == "state_dict":
            reference = self.lightning_module.state_dict(keep_vars=True).get(key)
        else:
            number, index, _ = key.split("/")
            if int(number) >= len(self.optimizers):
                return None
            reference = _parameters(self.optimizers[int(number)])[int(index)]
        if reference is not None and reference.shape == size:
            return torch.empty_like(reference, dtype=dtype, requires_grad=False)
        return torch.empty(size, dtype=dtype)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every parameter this rank's shard of the saved tensor."""
        here = self.lightning_module.state_dict(keep_vars=True)
        saved = {
            name: _shard_like(tensor, here[name]) if name in here else tensor
            for name, tensor in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(saved, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every state that has its parameter's shape the parameter's sharding; a count of steps stays whole."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = _parameters(optimizer)
            state = {
                index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, without Lightning's wrapper."""
    return getattr(optimizer, "_optimizer", optimizer)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    """In the order in which an optimizer's state counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _shard_like(tensor: Any, reference: Tensor) -> Any:
    """This rank's shard, cut as `reference` is, of a tensor that every rank holds whole; others as they are."""
    whole_one = isinstance(tensor, Tensor) and not isinstance(tensor, DTensor)
    if not isinstance(reference, DTensor) or not whole_one or tensor.shape != reference.shape:
        return tensor
    return distribute_tensor(
        tensor.to(reference.device), reference.device_mesh, reference.placements, src_data_rank=None
    )
