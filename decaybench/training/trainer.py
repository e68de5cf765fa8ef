"""Trains runs, one or several at once. Prints nothing and writes no files."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from decaybench.activations.backends import slow_backend
from decaybench.activations.compiled import any_size
from decaybench.errors import DecaybenchError
from decaybench.optimizers import lr_factor
from decaybench.parameter_roles.roles import mark_by_behaviour
from decaybench.registry import OPTIMIZERS, TASKS
from decaybench.registry.user_code import failure, no_exit
from decaybench.results.record import LARGEST_LOSS, Layer, Outcomes, Record
from decaybench.strategies.plan import Plan, make_plan
from decaybench.study.config import RunConfig
from decaybench.training.activation_statistics import ActivationStatistics
from decaybench.training.cuda_graph import CudaGraphs, Recorded
from decaybench.training.data import Batches, Data, Drawn, gather
from decaybench.training.metrics import EVALUATION_BATCH, Evaluated, clip_gradients, evaluate, means
from decaybench.training.model import build_model
from decaybench.training.precision import lowered, products
from decaybench.training.rates import Factor, Rates
from decaybench.training.seeding import OtherStreams, model_fingerprint, seeded, stream_seed
from decaybench.training.stacked.cohorts import capacity
from decaybench.training.stacked.stack import Replicas, SingleModel, StackedModels
from decaybench.training.tasks import make_task, summed

STATISTICS_IMAGES = 256  # validation images, on whose activations learned functions are compared
ROLE_EXAMPLE_IMAGES = 16  # images that show what a module of unknown type in a user's own network does


@dataclass(frozen=True)
class Epoch:
    """The scores of one epoch of a run: each metric of each part; a loss is not finite when it diverged."""

    config: RunConfig
    number: int
    scores: dict[str, float]

    @property
    def of(self) -> int:
        """The number of epochs of the run."""
        return self.config.epochs

    @property
    def diverged(self) -> bool:
        return not all(math.isfinite(v) for k, v in self.scores.items() if k.endswith("loss"))


@dataclass(frozen=True)
class Finished:
    """The record of a finished run, without provenance."""

    config: RunConfig
    record: Record


@dataclass(frozen=True)
class ReplicaGroup:
    """Replicas that differ only in their seed and share parameters, optimizers and schedulers.

    Attributes:
        rows: Which replicas they are.
        plan: Their optimizers, and what else the strategy does.
        factor: What learning rates are multiplied by at a step.
    """

    rows: slice
    plan: Plan
    factor: Factor


@dataclass
class Run:
    """The state of one run while it trains."""

    config: RunConfig
    initial: str
    statistics: ActivationStatistics
    history: list[Epoch] = field(default_factory=list)
    over: bool = False


class Training:
    """Runs on the same data that train together, with a replica axis where there is more than one.

    Args:
        configs: The runs.
        data: Their data, on the device of the training.
        stacked: Whether they train as one stack; None decides it by the network.

    Raises:
        DecaybenchError: From any step, when code of the network, the activation or the strategy fails.
    """

    def __init__(self, configs: Sequence[RunConfig], data: Data, stacked: bool | None = None) -> None:
        configs = sorted(configs, key=lambda c: c.cell_id)
        first, device = configs[0], data.train.x.device
        models = [build_model(c, data.shape, data.outputs, data.task).to(data.dtype) for c in configs]
        initial = [model_fingerprint(model) for model in models]
        for model in models:
            model.to(device)
        self._data, self._first = data, first
        self._own = any(spec.source for spec in first.specs())
        self._task = make_task(data.task, first.loss)
        if stacked is None:
            stacked = capacity(first, data, device) > 0
        self.stacked = stacked
        if not stacked:
            assert len(models) == 1, "such runs train one by one"
            mark_by_behaviour(models[0], data.train.x[:ROLE_EXAMPLE_IMAGES])
        # Own networks may view their images in a way that only the usual layout allows.
        usual = first.network.source or device.type != "cpu" or data.train.x.ndim != 4
        layout = torch.contiguous_format if usual else torch.channels_last
        self.net: Replicas = (
            StackedModels(models, first.precision) if stacked else SingleModel(models[0], first.precision, layout)
        )
        self._batches = {c.seed: Batches(data.train, c) for c in configs}
        seeds = list(self._batches)
        self._seed_of_run = torch.tensor([seeds.index(c.seed) for c in configs], device=device)  # (R,)
        steps = len(self._batches[first.seed])
        self.groups: list[ReplicaGroup] = []
        for _, members in groupby(range(len(configs)), key=lambda r: configs[r].cell_id):
            rows = list(members)
            self.groups.append(self._group(configs[rows[0]], slice(rows[0], rows[-1] + 1), steps))
        self.runs = [
            Run(c, i, ActivationStatistics(m, channels=c.seed == 0))
            for c, i, m in zip(configs, initial, models, strict=True)
        ]
        self.recorded: tuple[Recorded, Recorded] | None = None  # the step and the evaluation, on a GPU
        self._hindrance = not_recordable(first) or slow_backend(self.net.models[0])
        if device.type == "cuda" and not self._hindrance:
            graphs = CudaGraphs(device)
            self.recorded = Recorded(self._work, graphs), Recorded(self._evaluate, graphs)
        scheduled = [(optimizer, group.factor) for group in self.groups for optimizer in group.plan.optimizers]
        self._rates = Rates(scheduled, device if self.recorded else None)
        self._tested: Evaluated  # of the epoch that ended last
        self._sums = dict[str, Tensor]()  # of the loss and each metric over the examples of an epoch, (R,)
        self.epoch, self.done = 0, 0  # whole epochs, and steps of the one under way
        self._begin()

    def _group(self, config: RunConfig, rows: slice, steps: int) -> ReplicaGroup:
        shared = self.net.cell(rows) if isinstance(self.net, StackedModels) else None
        plan = make_plan(config, self.net.models[rows.start], shared)
        return ReplicaGroup(rows, plan, lr_factor(config.schedule, config.epochs, steps))

    @property
    def remark(self) -> str:
        """Says what a GPU does more slowly than it could, and why; empty where nothing, or nothing known yet."""
        if self._data.train.x.device.type != "cuda":
            return ""
        step, evaluation = (r.reason for r in self.recorded) if self.recorded else (self._hindrance, "")
        if not step and not evaluation:
            return ""
        what = "step" if step else "evaluation"
        return f"The {what} is not recorded as a CUDA graph, so each kernel is started alone: {step or evaluation}."

    @property
    def finished(self) -> bool:
        return all(run.over for run in self.runs)

    def _begin(self) -> None:
        """Starts an epoch."""
        self._start = {seed: batches.state() for seed, batches in self._batches.items()}
        drawn = Drawn.stack(batches.draw() for batches in self._batches.values())  # (S, …, N)
        self._drawn = drawn.map(lambda t: t.to(self._data.train.x.device))
        for total in self._sums.values():
            total.zero_()
        self._seen = self.done = 0
        seed = stream_seed(self._first.seed, f"dropout/{self.epoch + 1}")
        self._random = torch.Generator().manual_seed(seed).get_state()
        with seeded(seed):
            self._others = OtherStreams.now()
        steps = len(self._batches[self._first.seed])
        with self._guarded():  # a schedule of one's own may draw, too
            self._rates.begin(self.epoch * steps, steps)

    def state_dict(self) -> dict[str, Any]:
        """Returns where in the data this training is, and its sums since the epoch began."""
        sums = {"sums": self._sums, "seen": self._seen, "rates": self._rates.table}
        streams = {"random": self._random, "others": self._others.dumps()}
        return {"epoch": self.epoch, "done": self.done, "batches": self._start, **sums, **streams}

    def load_state_dict(self, place: dict[str, Any]) -> None:
        """Restores a `state_dict`."""
        self.epoch = place["epoch"]
        for seed, batches in self._batches.items():
            batches.restore(place["batches"][seed])
        self._begin()
        device = self._data.train.x.device
        self.done, self._seen = place["done"], place["seen"]
        self._random, self._others = place["random"], OtherStreams.loads(place["others"])
        self._sums = {name: total.to(device) for name, total in place["sums"].items()}
        self._rates.use(place["rates"])

    def advance(self) -> list[Epoch | Finished]:
        """Trains one step, and returns what the epoch gave after its last one."""
        with self._guarded():
            self._step()
        self.done += 1
        if self.done < len(self._batches[self._first.seed]):
            return []
        with self._guarded():
            scores = self._scores()
        self.epoch += 1
        device = self._data.train.x.device
        with products(self._first.precision, device), lowered(self._first.precision, device):
            events = [
                event for run, s in zip(self.runs, scores, strict=True) if not run.over for event in self._note(run, s)
            ]
        if not self.finished:
            self._begin()
        return events

    def weights(self, config: RunConfig) -> bytes:
        """Returns the parameters and buffers of a run as the content of a safetensors file."""
        row = next(i for i, run in enumerate(self.runs) if run.config is config)
        state = self.net.models[row].state_dict()
        return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})

    def _step(self) -> None:
        start = self.done * self._first.batch_size
        drawn = self._drawn.map(lambda t: t[..., start : start + self._first.batch_size])
        self.net.train(True)
        self._rates.set(self.done)
        (self.recorded[0] if self.recorded else self._work)(*drawn)
        self._seen += drawn.order.shape[1]

    def _work(self, order: Tensor, offsets: Tensor | None, flips: Tensor | None) -> None:
        """Does everything that a step does on the device, for the `Drawn` of a batch of S seeds."""
        x, y = gather(self._data.train, Drawn(order, offsets, flips))  # (S, B, …)
        if len(x) != len(self.runs):
            x, y = x.index_select(0, self._seed_of_run), y.index_select(0, self._seed_of_run)  # (R, B, …)
        out, loss = self._gradients(x, y)
        for group in self.groups:
            for optimizer in group.plan.optimizers:
                optimizer.step()
            if group.plan.after_step is not None:
                group.plan.after_step()
        sums = {"loss": loss * y.shape[1]}
        sums |= {name: summed(of_examples(out, y)) for name, of_examples in self._task.metrics.items()}
        for name, total in sums.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(total)
            self._sums[name] += total

    def _gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients for the optimizers, and returns outputs (R, K, B, …) and losses (R,)."""
        out = self.net(x)
        loss = self._task.loss(out, y).mean(1)
        self.net.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.net.distribute_gradients()
        for group in self.groups:
            if group.plan.penalty is not None:
                torch.autograd.backward(group.plan.penalty())
        if self._first.clip_norm is not None:
            clip_gradients(list(self.net.gradients()), self._first.clip_norm)
        return out.detach(), loss.detach()

    def _scores(self) -> list[dict[str, float]]:
        """Scores each replica: training over the epoch's batches, without any penalty; the other parts as it is now."""
        trained = {name: total.cpu().double() / self._seen for name, total in self._sums.items()}
        evaluated = self.recorded[1] if self.recorded else self._evaluate
        self._tested = evaluated("test")
        tested = means(self._tested)
        validation = means(evaluated("validation"))
        parts = {"train": trained, "validation": validation, "test": tested}
        return [
            {f"{part}_{name}": float(values[r]) for part, means in parts.items() for name, values in means.items()}
            for r in range(len(self.runs))
        ]

    def _evaluate(self, part: str) -> Evaluated:
        # On a GPU a stack was cut to fit the memory with training's batches.
        stacked_there = isinstance(self.net, StackedModels) and self._data.train.x.is_cuda
        batch = self._first.batch_size if stacked_there else EVALUATION_BATCH
        return evaluate(self.net, getattr(self._data, part), self._task, batch)

    def _note(self, run: Run, scores: dict[str, float]) -> list[Epoch | Finished]:
        epoch = Epoch(run.config, self.epoch, scores)
        run.history.append(epoch)
        run.statistics.record_quantiles()
        run.over = epoch.diverged or self.epoch == run.config.epochs
        if not run.over:
            return [epoch]
        finished = Finished(run.config, self._record(run))
        if epoch.diverged:
            self._retire(self.runs.index(run))
        return [epoch, finished]

    def _retire(self, row: int) -> None:
        """Sets a replica that diverged to zeros, so that nothing infinite slows the others down."""
        for parameter in self.net.parameters().values():
            if len(self.runs) > 1:
                parameter[row].zero_()
        group = next(g for g in self.groups if row in range(g.rows.start, g.rows.stop))
        for optimizer in group.plan.optimizers:
            for p, state in optimizer.state.items():
                for value in state.values():
                    if isinstance(value, Tensor) and value.shape == p.shape and len(self.runs) > 1:
                        value[row - group.rows.start].zero_()

    def _record(self, run: Run) -> Record:
        last = run.history[-1]
        prints = {"data": self._data.fingerprint, "source": self._data.source, "initial": run.initial}
        return Record(
            run_id=run.config.run_id,
            config=run.config.model_dump(),
            fingerprints={**prints, "batches": self._batches[run.config.seed].fingerprint},
            diverged=last.number if last.diverged else None,
            history={key: [_json(e.scores[key]) for e in run.history] for key in last.scores},
            layers=self._layers(run),
            metrics=TASKS[self._task.name].recorded,
            outcomes={} if last.diverged else self._outcomes(self.runs.index(run)),
        )

    def _outcomes(self, row: int) -> Outcomes:
        """Returns what a run made of each test example after its last epoch."""
        losses = self._tested.losses[row].float().clamp(max=LARGEST_LOSS)
        values = {f"test_{name}": found[row].cpu() for name, found in self._tested.values.items()}
        exact = {k: v.numpy() if v.dtype == torch.bool else v.float().numpy() for k, v in values.items()}
        return {**exact, "test_loss": losses.cpu().numpy().astype(np.float16)}

    def _layers(self, run: Run) -> tuple[Layer, ...]:
        with seeded(stream_seed(run.config.seed, "statistics")):  # a user's own network may draw in forward
            return run.statistics.summary(self._data.validation.x[:STATISTICS_IMAGES])

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Gives dropout a random stream of its own, and turns errors of a user's code into one sentence."""
        device = self._data.train.x.device
        alone = isinstance(self.net, SingleModel)  # nothing in a stack draws
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=alone):
            if alone:
                if device.type != "cpu":
                    torch.manual_seed(stream_seed(self._first.seed, f"dropout/{self.epoch + 1}/{self.done}"))
                torch.set_rng_state(self._random)
            before = OtherStreams.now() if self._own else None
            if self._own:
                self._others.restore()
            try:
                inside = nullcontext() if alone else any_size()
                with products(self._first.precision, device), inside, no_exit() if self._own else nullcontext():
                    yield
            except (torch.OutOfMemoryError, DecaybenchError, KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                parts = ", ".join(s.label for s in (self._first.network, self._first.activation, self._first.strategy))
                step = f"epoch {self.epoch + 1}, step {self.done + 1}"
                what = f"Training {parts} (seed {self._first.seed}, {step})"
                raise DecaybenchError(f"{what} {failure(error)}") from error
            finally:
                if alone:
                    self._random = torch.get_rng_state()
                if before is not None:
                    self._others = OtherStreams.now()
                    before.restore()


def train(configs: Sequence[RunConfig], data: Data) -> Iterator[Epoch | Finished]:
    """Trains runs together to their end, on the device their data is on."""
    training = Training(configs, data)
    while not training.finished:
        yield from training.advance()


def not_recordable(config: RunConfig) -> str:
    """Says why the step of a run cannot be recorded as a CUDA graph; empty where it can."""
    own = [spec.label for spec in config.specs() if spec.source and spec is not config.dataset]
    if own:
        return f"{own[0]} is code of your own, which may do more than start kernels"
    if not OPTIMIZERS[config.optimizer.name].elementwise:
        return f"{config.optimizer.label} may compute in Python"
    return ""


def _json(x: float) -> float | None:
    return x if math.isfinite(x) else None
