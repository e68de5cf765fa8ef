"""Names, options, studies and run identity; what is wrong is said in one sentence."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decaybench.errors import UsageError
from decaybench.registry import ACTIVATIONS
from decaybench.registry.spec import Spec, parse
from decaybench.study.config import RunConfig
from decaybench.study.study import builtin_studies, read_study, to_toml
from helpers import REPOSITORY, one, tiny

names = st.sampled_from(["kaf", "prelu", "relu", "leaky-relu"])
rates = st.floats(1e-6, 10, allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(
    activation=st.lists(names, min_size=1, max_size=4),
    lr=st.lists(rates, min_size=1, max_size=3),
    weight_decay=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    seeds=st.integers(1, 4),
    clip_norm=st.lists(st.one_of(st.none(), rates), min_size=1, max_size=2),
    strategy=st.lists(st.sampled_from(["decay-all", "loss-penalty,penalty=l1", "proximal-l1"]), min_size=1),
)
def test_grid_is_the_product_without_repetitions_and_survives_its_file(
    activation, lr, weight_decay, seeds, clip_norm, strategy
) -> None:
    study = tiny(
        activation=activation, lr=lr, weight_decay=weight_decay, seeds=seeds, clip_norm=clip_norm, strategy=strategy
    )
    runs = study.runs()
    lists = (activation, lr, weight_decay, clip_norm, strategy)
    expected = seeds
    for values in lists:
        expected *= len(set(values))
    assert len(runs) == expected == len({r.run_id for r in runs})
    again = _through_toml(to_toml(study))
    assert [r.run_id for r in again] == [r.run_id for r in runs]


def _through_toml(text: str) -> list[RunConfig]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.toml"
        path.write_text(text, "utf-8")
        return read_study(str(path), {}).runs()


def test_run_id_is_the_same_in_another_process() -> None:
    code = "from helpers import one; print(one(activation='kaf,D=8', lr=0.1).run_id)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY / "tests", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == one(activation="kaf,D=8", lr=0.1).run_id


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "synthetic,samples=201"},
        {"network": "mlp,width=17"},
        {"activation": "prelu,shared=true"},
        {"strategy": "decay-all"},
        {"optimizer": "sgd,momentum=0"},
        {"schedule": "cosine"},
        {"lr": 0.049},
        {"weight_decay": 0.1},
        {"epochs": 3},
        {"batch_size": 63},
        {"clip_norm": 1.0},
        {"augment": "flip"},
        {"validation": 0.2},
        {"train_limit": 50},
        {"precision": "bfloat16"},
        {"loss": "cross-entropy,smoothing=0.1"},
        {"split": "seed"},
    ],
    ids=str,
)
def test_everything_that_decides_the_numbers_is_in_the_id(change) -> None:
    assert one(**change).run_id != one().run_id


def test_every_field_of_a_run_is_in_the_test_above() -> None:
    tested = test_everything_that_decides_the_numbers_is_in_the_id.pytestmark[0].args[1]
    assert {key for change in tested for key in change} == set(RunConfig.model_fields) - {"seed", "training_version"}


def test_writing_out_a_default_is_the_same_run() -> None:
    assert one(activation="prelu,init=0.25").run_id == one(activation="prelu").run_id
    assert one(activation={"name": "prelu", "init": 0.25}).run_id == one().run_id


def test_the_control_runs_once_whatever_the_decays() -> None:
    runs = tiny(strategy=["no-decay", "decay-all"], activation="prelu", weight_decay=[0.1, 0.2, 0.3]).runs()
    assert sorted((r.strategy.name, r.weight_decay) for r in runs) == [
        ("decay-all", 0.1),
        ("decay-all", 0.2),
        ("decay-all", 0.3),
        ("no-decay", 0.0),
    ]


def test_seeds_are_outermost_so_that_an_interrupted_study_is_balanced() -> None:
    assert [r.seed for r in tiny(seeds=2, activation="prelu").runs()] == [0] * 5 + [1] * 5


def test_shorthands_set_the_option_where_there_is_one() -> None:
    study = tiny(strategy=["decay-all", "loss-penalty"], penalty=["l1", "l2"])
    assert [s.label for s in study.strategy] == ["decay-all", "loss-penalty,penalty=l1", "loss-penalty"]
    with pytest.raises(UsageError, match="it belongs to two-optimizers"):
        tiny(strategy="decay-all", alpha_lr=0.1)


def test_a_shorthand_in_a_file_waits_for_a_strategy_that_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("strategy = 'loss-penalty'\npenalty = 'l1'\n")
    assert read_study(str(path), {}).strategy[0].label == "loss-penalty,penalty=l1"
    assert read_study(str(path), {"strategy": "decay-all"}).strategy[0].label == "decay-all"


def test_any_option_value_survives_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def data(path, n): ...\n")
    study = tiny(dataset={"name": "mine.py:data", "path": "a,b=c", "n": "1"})
    assert study.dataset[0].options == {"path": "a,b=c", "n": "1"}
    Path("again.toml").write_text(to_toml(study))
    assert read_study("again.toml", {}).dataset == study.dataset


def test_a_list_in_a_table_is_one_spec_each() -> None:
    labels = [s.label for s in parse("activation", {"name": "kaf", "D": [8, 20], "kernel": ["gaussian", "softplus"]})]
    assert labels == ["kaf,D=8", "kaf,D=8,kernel=softplus", "kaf", "kaf,kernel=softplus"]


def test_each_optimizer_has_its_learning_rate() -> None:
    runs = tiny(optimizer=["sgd", "adamw"], strategy="decay-all", activation="prelu").runs()
    assert [r.lr for r in runs] == [0.05, 0.001]


def test_options_make_another_study_with_a_folder_of_its_own() -> None:
    plain, more_seeds = read_study(None, {}), read_study(None, {"seeds": 9})
    other, again = (read_study(None, {"dataset": ["fashion-mnist"]}) for _ in range(2))
    assert plain.name == more_seeds.name == "digits"
    assert other.name == again.name != "digits"
    assert other.name.startswith("fashion-mnist-")
    assert read_study(None, {"dataset": ["fashion-mnist"], "name": "mine"}).name == "mine"


def test_builtin_studies_are_valid() -> None:
    for name in builtin_studies():
        assert read_study(name, {}).runs()


def test_own_code_is_another_run_when_its_file_changes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = set()
    for body in ("x = 1", "x = 2"):
        Path("mine.py").write_text(f"{body}\ndef act(channels, beta=1.0): ...\n")
        ids.add(one(activation="mine.py:act,beta=2").run_id)
        assert one(activation="mine.py:act,beta=2").activation.options == {"beta": 2}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategy": "exclude-alfa"}, "Unknown strategy 'exclude-alfa': did you mean 'exclude-alpha'?"),
        ({"activation": "PRELU"}, "did you mean 'prelu'?"),
        ({"activation": "zzz"}, f"It is one of: {', '.join(ACTIVATIONS)}."),
        ({"activation": "kaf,d=3"}, "Unknown option of kaf 'd': did you mean 'D'?"),
        ({"activation": "kaf,D=1"}, "activation kaf, option D = '1': input should be greater than or equal to 2."),
        ({"activation": "kaf,D=many"}, "option D = 'many': input should be a valid integer"),
        ({"activation": "kaf,kernel=cubic"}, "option kernel = 'cubic': input should be 'gaussian', 'relu' or"),
        ({"activation": "kaf,kernel=relu,init=elu"}, "the relu kernel's matrix is singular"),
        ({"activation": "kaf,D"}, "'D' is not key=value"),
        ({"activation": 3}, "neither a name nor a table"),
        ({"optimizer": "sgd,momentum=0,nesterov=true"}, "nesterov needs a momentum above 0"),
        ({"optimizer": "timm:"}, "should match pattern"),
        ({"dataset": "nowhere:f"}, "Cannot find 'nowhere' of 'nowhere:f'"),
        ({"dataset": "nowhere.py:f"}, "no such file"),
        ({"weight_decay": -1}, "weight_decay = -1: input should be greater than or equal to 0."),
        ({"weight_decay": float("nan")}, "weight_decay = nan: input should be a finite number."),
        ({"lr": "fast"}, "lr = 'fast': input should be a valid number"),
        ({"epochs": 0}, "epochs = 0: input should be greater than 0."),
        ({"epochs": True}, "epochs = true: a truth value is not allowed here."),
        ({"epochs": []}, "a study needs at least one epochs"),
        ({"seeds": 0}, "seeds = 0: input should be greater than or equal to 1."),
        ({"validation": 1.0}, "validation = 1.0: input should be less than 1."),
        ({"augment": "mixup"}, "augment = 'mixup': input should be 'none', 'flip', 'crop' or 'crop-flip'."),
        ({"name": "../../x"}, "name = '../../x': a name becomes a folder"),
        ({"name": "<script>"}, "a name becomes a folder"),
        ({"leraning_rate": 1}, "Unknown field of a study 'leraning_rate'"),
    ],
    ids=str,
)
def test_bad_fields_are_named_with_what_is_allowed(overrides, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        tiny(**overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = = 3\n", "at line 1, column 10"),
        ("dataset = 'digits'\nepochs = [1, 'x']\n", "epochs = 'x': input should be a valid integer"),
        ("epoch = 3\n", "Unknown field of s.toml 'epoch': did you mean 'epochs'?"),
        ("\xff", "not valid TOML"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        read_study("s.toml", {})
    assert message in str(caught.value)
    assert "s.toml" in str(caught.value)


def test_missing_files_and_unknown_studies(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"There is no study file 'x.toml'"):
        read_study("x.toml", {})
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        read_study("digit", {})


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        specs = parse("activation", text)
    except UsageError:
        return
    assert all(isinstance(s, Spec) for s in specs)


@given(
    D=st.integers(2, 256),
    boundary=st.floats(0.01, 1e3),
    kernel=st.sampled_from(["gaussian", "relu", "softplus"]),
)
def test_a_label_reads_back_as_itself(D: int, boundary: float, kernel: str) -> None:
    (spec,) = parse("activation", {"name": "kaf", "D": D, "boundary": boundary, "kernel": kernel})
    assert parse("activation", spec.label) == [spec]
    assert json.loads(spec.model_dump_json())["options"]["D"] == D


def test_a_study_may_begin_at_another_seed(tmp_path: Path) -> None:
    study = tiny(seeds=2, first_seed=5, activation="prelu", strategy="decay-all")
    assert [run.seed for run in study.runs()] == [5, 6]
    path = tmp_path / "s.toml"
    path.write_text(to_toml(study))
    assert read_study(str(path), {}).runs() == study.runs()
    assert "first_seed" not in to_toml(tiny(seeds=2))
    assert study.grid_id() == tiny(seeds=2, activation="prelu", strategy="decay-all").grid_id()
