"""What a run is made of beside the model and the data, in one place: for `fit`, and for whoever trains without it."""

from typing import Any

from lightning.pytorch import Callback

from training.callbacks.checkpoints import Checkpoints
from training.callbacks.evaluation import Evaluation
from training.callbacks.garbage import CollectGarbage
from training.callbacks.metrics import TrainingMetrics
from training.callbacks.outlier_probe import OutlierProbe
from training.callbacks.progress import ShowProgress
from training.callbacks.signals import Stop
from training.callbacks.status import StatusFile
from training.run_directory import RunDirectory

# Trainer arguments that are no options here: the order of the data, the checkpoints, the cadences and the length of a
# run have one meaning each, set elsewhere in the configuration, and a second switch could only contradict it.
FIXED: dict[str, Any] = {
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
}


def callbacks(
    directory: RunDirectory, evaluation: Evaluation, probe: OutlierProbe, stop: Stop, checkpoints: Checkpoints
) -> list[Callback]:
    """Every callback of a run, in the order in which they act at a step; others go before them."""
    return [
        CollectGarbage(),
        TrainingMetrics(),
        evaluation,
        probe,
        stop,
        ShowProgress(),
        StatusFile(directory),
        checkpoints,  # last: it saves what the others have done at this step
    ]
