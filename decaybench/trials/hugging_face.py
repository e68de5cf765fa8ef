"""A callback by which transformers' ``Trainer`` runs a trial."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from decaybench.trials.names import recorded_names
from decaybench.trials.trial import Trial


class TrialCallback(TrainerCallback):
    """Logs evaluations to a trial, and adds the strategy's penalty.

    The optimizer goes to ``Trainer(optimizers=(trial.optimizer(…), None))``, and ``TrainingArguments`` gets
    ``seed=decaybench.run_seed()``. The penalty's gradient is added after the trainer has clipped the others. At the end
    call ``trial.finish()``, with metrics of a test part if there are any.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trial.check_seed(args.seed, "TrainingArguments")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trial.add_penalty()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._trial.log(state.global_step, **recorded_names(metrics or {}))
