import pytest
import torch
from safetensors import safe_open

from errors import InputError
from models import GPT, GPTConfig
from models.checkpoints import load_weights
from training.weights import save_weights


def small(tied: bool, seed: int = 0) -> GPT:
    return GPT(GPTConfig(vocab_size=30, context=8, layers=1, heads=2, width=8, tie_embeddings=tied), seed=seed)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_safetensors_round_trip(tmp_path, tied):
    gpt, path = small(tied), tmp_path / "w.safetensors"
    save_weights(gpt.state_dict(), path, {"step": 3})
    with safe_open(path, framework="pt") as file:
        assert ("head.weight" in file.keys()) is not tied  # noqa: SIM118
    tensors, description = load_weights(path)
    assert description == {"step": 3}
    other = small(tied, seed=1)
    other.load_state_dict(tensors)
    tokens = torch.arange(8)[None]
    assert torch.equal(other(tokens), gpt(tokens))
    if tied:
        assert other.head.weight is other.embedding.weight


def test_damaged_weights_are_one_clear_line(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small(True).state_dict(), path, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="are damaged"):
        load_weights(path)
    with pytest.raises(InputError, match="there are no weights"):
        load_weights(tmp_path / "none.safetensors")
