"""Decoders in Hugging Face's format, through `transformers`' own models.

Two layouts cover the supported architectures: GPT-2's, whose matrices are (inputs, outputs) and whose q, k, v are one,
and LLaMA's, which Mistral, Qwen2 and Qwen3 share. `transformers` is imported inside functions: it is an extra.
"""

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from kernels import Parts
from outliers.access.decoder import AttentionFunction, Decoder, Layer, Place, Sizes
from outliers.access.vocabulary import HuggingFace

WATCHED = "sinkless_watched"  # the name under which attention is registered while it is watched
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def open_hugging_face(name: str, dtype: torch.dtype) -> Decoder:
    """A model by its hub name or folder: safetensors or .bin, in one file or sharded; on the CPU, in `dtype`.

    InputError: transformers is not installed, there is no such model or the hub cannot be reached, the architecture is
    not supported, or weights are missing.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(
            "hf: models need transformers, which is not installed: pip install 'transformers>=4.50'"
        ) from None
    label = f"hf:{name}"
    local = Path(name).expanduser()
    if local.exists() or name.startswith(("/", ".", "~")):
        if not (local / "config.json").is_file():
            raise InputError(f"{label} is not a model: there is no {local / 'config.json'}")
        _check_files(label, local)
        name = str(local)
    with _quiet(transformers):
        config = _loaded(label, transformers.AutoConfig.from_pretrained, name)
        _check_architecture(label, config)
        model, report = _loaded(
            label,
            transformers.AutoModelForCausalLM.from_pretrained,
            name,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported
            attn_implementation="sdpa",
        )
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
        if missing := sorted(set(report["missing_keys"]) - tied):
            raise InputError(f"{label}: {len(missing)} weights are missing, such as {missing[0]}")
        if wrong := sorted(report["mismatched_keys"]):
            key, there, wanted = wrong[0]
            raise InputError(
                f"{label}: {len(wrong)} weights do not have the shape that config.json asks for, such as {key}: "
                f"{tuple(there)} in place of {tuple(wanted)}"
            )
        vocabulary = None
        if not local.is_dir() or any((local / file).is_file() for file in TOKENIZER_FILES):
            vocabulary = HuggingFace(
                _loaded(f"the tokenizer of {label}", transformers.AutoTokenizer.from_pretrained, name)
            )
    return decoder_of(model.to(dtype), label, vocabulary=vocabulary)


def _loaded(label: str, load: Callable[..., Any], name: str, **options: Any) -> Any:
    """Call one of transformers' loaders; what it complains about becomes one line."""
    from huggingface_hub import errors
    from safetensors import SafetensorError

    strict = getattr(errors, "StrictDataclassError", ())  # not in old versions
    try:
        return load(name, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, KeyError):  # its text is a key alone
            reason = f"a file of it is damaged (KeyError {reason})"
        raise InputError(f"{label} cannot be loaded: {reason}") from None
    except strict as error:  # a value in config.json: its name stands in the first line, the reason in the next
        raise InputError(f"{label} cannot be loaded: config.json: {' '.join(str(error).split())}") from None


def _check_files(label: str, folder: Path) -> None:
    """InputError where one of the folder's files of weights is damaged or missing: transformers does not say which."""
    for single in WEIGHTS:
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            files = {single}
        elif index.is_file():
            try:
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, LookupError, TypeError, AttributeError):
                raise InputError(f"{label}: {index.name} is damaged: it does not map weights to files") from None
        else:
            continue
        for name in sorted(files):
            if not (folder / name).is_file():
                raise InputError(f"{label}: {name} is missing, which {index.name} names")
            if fault := _fault(folder / name):
                raise InputError(f"{label}: {name} is truncated or damaged ({fault})")
        return


def _fault(file: Path) -> str | None:
    """Why a file of weights cannot be read; None where it can. Reads what says where the weights are, not them."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return None
        # Files from before torch 1.6 are no archives and cannot be mapped: they are read whole.
        torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file) or None)
    except SafetensorError as error:
        return str(error)
    except Exception as error:  # unpickling what is damaged may raise anything
        return str(error).strip().partition(". ")[0].partition("\n")[0] or type(error).__name__
    return None


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No advice, no retries told one by one and no bars on loading: what matters is raised."""
    from huggingface_hub import logging as of_hub

    logging = transformers.utils.logging
    level, hub_level, bars = logging.get_verbosity(), of_hub.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    of_hub.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        of_hub.set_verbosity(hub_level)
        if bars:
            logging.enable_progress_bar()


def _check_architecture(label: str, config: Any) -> None:
    supported = f"supported are {', '.join(LAYOUTS)}"
    if config.model_type not in LAYOUTS:
        kind = (getattr(config, "architectures", None) or ["no architecture named"])[0]
        raise InputError(f"{label} is a {config.model_type} ({kind}), which is not supported; {supported}")
    if getattr(config, "add_cross_attention", False):
        raise InputError(f"{label} has cross-attention, a part of an encoder-decoder; {supported}, decoders alone")


def decoder_of(model: Any, name: str, vocabulary: HuggingFace | None = None) -> Decoder:
    """The view of a causal language model of `transformers`. InputError: its architecture is not supported."""
    config = model.config
    _check_architecture(name, config)
    trunk, blocks, norm, layer, gated = LAYOUTS[config.model_type]
    base = getattr(model, trunk)
    heads = config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    sizes = Sizes(
        layers=config.num_hidden_layers,
        heads=heads,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        width=config.hidden_size,
        mlp_width=getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * config.hidden_size,
        context=min(config.max_position_embeddings, window or config.max_position_embeddings),
        vocab_size=model.get_input_embeddings().weight.shape[0],
        gated=gated,
    )
    head, final = model.get_output_embeddings(), getattr(base, norm)
    return Decoder(
        name,
        model,
        sizes,
        [layer(block, sizes) for block in getattr(base, blocks)],
        {"norm_final": Place(final, "after"), "logits": Place(head, "after")},
        final_gain=final.weight,
        head=head.weight,
        embedding=model.get_input_embeddings().weight,
        attend=lambda function: _attending(config, function),
        vocabulary=vocabulary,
    )


def _gpt2_layer(block: Any, sizes: Sizes) -> Layer:
    attention, mlp, C = block.attn, block.mlp, sizes.width
    places = {
        "block_input": Place(block, "before"),
        "norm_attention": Place(block.ln_1, "after"),
        **{site: Place(attention.c_attn, "after", slice(i * C, (i + 1) * C)) for i, site in enumerate("qkv")},
        "out_input": Place(attention.c_proj, "before"),
        "attention_output": Place(attention.c_proj, "after"),
        "norm_mlp": Place(block.ln_2, "after"),
        "up": Place(mlp.c_fc, "after"),
        "down_input": Place(mlp.c_proj, "before"),
        "mlp_output": Place(mlp.c_proj, "after"),
        "block_output": Place(block, "after"),
    }

    def matrices() -> dict[str, Tensor]:
        q, k, v = attention.c_attn.weight.detach().T.split(C)
        o, up, down = (part.weight.detach().T for part in (attention.c_proj, mlp.c_fc, mlp.c_proj))
        return {"q": q, "k": k, "v": v, "o": o, "up": up, "down": down}

    return Layer(places, matrices, {"norm_attention": block.ln_1.weight, "norm_mlp": block.ln_2.weight})


def _llama_layer(block: Any, sizes: Sizes) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    named: dict[str, nn.Linear] = {
        "q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj,
        "up": mlp.up_proj, "gate": mlp.gate_proj, "down": mlp.down_proj,
    }  # fmt: skip
    norm_attention, norm_mlp = block.input_layernorm, block.post_attention_layernorm
    places = {
        "block_input": Place(block, "before"),
        "norm_attention": Place(norm_attention, "after"),
        **{site: Place(named[site], "after") for site in ("q", "k", "v", "up", "gate")},
        "out_input": Place(attention.o_proj, "before"),
        "attention_output": Place(attention.o_proj, "after"),
        "norm_mlp": Place(norm_mlp, "after"),
        "down_input": Place(mlp.down_proj, "before"),
        "mlp_output": Place(mlp.down_proj, "after"),
        "block_output": Place(block, "after"),
    }
    return Layer(
        places,
        lambda: {name: linear.weight.detach() for name, linear in named.items()},
        {"norm_attention": norm_attention.weight, "norm_mlp": norm_mlp.weight},
    )


# model_type -> names of the base model, of its blocks and final norm, the layout of a block, whether the MLP is gated
LAYOUTS: dict[str, tuple[str, str, str, Callable[[Any, Sizes], Layer], bool]] = {
    "gpt2": ("transformer", "h", "ln_f", _gpt2_layer, False),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("model", "layers", "norm", _llama_layer, True)),
}


@contextmanager
def _attending(config: Any, function: AttentionFunction) -> Iterator[None]:
    """Let every attention go through a registered one that shows its arguments and then is torch's own."""
    from transformers import AttentionInterface

    def watched(
        module: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask: Any, scaling: float, **rest: Any
    ) -> tuple[Tensor, None]:
        function(module.layer_idx, q_BHTD * (scaling * math.sqrt(q_BHTD.shape[-1])), k_BGTD, v_BGTD, Parts())
        grouped = q_BHTD.shape[1] != k_BGTD.shape[1]
        y_BHTD = torch.nn.functional.scaled_dot_product_attention(
            q_BHTD, k_BGTD, v_BGTD, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        return y_BHTD.transpose(1, 2), None

    AttentionInterface.register(WATCHED, watched)
    before = config._attn_implementation
    config._attn_implementation = WATCHED
    try:
        yield
    finally:
        config._attn_implementation = before
