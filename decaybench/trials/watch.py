"""Looks at a training: how hard decay pulls beside the gradient, and what becomes of activation functions."""

import atexit
import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from decaybench.errors import UsageError
from decaybench.parameter_roles.param_groups import clean
from decaybench.parameter_roles.roles import roles
from decaybench.registry.hashing import digest
from decaybench.registry.imports import script_fingerprint
from decaybench.registry.spec import Spec
from decaybench.results.record import Record
from decaybench.results.store import StudyFolder
from decaybench.study.config import ScriptConfig
from decaybench.training.activation_statistics import ActivationStatistics
from decaybench.training.provenance import provenance
from decaybench.training.seeding import model_fingerprint
from decaybench.trials.inputs import wait_for_inputs

WRITE_SECONDS = 10.0  # between two writings of the record while training goes on
RATIO = "decay_over_gradient"
# Optimizers that decay beside the gradient's step and not through it, by the names of their classes.
DECOUPLED = (
    "AdamW",
    "Lion",
    "Muon",
    "SGDW",
    "Adan",
    "LaProp",
    "AdamWScheduleFree",
    "SGDScheduleFree",
    "Sophia",
    "Lamb",
)


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int = 100,
    name: str = "watched",
    results: str | Path = "results",
    seed: int = 0,
) -> "Watcher":
    """Watches a training through its optimizer: nothing else in the script changes.

    At every look, for each parameter: the pull of weight decay beside that of the gradient. Where decay enters the
    gradient (SGD, Adam) it is λ‖w‖ / ‖g‖; where it stands beside it (AdamW), lr·λ‖w‖ over the norm of the rest of the
    step. Of learned activation functions: quantiles of their parameters, and at the end their distance from the start,
    from zero and from ReLU on the inputs that they get.

    The record is written to ``results/NAME`` while training goes on, and at the end of the program: look at it with
    ``decaybench report results/NAME --format html``, or ``--figure pulls``.

    Args:
        model: The network, with the tensors that training starts from.
        optimizer: Its optimizer; ``step`` is what counts.
        every: Steps between two looks.
        name: Folder of the record.
        results: Folder of all studies.
        seed: The seed of the run, by which runs are told apart.

    Raises:
        UsageError: When ``every`` is less than 1, or the optimizer holds no parameter of the model.
    """
    return Watcher(model, optimizer, every, StudyFolder(Path(results) / name), seed)


class Watcher:
    """What `watch` returns; `finish` writes the record."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, every: int, folder: StudyFolder, seed: int) -> None:
        if every < 1:
            raise UsageError(f"watch(every={every}): it is a number of steps, 1 or more.")
        self._model, self._optimizer, self._every, self._folder = model, optimizer, every, folder
        names = {id(p): clean(n) for n, p in model.named_parameters()}
        found = {clean(n): role for n, role in roles(model).items()}
        held = [(i, p) for i, group in enumerate(optimizer.param_groups) for p in group["params"] if id(p) in names]
        if not held:
            raise UsageError("watch: the optimizer holds no parameter of this model.")
        self._held = held
        self._rows: list[dict[str, Any]] = [
            {"name": names[id(p)], "role": found[names[id(p)]], "group": i, "ratio": []} for i, p in held
        ]
        self._decoupled = _is_decoupled(optimizer)
        self._steps: list[int] = []
        self._done, self._before = 0, list[Tensor]()
        self._initial, self._statistics = model_fingerprint(model), ActivationStatistics(model)
        self._inputs: dict[str, Tensor] = {}
        self._config = _config(optimizer, seed)
        self._written = time.monotonic()
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        wait_for_inputs(self._statistics.layers, self._inputs)
        atexit.register(self.finish)

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        if self._done % self._every == 0:
            self._before = [p.detach().clone() for _, p in self._held]

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        self._done += 1
        if (self._done - 1) % self._every:
            return
        self._steps.append(self._done)
        for row, ratio in zip(self._rows, self._ratios(), strict=True):
            row["ratio"].append(ratio)
        self._statistics.record_quantiles()
        wait_for_inputs(self._statistics.layers, self._inputs)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def _ratios(self) -> list[float | None]:
        """Returns the pull of decay beside that of the gradient, for each parameter."""
        groups = self._optimizer.param_groups
        decays = [float(groups[i].get("weight_decay", 0.0)) for i, _ in self._held]
        if self._decoupled:
            shares = [float(groups[i]["lr"]) * d for (i, _), d in zip(self._held, decays, strict=True)]
            pulls = [w * s for w, s in zip(self._before, shares, strict=True)]
            rests = [p - w + pull for (_, p), w, pull in zip(self._held, self._before, pulls, strict=True)]
        else:
            pulls = [w * d for w, d in zip(self._before, decays, strict=True)]
            rests = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in self._held]
        self._before = []
        upper, lower = (torch.stack(torch._foreach_norm(x)).tolist() for x in (pulls, rests))
        return [_share(a, b) for a, b in zip(upper, lower, strict=True)]

    def finish(self) -> Record | None:
        """Writes the record; the end of the program does it, too.

        Returns:
            The record; None before the first step.
        """
        atexit.unregister(self.finish)
        return self._write()

    def _write(self) -> Record | None:
        self._written = time.monotonic()
        if not self._steps or int(os.environ.get("RANK", "0")) != 0:
            return None
        ratios = [[v for row in self._rows if (v := row["ratio"][i]) is not None] for i in range(len(self._steps))]
        record = Record(
            run_id=self._config.run_id,
            config=self._config.model_dump(),
            fingerprints={"initial": self._initial},
            diverged=None,
            history={RATIO: [sum(r) / len(r) if r else 0.0 for r in ratios]},
            metrics={RATIO: "lower"},
            layers=self._statistics.described(self._inputs),
            provenance=provenance(self._held[0][1].device, self._model),
            extra={"watched": {"steps": self._steps, "parameters": self._rows}},
        )
        if not self._folder.study_file.exists():
            self._folder.write_study(f'name = "{self._folder.path.name}"\nimported = "decaybench.watch"\n')
        self._folder.write(record)
        return record


def _is_decoupled(optimizer: Optimizer) -> bool:
    """Tells whether an optimizer decays beside the gradient's step."""
    if any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        return True
    return any(kind.__name__ in DECOUPLED for kind in type(optimizer).__mro__)


def _share(pull: float, rest: float) -> float | None:
    """Returns a quotient with three digits; None where nothing pulls."""
    if pull == rest == 0:
        return 0.0
    value = pull / rest if rest else math.inf
    return float(f"{value:.3g}") if math.isfinite(value) else None


def _config(optimizer: Optimizer, seed: int) -> ScriptConfig:
    """Makes the identity of a watched run: the program and its options, and the optimizer."""
    line = " ".join(sys.argv) or "python"
    source = digest(line)[:12]
    with contextlib.suppress(UsageError, ValueError):
        source = script_fingerprint(line)
    decay = max((float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups), default=0.0)
    kind = type(optimizer).__name__
    return ScriptConfig(script=line, source=source, strategy=Spec(name=kind), weight_decay=decay, seed=seed)
