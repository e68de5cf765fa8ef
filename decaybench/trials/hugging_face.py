"""A callback by which transformers' ``Trainer`` runs a trial."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from decaybench.trials.names import recorded_names
from decaybench.trials.trial import Trial


class TrialCallback(TrainerCallback):
    """Logs evaluations to a trial, and adds the strategy's penalty.

    The optimizer goes to ``Trainer(optimizers=(trial.optimizer(…), None))``, and ``TrainingArguments`` gets
    ``seed=decaybench.run_seed()``. The penalty's gradient is there before the first backward pass of a step, so that it
    is clipped with the others. At the end call ``trial.finish()``, with metrics of a test part if there are any.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial, self._step, self._logged = trial, -1, set[str]()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trial.check_seed(args.seed, "TrainingArguments")
        if args.fp16:
            self._trial.refuse_penalty("TrainingArguments(fp16=True) scales the loss; use bf16=True")

    def on_step_begin(
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
        found = recorded_names(metrics or {})
        if state.global_step == self._step:  # another data set, or the last one again
            found = {name: value for name, value in found.items() if name not in self._logged}
        else:
            self._step, self._logged = state.global_step, set()
        self._logged |= found.keys()
        if found:
            self._trial.log(state.global_step, **found)
