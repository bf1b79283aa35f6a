"""The two exceptions that are no fault of sinkless: the user's input is wrong, or a signal ended the command."""


class InputError(ValueError):
    """Bad input. The message is one line that names the value and what is allowed.

    `train.py` prints it without a traceback and exits with code 2. Every other exception keeps its traceback.
    """


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM where there is no training step to finish: what was begun is removed on the way out, unless the
    same command can go on from it.

    Not a KeyboardInterrupt, which Lightning catches and turns into exit code 1. number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
