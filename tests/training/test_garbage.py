import gc

import pytest
from tiny_run import tiny_run

from training.callbacks.garbage import CollectGarbage
from training.callbacks.steps import StepCallback


class Watch(StepCallback):
    """Notes the collections (at which step, of which generation) and the collector's state."""

    def __init__(self, fail_at=None):
        self.collections, self.states, self.step, self.fail_at = [], set(), 0, fail_at

    def note(self, phase, info):
        if phase == "start":
            self.collections.append((self.step, info["generation"]))

    def on_train_batch_start(self, trainer, *arguments):
        self.step = trainer.global_step + 1
        self.states.add((gc.isenabled(), gc.get_freeze_count() > 1000))
        if self.step == self.fail_at:
            raise ValueError("a fault")

    def on_train_end(self, trainer, pl_module):
        self.step = 0

    def on_exception(self, trainer, pl_module, exception):
        self.step = 0


@pytest.mark.parametrize("fail_at", [None, 4])
def test_collections_come_where_numbers_are_reported_alone_and_the_collector_is_put_back(tmp_path, text, fail_at):
    watch = Watch(fail_at)
    run = tiny_run(tmp_path / "run", text, steps=6, log_every=2, evaluation=0, extra=(watch, CollectGarbage()))
    frozen = gc.get_freeze_count()
    gc.callbacks.append(watch.note)
    try:
        if fail_at:
            with pytest.raises(ValueError, match="a fault"):
                run.fit()
        else:
            run.fit()
    finally:
        gc.callbacks.remove(watch.note)
    assert watch.states == {(False, True)}
    full = 2
    assert [found for found in watch.collections if found[0] > 0] == [
        (step, full) for step in ([2] if fail_at else [2, 4, 6])
    ]
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
