"""Which strategies are one method: provably the same updates, under the optimizer and the clipping of a run.

Each line of `SAME` is measured by ``decaybench verify`` and by the tests of it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from decaybench.registry.strategies import STRATEGIES

# Optimizers whose weight_decay adds λw to the gradient, as the gradient of ½λ‖w‖² does.
COUPLED = ("sgd", "adam", "rmsprop")
FIXED = ("relu", "leaky-relu")  # activations in which nothing is learned, unless relu has a gain


class Circumstances(NamedTuple):
    """What decides whether two strategies are the same.

    Attributes:
        optimizer: Name of the optimizer.
        clipped: Whether gradients are clipped by their joint norm, which a penalty enters and a decay does not.
        learned: Whether there are activation parameters.
        decay: λ.
        own_network: Whether the network is a user's own, which may hold parameters without a gradient: an optimizer
            does not decay these, a penalty does. It may also hold activation parameters of its own.
    """

    optimizer: str
    clipped: bool
    learned: bool
    decay: float
    own_network: bool

    @property
    def penalty_is_decay(self) -> bool:
        """Whether a penalty's gradient does what the optimizer's weight_decay does."""
        return self.optimizer in COUPLED and not self.clipped and not self.own_network


Options = Mapping[str, Any]
Same = Callable[[Options, Circumstances], str | None]


def _l2(options: Options) -> bool:
    return bool(options["penalty"] == "l2" or (options["penalty"] == "elastic-net" and options["l1_ratio"] == 0))


def _loss_penalty(options: Options, c: Circumstances) -> str | None:
    if not _l2(options) or not c.penalty_is_decay:
        return None
    return {"all": "decay-all", "weights": "exclude-alpha", "activation": "alpha-only"}[options["on"]]


def _two_optimizers(options: Options, c: Circumstances) -> str | None:
    plain = options["alpha_optimizer"] in (None, c.optimizer) and options["alpha_lr"] is None
    return "exclude-alpha" if plain or not c.learned else None


# Of each strategy, the simpler one that it is, or None.
SAME: Mapping[str, Same] = {
    "loss-penalty": _loss_penalty,
    "two-optimizers": _two_optimizers,
    "exclude-alpha": lambda options, c: None if c.learned else "decay-all",
    "decay-to-init": lambda options, c: None if c.learned else "decay-all",
    "alpha-only": lambda options, c: None if c.learned else "no-decay",
}
# Strategies that do nothing at λ = 0, whatever their options.
NOTHING_AT_ZERO = (
    *("decay-all", "exclude-alpha", "loss-penalty", "exclude-1d", "exclude-bias", "exclude-norm-bias", "alpha-only"),
    *("proximal-l1", "decay-to-init"),
)


def method_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the method of a run: the name and options of the simplest strategy that it provably is.

    Args:
        config: A run's configuration, as a record holds it.
    """
    strategy, clip = config["strategy"], config.get("clip_norm")
    if "script" in config:  # its optimizer and what it does with gradients are not known
        nothing = strategy["name"] in NOTHING_AT_ZERO and config["weight_decay"] == 0
        return ("no-decay", "[]") if nothing else (strategy["name"], str(sorted(strategy["options"].items())))
    own = bool(config["network"].get("source"))
    activation = config["activation"]
    fixed = activation["name"] in FIXED and not activation["options"].get("gain")
    learned = own or not fixed  # a network of one's own may hold slopes itself
    c = Circumstances(config["optimizer"]["name"], clip is not None, learned, config["weight_decay"], own)
    name, options = strategy["name"], strategy["options"]
    if strategy.get("source") or name not in STRATEGIES or config["optimizer"].get("source"):
        return name, str(sorted(options.items()))
    while name in SAME and (simpler := SAME[name](options, c)):
        name, options = simpler, {}
    if c.decay == 0 and name in NOTHING_AT_ZERO:
        name, options = "no-decay", {}
    return name, str(sorted(options.items()))
