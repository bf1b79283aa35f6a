"""The plan's formulas against what real networks, optimizers and collective operations hold and send."""

import math

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import plan
from models import GPT, GPTConfig

SMALL = GPTConfig(vocab_size=512, context=32, layers=3, heads=4, width=64)
RANKS = 4


class Sent(TorchDispatchMode):
    """Counts the bytes that a ring of RANKS would send for each collective operation that runs inside."""

    def __init__(self):
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "allgather_base" in name or "reduce_scatter_base" in name:
            larger = max(args[0].nbytes, args[1].nbytes)
            self.bytes += larger * (RANKS - 1) / RANKS
        return function(*args, **(kwargs or {}))


@pytest.fixture
def ranks():
    torch.distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


def step(module, parameters):
    optimizer = torch.optim.AdamW(parameters, fused=True)
    module(torch.zeros(2, SMALL.context, dtype=torch.int64)).sum().backward()
    optimizer.step()
    return optimizer


def held(optimizer) -> int:
    """Bytes of weights, gradients and moments on this rank."""
    total = 0
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state[parameter]
        for tensor in (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"]):
            total += getattr(tensor, "_local_tensor", tensor).nbytes
    return total


def test_parameters_are_those_that_the_models_are_known_by():
    counts = {name: plan.count(case.network).all for name, case in plan.CASES.items()}
    assert counts == {"124M": 124_439_808, "1B": 1_100_048_384, "7B": 6_738_415_616}


def test_states_of_one_device():
    gpt = GPT(SMALL, "softmax")
    assert held(step(gpt, gpt.parameters())) == plan.states(plan.count(SMALL), 1, "ddp")


def test_states_and_traffic_of_ddp(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        gpt = GPT(SMALL, "softmax")
        wrapped = DistributedDataParallel(gpt)
        optimizer = step(wrapped, gpt.parameters())
        sizes = wrapped._get_ddp_logging_data()["bucket_sizes"]
    finally:
        torch.distributed.destroy_process_group()
    buckets = sum(map(int, sizes.split(",")))
    parameters = plan.count(SMALL)
    assert held(optimizer) + buckets == plan.states(parameters, RANKS, "ddp")
    # A ring sends every reduced byte twice, but for the share that is a rank's own.
    assert plan.sent(parameters, RANKS, "ddp") == 2 * buckets * (RANKS - 1) / RANKS


def test_states_and_traffic_of_fsdp2(ranks):
    gpt = GPT(SMALL, "softmax")
    mesh = init_device_mesh("cpu", (RANKS,))
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(gpt, mesh=mesh)
    with Sent() as sent:
        optimizer = step(gpt, gpt.parameters())
    parameters = plan.count(SMALL)
    whole = 8 * (parameters.outside + 2 * parameters.block)
    assert held(optimizer) == plan.states(parameters, RANKS, "fsdp2") - whole
    assert math.isclose(sent.bytes, plan.sent(parameters, RANKS, "fsdp2"), rel_tol=1e-6)
