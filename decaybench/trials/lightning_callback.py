"""A callback by which Lightning's ``Trainer`` runs a trial."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from decaybench.trials.names import recorded_names
from decaybench.trials.trial import Trial


class TrialCallback(Callback):
    """Logs validations to a trial, and adds the strategy's penalty before gradients are clipped.

    The module's ``configure_optimizers`` returns ``trial.optimizer(…)``. At the end call ``trial.finish()``, with
    metrics of a test part if there are any.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial, self._last = trial, -1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._trial.add_penalty()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.global_step <= self._last:
            return
        self._last = trainer.global_step
        self._trial.log(trainer.global_step, **recorded_names(trainer.callback_metrics))
