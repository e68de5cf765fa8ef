"""The command ``decaybench run`` with its options; `compute` does the work."""

from pathlib import Path
from typing import Annotated, Any

import typer

from decaybench.console import guarded
from decaybench.registry import EXECUTORS, FAMILIES
from decaybench.study.study import read_study

Many = list[str] | None  # read by the study itself, which names the field, the value and what is allowed


COMPARED, TRAINED, SCRIPT = "What is compared", "How it is trained", "Your own script instead"
MACHINE, FILES = "Where it runs", "Study and files"


DEFAULT = read_study(None, {})


def _default(field: str) -> str:
    """Writes the value of a field in the default study, for the help; empty where it has none."""
    value = getattr(DEFAULT, field, None)
    texts = [getattr(v, "label", str(v)) for v in (value if isinstance(value, list | tuple) else [value])]
    return "" if texts == ["None"] else f" ({DEFAULT.name}: {', '.join(texts)})"


def _option(help: str, metavar: str = "NAME", panel: str = COMPARED, field: str = "") -> Any:
    """Makes an option; of a field of a study, the value of the default study is added to its help."""
    return typer.Option(help=help + (_default(field) if field else ""), metavar=metavar, rich_help_panel=panel)


def _names(family: str, example: str = "", panel: str = COMPARED) -> Any:
    """Makes an option that takes names of a family of the registry, and completes them in the shell."""
    names = list(FAMILIES[family])
    shown = ", ".join(names) + (f"; with options: {example}" if example else "") + _default(family)
    return typer.Option(
        help=shown,
        metavar="NAME",
        rich_help_panel=panel,
        autocompletion=lambda incomplete: [name for name in names if name.startswith(incomplete)],
    )


@guarded
def run(
    study: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="A built-in study or a TOML file; without it, digits."),
    ] = None,
    dataset: Annotated[Many, _names("dataset", panel=COMPARED)] = None,
    network: Annotated[Many, _names("network", panel=COMPARED)] = None,
    activation: Annotated[Many, _names("activation", "kaf,D=8", panel=COMPARED)] = None,
    strategy: Annotated[Many, _names("strategy", panel=COMPARED)] = None,
    penalty: Annotated[Many, _option("Of loss-penalty: l1, l2, elastic-net.", panel=COMPARED)] = None,
    alpha_optimizer: Annotated[Many, _option("Of two-optimizers: the second one's kind.", panel=COMPARED)] = None,
    alpha_lr: Annotated[
        Many, _option("Of two-optimizers: the second one's learning rate.", "RATE", panel=COMPARED)
    ] = None,
    seeds: Annotated[str | None, _option("Number of seeds.", "N", panel=COMPARED, field="seeds")] = None,
    first_seed: Annotated[
        str | None, _option("The first of them: 0, or one that no earlier study used.", "N", panel=COMPARED)
    ] = None,
    metric: Annotated[
        Many,
        _option("What is compared, the first one first, with its direction if need be: score:max.", panel=COMPARED),
    ] = None,
    minimize: Annotated[
        bool, typer.Option("--minimize", help="Less is better, for metrics of no known name.", rich_help_panel=COMPARED)
    ] = False,
    maximize: Annotated[
        bool, typer.Option("--maximize", help="More is better, for metrics of no known name.", rich_help_panel=COMPARED)
    ] = False,
    script: Annotated[
        str | None,
        _option("Your own training script, as you start it: 'python train.py --size small'.", "COMMAND", panel=SCRIPT),
    ] = None,
    arg: Annotated[
        Many, _option("An option of the script that varies; several values: give it again.", "K=V", panel=SCRIPT)
    ] = None,
    launcher: Annotated[
        str | None, _option("Instead of python: 'torchrun --nproc-per-node 8'.", "COMMAND", panel=SCRIPT)
    ] = None,
    until: Annotated[
        str | None, _option("Add seeds, up to --seeds, until differences are known to this.", "POINTS", panel=COMPARED)
    ] = None,
    primary: Annotated[
        str | None,
        _option(
            "The contrast asked for, not corrected for others: exclude-alpha, or exclude-alpha:loss.", panel=COMPARED
        ),
    ] = None,
    optimizer: Annotated[Many, _names("optimizer", "sgd,momentum=0", panel=TRAINED)] = None,
    schedule: Annotated[Many, _names("schedule", "cosine,warmup=1", panel=TRAINED)] = None,
    lr: Annotated[Many, _option("Learning rate; without it, the optimizer's default.", "RATE", panel=TRAINED)] = None,
    weight_decay: Annotated[Many, _option("λ of the strategy.", "DECAY", panel=TRAINED, field="weight_decay")] = None,
    epochs: Annotated[Many, _option("Passes over the training part.", "N", panel=TRAINED, field="epochs")] = None,
    batch_size: Annotated[Many, _option("Images per step.", "N", panel=TRAINED, field="batch_size")] = None,
    clip_norm: Annotated[
        Many,
        _option(
            "Clip the gradient's norm, joint over all optimizers; or none.", "NORM", panel=TRAINED, field="clip_norm"
        ),
    ] = None,
    augment: Annotated[Many, _option("none, flip, crop, crop-flip", panel=TRAINED, field="augment")] = None,
    validation: Annotated[
        Many, _option("Share of the training part held out.", "SHARE", panel=TRAINED, field="validation")
    ] = None,
    train_limit: Annotated[Many, _option("Use only so many training images; or none.", "N", panel=TRAINED)] = None,
    split: Annotated[
        Many, _option("fixed, or seed: each seed divides the whole data set anew.", panel=TRAINED, field="split")
    ] = None,
    precision: Annotated[Many, _option("float32, tf32, bfloat16", panel=TRAINED, field="precision")] = None,
    loss: Annotated[Many, _names("loss", "cross-entropy,smoothing=0.1", panel=TRAINED)] = None,
    device: Annotated[str, _option("auto, cpu, cuda, cuda:1, mps", panel=MACHINE)] = "auto",
    executor: Annotated[str, _option(", ".join(("auto", *EXECUTORS)), panel=MACHINE)] = "auto",
    workers: Annotated[
        str, _option("Processes; auto is one per core, one for a script.", "N|auto", panel=MACHINE)
    ] = "auto",
    gpus_per_run: Annotated[
        int, typer.Option(min=0, metavar="N", help="GPUs that each run of a script sees.", rich_help_panel=SCRIPT)
    ] = 0,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Then a run of a script is ended.", rich_help_panel=SCRIPT),
    ] = None,
    slurm: Annotated[Many, _option("Of Slurm, by submitit's names: slurm_partition=gpu.", "K=V", panel=SCRIPT)] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Between checkpoints.", rich_help_panel=MACHINE)
    ] = 60.0,
    patience: Annotated[
        float,
        typer.Option(
            min=1.0, metavar="SECONDS", help="Silence after which a worker counts as hung.", rich_help_panel=MACHINE
        ),
    ] = 600.0,
    ray_address: Annotated[str, _option("Of the Ray cluster.", "auto|ADDRESS", panel=MACHINE)] = "auto",
    ray_gpus: Annotated[
        float, typer.Option(min=0.0, metavar="N", help="GPUs for each job, 0.25 say.", rich_help_panel=MACHINE)
    ] = 0.0,
    results: Annotated[Path, _option("Folder of all studies.", "DIR", panel=FILES)] = Path("results"),
    name: Annotated[str | None, _option("Folder of this study in it.", panel=FILES)] = None,
    data_dir: Annotated[Path | None, _option("Where data sets are, or are downloaded to.", "DIR", panel=FILES)] = None,
    keep_weights: Annotated[
        bool,
        typer.Option("--keep-weights", help="Write the weights of each run, too (safetensors).", rich_help_panel=FILES),
    ] = False,
    tensorboard: Annotated[
        Path | None, _option("Write what epochs give for TensorBoard, too.", "DIR", panel=FILES)
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="End the study with the first run that fails.", rich_help_panel=FILES)
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.", rich_help_panel=FILES)] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete this study's results first.", rich_help_panel=FILES)
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.", rich_help_panel=FILES)] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="No progress, only the table and what goes wrong.", rich_help_panel=FILES),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="A line for each run.", rich_help_panel=FILES)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Train identical networks under several strategies and tabulate what changed.

    What is compared and how it is trained may be given several times: a list, and the study is the grid.

    Runs that are finished are kept: the same command again computes only what is missing.

    Example: decaybench run --strategy decay-all --strategy exclude-alpha --weight-decay 0.01
    """
    given = dict(locals())
    from decaybench.cli.compute import compute  # takes half a second, which --help need not wait for

    compute(given)
