"""A trial: one run of somebody else's training loop, under the strategy, the decay and the seed of a study."""

import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from decaybench.errors import UsageError
from decaybench.parameter_roles.library_rules import Role
from decaybench.parameter_roles.param_groups import clean
from decaybench.parameter_roles.probe import Example
from decaybench.parameter_roles.roles import mark_by_behaviour, roles
from decaybench.registry.build import construct
from decaybench.registry.metrics import kind_of, metric, shown
from decaybench.registry.spec import Spec, parse
from decaybench.results.record import RESERVED, SHORT, Record, dumps
from decaybench.strategies.plan import Plan, Setup, check_plan
from decaybench.study.config import ScriptConfig
from decaybench.training.activation_statistics import ActivationStatistics
from decaybench.training.provenance import provenance
from decaybench.training.seeding import model_fingerprint
from decaybench.trials.inputs import wait_for_inputs
from decaybench.trials.optimizers import Groups, factory, joined, own_decay, split
from decaybench.trials.protocol import Task, write_whole

MOVING = ("decay-to-init", "proximal-l1")  # strategies that change parameters beside the optimizer
MOST_BATCHES = 3  # of the first ones, whose content shows that runs see the same
WATCH_SECONDS = 2.0  # between two looks whether the study is still there
CORRECT, LOSSES = "test_correct", "test_losses"  # what each test example gave, of test_accuracy and test_loss


def run_seed() -> int:
    """Returns the seed of the run that a study has started in this process; 0 where nothing drives it.

    A script that seeds itself before it has a model uses this one, so that seeds differ and strategies share them.
    """
    task = Task.here()
    return int(task.config["seed"]) if task else 0


def trial(
    model: nn.Module,
    *,
    strategy: str = "decay-all",
    weight_decay: float | None = None,
    seed: int | None = None,
    example: Example | None = None,
) -> "Trial":
    """Makes the trial of this process: the strategy's optimizers for a model, and the record of how it went.

    Where a study drives the script (``decaybench run --script``), strategy, decay and seed are the study's. Otherwise
    they are the arguments, and nothing is written.

    Args:
        model: The network, with the tensors that training starts from, on its device.
        strategy: A strategy by its name, with options such as ``loss-penalty,penalty=l1``.
        weight_decay: λ; None means that of the optimizer.
        seed: The seed that the script has used itself; in a study it must be the study's.
        example: One batch of input, by which roles are found out that types do not tell.

    Raises:
        UsageError: When a role is unknown, or the seed is not the study's.
    """
    return Trial(model, Task.here(), strategy, weight_decay, seed, example)


class Trial:
    """One run of a training loop; made by `trial`.

    Attributes:
        strategy: Its strategy.
        weight_decay: λ; None before an optimizer is made, where nothing drives the script.
        seed: Its seed.
        driven: Whether a study has started the script and waits for the record.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task | None,
        strategy: str,
        weight_decay: float | None,
        seed: int | None,
        example: Example | None,
    ) -> None:
        self._task, self._model = task, model
        self._plan: Plan | None = None
        self.driven = task is not None
        self._config = None if task is None else ScriptConfig.model_validate(task.config)
        self.seed = self._config.seed if self._config else seed or 0
        self.strategy: Spec = self._config.strategy if self._config else parse("strategy", strategy)[0]
        self.weight_decay = self._config.weight_decay if self._config else weight_decay
        if self.weight_decay is not None and not 0 <= float(self.weight_decay) < math.inf:
            raise UsageError(f"trial(weight_decay={weight_decay!r}): it is a number from 0 on.")
        self._writes = self.driven and int(os.environ.get("RANK", "0")) == 0
        self._values: dict[str, list[float | None]] = {}
        self._logged_at: list[float] = []
        self._at_last: set[str] = set()  # metrics that were logged in the last epoch
        self._diverged: int | None = None
        self._outcomes: dict[str, npt.NDArray[Any]] = {}
        self._batches, self._digest = 0, hashlib.sha256()
        self._inputs: dict[str, Tensor] = {}
        self._finished = False
        self._steps = self._penalties = 0
        self._face: Optimizer | None = None
        self._given: list[_Given] = []
        if self._writes and task is not None:
            if task.files.begun.exists():
                self._fail("decaybench.trial was called twice; a run of a study is one trial.")
            task.files.begun.touch()
            threading.Thread(target=_end_with_the_study, args=(task,), daemon=True).start()
        if seed is not None:
            self.check_seed(seed, "trial")
        self._roles, self._names = self._find_roles(model, example)
        self._initial = model_fingerprint(model)
        self._statistics = ActivationStatistics(model) if self._writes else None
        self._wait_for_inputs()

    def _find_roles(self, model: nn.Module, example: Example | None) -> tuple[dict[str, Role], dict[int, str]]:
        """Returns the role of each parameter, and the names of the trainable ones by their ids."""
        try:
            if example is not None:
                mark_by_behaviour(model, example)
            found = roles(model)
        except UsageError as error:
            self._fail(str(error))
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        lost = [name for name in names.values() if found[name] == "unknown"]
        if lost:
            self._fail(
                f"trial: the role of {_some(lost)} is unknown; pass example= (one batch of input), or mark them "
                "(decaybench.mark_activation(model, 'name'))."
            )
        return found, names

    def optimizer(self, make: Callable[..., Optimizer], *args: Any, **options: Any) -> Optimizer:
        """Makes the optimizer of the strategy, from any class that takes param groups.

        Args:
            make: Such as ``torch.optim.AdamW``, or a function that returns an optimizer.
            args: Its positional arguments behind the param groups.
            options: Its keywords. ``weight_decay`` among them is λ where no study gives another one.

        Returns:
            The optimizer; for strategies with two of them, both behind one face.

        Raises:
            UsageError: When it does not take all parameters, knows no ``weight_decay``, or is made twice.
        """
        if self.weight_decay is None:
            self.weight_decay = own_decay(lambda groups: make(groups, *args, **options))
        rest = {key: value for key, value in options.items() if key != "weight_decay"}
        return self._made(lambda groups: make(groups, *args, **rest), options.get("lr"))

    def optimizers(self, which: Callable[[str, Parameter], str], **makers: Callable[[Groups], Optimizer]) -> Optimizer:
        """Makes optimizers of several kinds for parts of the model, such as Muon for matrices beside AdamW.

        Args:
            which: Gives, for the name of a parameter and the parameter, the keyword of its optimizer.
            makers: Makes each optimizer from param groups: ``muon=partial(torch.optim.Muon, lr=0.02)``.

        Returns:
            All behind the face of one.

        Raises:
            UsageError: As `optimizer`.
        """
        if self.weight_decay is None:
            self.weight_decay = max(map(own_decay, makers.values()), default=0.0)
        return self._made(split(which, makers, self._names), None)

    def _made(self, make: Callable[[Groups], Optimizer], lr: float | None) -> Optimizer:
        if self._plan is not None:
            self._fail("trial.optimizer was called before; a trial has one optimizer (trial.optimizers takes several).")
        named = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        alphas = frozenset(name for name in named if self._roles[name] == "activation")
        decay = float(self.weight_decay or 0.0)
        setup = Setup(named, alphas, decay, factory(make, lr), roles=self._roles)
        try:
            plan = construct("strategy", self.strategy, setup)
            check_plan(plan, self.strategy.name, named)
        except UsageError as error:
            self._fail(str(error))
        copying = [
            o
            for one in plan.optimizers
            for o in getattr(one, "optimizers", [one])
            if callable(getattr(o, "train", None))
        ]
        if copying and self.strategy.name in MOVING:
            self._fail(
                f"{self.strategy.name} moves parameters between steps, and {type(copying[0]).__name__} keeps copies of "
                "them, which would move them back; another optimizer or another strategy works."
            )
        self._plan = plan
        for optimizer in plan.optimizers:
            for number, group in enumerate(optimizer.param_groups):
                held = frozenset(id(p) for p in group["params"])
                self._given.append(_Given(optimizer, number, float(group.get("weight_decay", 0.0)), held))
        self._face = joined(plan.optimizers)
        self._face.register_step_post_hook(self._stepped)
        return self._face

    def _stepped(self, *_: Any) -> None:
        """Does what the strategy does after a step, as soon as the optimizer has made one."""
        self._steps += 1
        if self._plan is not None and self._plan.after_step is not None:
            self._plan.after_step()

    def penalty(self) -> Tensor | float:
        """Returns the strategy's term of the loss, to be added to it; 0.0 where it has none."""
        self._penalties += 1
        return self._plan.penalty() if self._plan is not None and self._plan.penalty is not None else 0.0

    def add_penalty(self) -> None:
        """Adds the gradient of the penalty, for loops that do not show their loss; call it before each step."""
        penalty = self.penalty()
        if isinstance(penalty, Tensor):
            torch.autograd.backward(penalty)

    def after_step(self) -> None:
        """Checks after a step that param groups are still the strategy's.

        What a strategy itself does after a step is done by the optimizer, so that loops need not call this.
        """
        if self._plan is None:
            self._fail("trial.after_step: no optimizer was made with trial.optimizer.")
        self._check_groups()

    def refuse_penalty(self, why: str) -> None:
        """Refuses a strategy with a penalty, for loops in which it cannot be added.

        Raises:
            UsageError: When the strategy has one.
        """
        if self._plan is not None and self._plan.penalty is not None:
            self._fail(f"{self.strategy.label} adds a term to the loss: {why}.")

    def check_seed(self, seed: int, where: str) -> None:
        """Checks that a library seeds with the seed of the run.

        Raises:
            UsageError: When it does not, and a study drives the script.
        """
        if self.driven and seed != self.seed:
            self._fail(f"{where}(seed={seed}): the study asks for seed {self.seed}; give decaybench.run_seed().")

    def note_batch(self, *tensors: Tensor) -> None:
        """Notes what a step is trained on; the first few show that runs of one seed see the same batches."""
        if self._batches < MOST_BATCHES:
            self._batches += 1
            for tensor in tensors:
                if not isinstance(tensor, Tensor):
                    self._fail(f"trial.note_batch takes tensors, not {type(tensor).__name__}.")
                data = tensor.detach().cpu().contiguous()
                self._digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
                self._digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())

    def log(self, epoch: float, **metrics: Any) -> None:
        """Records metrics while training goes on; activation parameters are recorded with them.

        Args:
            epoch: The epoch or step, which must grow; other metrics of the same one may be logged by themselves.
            metrics: Numbers by name, such as ``validation_loss``. A loss that is not finite means that the run has
                diverged.

        Raises:
            UsageError: When a value is no number, or the trial is finished.
        """
        if self._finished:
            self._fail("trial.log was called after trial.finish.")
        epoch = self._number("epoch", epoch, "log")
        again = bool(self._logged_at) and epoch == self._logged_at[-1] and not self._at_last & metrics.keys()
        if self._logged_at and epoch <= self._logged_at[-1] and not again:
            self._fail(f"trial.log({epoch:g}, …) after {self._logged_at[-1]:g}: epochs must grow.")
        for name in [name for name in metrics if name in RESERVED and not self._asked(name)]:
            metrics.pop(name)
            print(f"decaybench: {name} is left out of the record, which has something else of that name.", flush=True)
        values = self._known({name: self._number(name, value, "log") for name, value in metrics.items()})
        self._at_last = metrics.keys() | (self._at_last if again else set())
        if not again:
            self._logged_at.append(epoch)
        self._note(values)
        if self._statistics is not None and not again:
            self._statistics.record_quantiles()
        self._wait_for_inputs()
        if self._writes and self._task is not None:
            written = {name: value if math.isfinite(value) else None for name, value in values.items()}
            with self._task.files.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": epoch, "metrics": written}) + "\n")

    def finish(self, **metrics: Any) -> Record | None:
        """Ends the trial with its last metrics, and hands the record to the study.

        Args:
            metrics: Numbers by name. An array is the value on each test example, and its mean is the metric: with it,
                intervals speak about new examples. ``test_correct`` (truth values) stands for ``test_accuracy`` and
                ``test_losses`` for ``test_loss``.

        Returns:
            The record; None where nothing drives the script, and in all processes but the first.

        Raises:
            UsageError: When it was called before, a metric is no number, one that the study compares is missing, or the
                param groups are no longer the strategy's.
        """
        if self._finished:
            self._fail("trial.finish was called twice.")
        values = {name: self._number(name, value, "finish") for name, value in self._means(metrics).items()}
        self._logged_at.append(self._logged_at[-1] if self._logged_at else 0.0)
        self._note(values)
        self._check_groups()
        self._check_whole()
        for name in self._task.metrics if self._task is not None else ():
            if name.partition(":")[0] not in self._values:
                self._fail(
                    f"trial.finish: the study compares {name.partition(':')[0]}, which was neither logged nor given; "
                    f"there are {', '.join(self._values) or 'none'}."
                )
        if not self._values:
            self._fail("trial.finish: no metric was logged or given.")
        self._finished = True
        if not self._writes or self._task is None or self._config is None:
            return None
        record = self._record(self._config)
        write_whole(self._task.files.outcome, dumps(record))
        return record

    def _record(self, config: ScriptConfig) -> Record:
        prints = {"initial": self._initial, "final": model_fingerprint(self._model)}
        if self._batches:
            prints["batches"] = self._digest.hexdigest()[:16]
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        kinds = [type(o).__name__ for o in self._plan.optimizers] if self._plan is not None else []
        about = {
            **provenance(device, self._model),
            "optimizers": kinds,
            "processes": int(os.environ.get("WORLD_SIZE", 1)),
        }
        named = {text.partition(":")[0]: text for text in (self._task.metrics if self._task is not None else ())}
        known = [named.get(name, name) for name in self._values if name in named or kind_of(name) is not None]
        found = {one.name: one.direction for one in map(metric, known)}
        layers = self._statistics.described(self._inputs) if self._statistics is not None else ()
        return Record(
            run_id=config.run_id,
            config=config.model_dump(),
            fingerprints=prints,
            diverged=self._diverged,
            history=self._values,
            metrics=found,
            layers=layers,
            provenance=about,
            outcomes={} if self._diverged else self._outcomes,
            extra={"logged_at": self._logged_at},
        )

    def _note(self, values: Mapping[str, float]) -> None:
        """Adds values to the series; a loss that is not finite is where the run diverged."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value if math.isfinite(value) else None)
        if self._diverged is None and not all(map(math.isfinite, values.values())):
            self._diverged = len(self._logged_at)
            lost = next(name for name, value in values.items() if not math.isfinite(value))
            print(f"decaybench: {lost} is not finite, so the run counts as diverged.", flush=True)

    def _number(self, name: str, value: Any, where: str) -> float:
        try:
            number = float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            self._fail(f"trial.{where}: {name} is no number, but {type(value).__name__} ({error}).")
        if not math.isfinite(number) and not _is_loss(name):
            self._fail(f"trial.{where}: {name} is {number}, which is no result.")
        if name in RESERVED:
            self._fail(f"trial.{where}: no metric can be called {name}, which a record has already.")
        try:
            known = shown(name)
        except UsageError as error:
            self._fail(f"trial.{where}: {error}")
        if math.isfinite(number) and not known.low <= number <= known.high and (where == "finish" or self._asked(name)):
            self._fail(
                f"trial.{where}: {name} is {number:g}, which is outside {known.low:g} … {known.high:g}; percentages "
                "are written as fractions."
            )
        return number

    def _asked(self, name: str) -> bool:
        """Tells whether the study compares a metric."""
        return self._task is not None and any(name == text.partition(":")[0] for text in self._task.metrics)

    def _known(self, values: dict[str, float]) -> dict[str, float]:
        """Leaves out what cannot be what its name says, such as an accuracy of 93, where nobody compares it."""
        kept = {}
        for name, value in values.items():
            known = shown(name)
            if math.isfinite(value) and not known.low <= value <= known.high:
                print(f"decaybench: {name} = {value:g} is no fraction and is left out of the record.", flush=True)
            else:
                kept[name] = value
        return kept

    def _means(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces arrays of values on each test example by their means, and keeps them."""
        given = dict(metrics)
        for short, name, kind in ((CORRECT, "test_accuracy", np.bool_), (LOSSES, "test_loss", np.float32)):
            if short in given:
                self._keep(name, given.pop(short), given, kind)
        for name in [n for n, v in given.items() if isinstance(v, list | tuple) or np.ndim(_plain(v)) > 0]:
            self._keep(name, given.pop(name), given, np.float32)
        return given

    def _keep(self, name: str, values: Any, given: dict[str, Any], kind: Any) -> None:
        if name in SHORT:
            self._fail(f"trial.finish: the values of each test example are test_losses and test_correct, not {name}.")
        try:
            array = np.asarray(_plain(values))
        except ValueError as error:
            self._fail(f"trial.finish: the values of {name} are no array: {error}.")
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "biuf":
            self._fail(
                f"trial.finish: the values of {name} have shape {array.shape}; it must be one number an example."
            )
        if kind is np.bool_ and not np.isin(array, (0, 1)).all():
            self._fail(f"trial.finish: {CORRECT} holds other values than true and false.")
        mean = float(array.astype(np.float64).mean())
        if math.isfinite(mean):
            self._outcomes[name] = array.astype(kind)
        said = self._number(name, given.setdefault(name, mean), "finish")
        if math.isfinite(mean) and not math.isclose(said, mean, rel_tol=1e-3, abs_tol=1e-6):
            self._fail(
                f"trial.finish: {name} is {said:.6g}, but the mean of its examples is {mean:.6g}; intervals "
                "need one of the two to be the other."
            )

    def _check_groups(self) -> None:
        """Checks that param groups have the decay that the strategy gave them."""
        held = sum(len(o.param_groups) for o in self._plan.optimizers) if self._plan is not None else 0
        if self._face is not None and (held != len(self._given) or len(self._face.param_groups) != held):
            self._fail("A param group was added after trial.optimizer made them; the decay is the strategy's.")
        for number, given in enumerate(self._given):
            now = float(given.group.get("weight_decay", 0.0))
            if now != given.decay:
                self._fail(
                    f"The weight_decay of param group {number} was changed from {given.decay:g} to {now:g} after "
                    "trial.optimizer made it; the decay is the strategy's."
                )

    def _check_whole(self) -> None:
        """Checks that the optimizers hold what the strategy gave them, and every trainable parameter."""
        if self._plan is None:
            self._fail("trial.finish: no optimizer was made with trial.optimizer, so no strategy was applied.")
        if not self._steps:
            self._fail(
                "trial.finish: the optimizer that trial.optimizer made has made no step, so nothing was trained."
            )
        if self._plan.penalty is not None and not self._penalties:
            self._fail(
                f"trial.finish: {self.strategy.label} adds a term to the loss, and trial.penalty was never called."
            )
        for number, given in enumerate(self._given):
            if not given.held <= {id(p) for p in given.group["params"]}:
                self._fail(f"Parameters of param group {number} were taken out after trial.optimizer made it.")
        held = Counter(id(p) for o in self._plan.optimizers for group in o.param_groups for p in group["params"])
        lost = [clean(name) for name, p in self._model.named_parameters() if p.requires_grad and not held[id(p)]]
        if lost:
            self._fail(
                f"{_some(lost)} came after trial.optimizer, or was frozen then, and is in none of its param groups; "
                "make the trial when the model is as it is trained."
            )

    def _wait_for_inputs(self) -> None:
        """Keeps what each learned activation gets as input in the next forward pass."""
        if self._statistics is not None:
            wait_for_inputs(self._statistics.layers, self._inputs)

    def _fail(self, sentence: str) -> NoReturn:
        """Raises an error, and tells the study why.

        Raises:
            UsageError: Always.
        """
        if self._writes and self._task is not None:
            self._task.files.outcome.unlink(missing_ok=True)
            self._task.files.error.write_text(sentence, "utf-8")
        raise UsageError(sentence)


class _Given(NamedTuple):
    """A param group as the strategy made it.

    Attributes:
        optimizer: Its optimizer.
        number: Its place there, since loading a state replaces the group.
        decay: Its ``weight_decay``.
        held: The ids of its parameters.
    """

    optimizer: Optimizer
    number: int
    decay: float
    held: frozenset[int]

    @property
    def group(self) -> dict[str, Any]:
        """The group as it is now."""
        return self.optimizer.param_groups[self.number]


def _some(names: list[str]) -> str:
    """Lists the first few names."""
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _plain(value: Any) -> Any:
    """Returns a tensor as an array, in float32 where NumPy has no such type."""
    if not isinstance(value, Tensor):
        return value
    found = value.detach().cpu()
    return found.float().numpy() if found.dtype == torch.bfloat16 else found.numpy()


def _is_loss(name: str) -> bool:
    """Tells whether a metric is not finite where training diverges."""
    kind = kind_of(name)
    return kind is not None and kind.scale == "relative"


def _end_with_the_study(task: Task) -> None:
    """Ends this process when the study that waits for it is gone, so that nothing goes on unseen."""
    while task.is_waited_for():
        time.sleep(WATCH_SECONDS)
    os._exit(1)
