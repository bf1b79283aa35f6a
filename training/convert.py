"""`python train.py convert CHECKPOINT|RUN OUT.safetensors`: the weights of any checkpoint as one safetensors file.

The file is that of `checkpoints.weights_every`: `models.checkpoints.load_weights` reads it back, and its header says
which network the weights belong to.
"""

from pathlib import Path

from errors import InputError

HELP = """\
usage: python train.py convert CHECKPOINT|RUN OUT.safetensors

Write the weights of a checkpoint (one file, or a sharded folder), or of a run's last one, to a safetensors file.
"""


def main(argv: list[str]) -> int:
    """Convert, and print what was written. InputError: no checkpoint, a damaged one, or an output that is taken."""
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    if len(argv) != 2:
        raise InputError(
            f"convert takes a checkpoint or a run, and OUT.safetensors; it was given {len(argv)} arguments"
        )
    given, target = (Path(word) for word in argv)
    if target.suffix != ".safetensors":
        raise InputError(f"the output {target} must end in .safetensors")
    if target.exists():
        raise InputError(f"{target} is there already; choose another output")

    from models.checkpoints import description, load
    from models.sharded import REST
    from training.run_directory import RunDirectory
    from training.weights import save_weights

    source = given
    if given.is_dir() and not (given / REST).exists():
        source = RunDirectory(given).last_checkpoint
        if not source.exists():
            raise InputError(f"{given} is neither a checkpoint nor a run that has one")
    content = load(source)
    header = {"step": content.get("global_step"), **description(content, source)}
    weights = {name.removeprefix("gpt."): tensor for name, tensor in content["state_dict"].items()}
    save_weights(weights, target, header)
    print(f"{target}: {len(weights)} tensors of step {header['step']}")
    return 0
