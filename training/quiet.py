"""Who speaks while a command runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from training.launch import place


@contextmanager
def quiet() -> Iterator[None]:
    """Show what sinkless says, once, and not what Lightning says about itself."""
    ours = logging.getLogger("sinkless")
    theirs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in (ours, *theirs)]
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    here = place()
    ours.setLevel(logging.INFO if here is None or here.rank == 0 else logging.WARNING)
    for logger in theirs:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        ours.removeHandler(handler)
        for logger, level in zip((ours, *theirs), levels, strict=True):
            logger.setLevel(level)
