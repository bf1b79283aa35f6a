"""The command line: `python train.py COMMAND ...`. `python train.py --help` lists the commands.

Only `sys` is imported before the command is known, so that help and a mistyped command answer at once:
`import torch` alone takes seconds.
"""

import sys
from typing import Any

COMMANDS = {
    "prepare": (
        "data.command:main",
        "turn a text source into token shards (fit does so where they are missing)",
    ),
    "fit": ("training.cli:fit", "train one model, or go on with an interrupted run"),
    "validate": ("training.cli:validate", "the validation loss of a run's checkpoint"),
    "compare": ("experiments.compare:main", "train several attention variants and seeds, then write the report"),
    "doctor": ("training.doctor:main", "check versions, devices, disk, and that all ranks answer"),
    "analyze": ("experiments.analyze:main", "the outliers and sinks of one model: numbers, figures and a page"),
    "compress": ("experiments.compress:main", "what quantisation and pruning cost a model, or all of a comparison"),
    "convert": ("training.convert:main", "the weights of a checkpoint as one safetensors file"),
    "report": ("experiments.report:main", "rebuild the report from the run directories on disk"),
}

HELP = f"""usage: python train.py COMMAND [options]

commands:
{chr(10).join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())}

python train.py COMMAND --help    the options of a command
python train.py fit --config configs/demo_text.yaml --model.attention context_scaling
"""


def main(argv: list[str]) -> int:
    """Run the command that `argv` names and return the exit code.

    0 done, 2 bad input (one line on stderr), 128 + the signal's number after a signal. Any other exception is a fault
    of ours and keeps its traceback.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"error: unknown command {name!r}.{hint} The commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if name in ("fit", "validate") and {"-h", "--help"} & set(rest):
        from training.help import HELP as CURATED

        print(CURATED[name], end="")
        return 0
    return dispatch(COMMANDS[name][0], rest)


def dispatch(target: str, argv: list[str]) -> int:
    """Import `module:function`, call it with the arguments, and turn what the user can cause into one line."""
    import errno
    import os
    import signal
    from importlib import import_module

    from errors import InputError, Interrupted

    def leave(number: int, _frame: Any) -> None:
        raise Interrupted(number)

    # A user's own mechanism is imported by its path. Last, so that no file of theirs hides a module that we need.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, function = target.split(":")
    # Training and comparing put handlers of their own in place of these, which finish the step.
    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        code = getattr(import_module(module), function)(argv) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as signalled:
        if os.environ.get("RANK", "0") == "0":  # Ctrl-C reaches all ranks, and one tells of it
            print(f"\nstopped by {signal.Signals(signalled.number).name}", file=sys.stderr)
        return 128 + signalled.number
    except BrokenPipeError:  # `| head` has read enough; the interpreter must not complain when it closes the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: no space left on the disk{where}", file=sys.stderr)
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            print(f"error: {error.strerror}{where}", file=sys.stderr)
        else:
            raise
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
