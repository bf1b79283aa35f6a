"""From what the user typed to a decoder."""

from pathlib import Path

import torch

from errors import InputError
from outliers.access.decoder import Decoder
from outliers.access.hugging_face import open_hugging_face
from outliers.access.ours import open_ours

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def open_decoder(model: str, dtype: str = "float32") -> Decoder:
    """Open MODEL on the CPU: a run directory, a checkpoint, weights-*.safetensors, hf:NAME or hf:/folder.

    dtype: of the weights and of all that is computed, a key of `DTYPES`. InputError: one line on why it cannot be.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if model.startswith("hf:"):
        if not model.removeprefix("hf:"):
            raise InputError("hf: needs a name or a folder, such as hf:gpt2 or hf:/models/gpt2")
        return open_hugging_face(model.removeprefix("hf:"), DTYPES[dtype])
    return open_ours(Path(model).expanduser(), model, DTYPES[dtype])
