"""Scripts of other libraries under a study: transformers, Lightning, accelerate, torchrun. Everything here is real."""

import json
import os
import shlex
from pathlib import Path

import pytest
from conftest import Cli

TRAINER = """
import os

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import decaybench
from decaybench.trials.hugging_face import TrialCallback


class Words(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.ids = rng.integers(1, 8, (count, 12))
        self.labels = ((self.ids == 1).sum(1) > (self.ids == 2).sum(1)).astype(int)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
model = BertForSequenceClassification(BertConfig(vocab_size=8, num_labels=2, **small))
model.bert.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.PReLU()

trial = decaybench.trial(model)
seed = int(os.environ.get("OTHER_SEED") or decaybench.run_seed())
trainer = Trainer(
    model,
    TrainingArguments("out", num_train_epochs=2, eval_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True,
                      seed=seed, disable_tqdm=True, per_device_train_batch_size=32, gradient_accumulation_steps=2),
    train_dataset=Words(256, 0),
    eval_dataset=Words(128, 1),
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    optimizers=(trial.optimizer(torch.optim.AdamW, lr=1e-3), None),
    callbacks=[TrialCallback(trial)],
)
trainer.train()
predicted = trainer.predict(Words(200, 2))
trial.finish(test_correct=predicted.predictions.argmax(-1) == predicted.label_ids)
"""
LIGHTNING = """
import lightning as L
import torch
from torch import nn

import decaybench
from decaybench.trials.lightning_callback import TrialCallback


class Regressor(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.PReLU(16), nn.Linear(16, 1))
        self.trial = decaybench.trial(self)

    def training_step(self, batch, _):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_mse", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.trial.optimizer(torch.optim.Adam, lr=1e-2)


def data(count, seed):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(x, x.square().sum(1, keepdim=True))


module = Regressor()
trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=1.0,
                    enable_progress_bar=False, enable_model_summary=False, callbacks=[TrialCallback(module.trial)])
trainer.fit(module, torch.utils.data.DataLoader(data(256, 0), 32, shuffle=True),
            torch.utils.data.DataLoader(data(128, 1), 128))
x, y = data(200, 2).tensors
module.trial.finish(test_mse=(module.net(x) - y).detach().squeeze(1).square())
"""
ACCELERATE = """
import torch
from accelerate import Accelerator
from torch import nn

import decaybench

accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(4, 16), nn.PReLU(16), nn.Linear(16, 1))
trial = decaybench.trial(model)
optimizer = trial.optimizer(torch.optim.AdamW, lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)
x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
y = x.relu().sum(1, keepdim=True)
for epoch in range(3):
    for index in torch.randperm(256).split(32):
        loss = nn.functional.mse_loss(model(x[index]), y[index]) + trial.penalty()
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        trial.after_step()
    trial.log(epoch, train_mse=loss)
trial.finish(test_mse=nn.functional.mse_loss(model(x), y))
"""
DISTRIBUTED = """
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import decaybench

dist.init_process_group("gloo")
rank = dist.get_rank()
model = nn.Sequential(nn.Linear(4, 16), nn.PReLU(16), nn.Linear(16, 1))
trial = decaybench.trial(model)
optimizer = trial.optimizer(torch.optim.SGD, lr=1e-2)
parallel = DistributedDataParallel(model)
x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))[rank::2]
y = x.relu().sum(1, keepdim=True)
for epoch in range(3):
    for index in torch.arange(128).split(32):
        loss = nn.functional.mse_loss(parallel(x[index]), y[index]) + trial.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.after_step()
total = loss.detach().clone()
dist.all_reduce(total)
trial.finish(test_mse=total / 2)
print(f"rank {rank} of {dist.get_world_size()} is done")
dist.destroy_process_group()
"""
STRATEGIES = ["decay-all", "exclude-alpha", "loss-penalty", "proximal-l1"]


def studied(cli: Cli, folder: Path, code: str, *options: str) -> list[dict]:
    (folder / "train.py").write_text(code)
    chosen = [word for strategy in STRATEGIES for word in ("--strategy", strategy)]
    done = cli("run", "--script", "python train.py", *chosen, "--weight-decay", "0.5", "--name", "s", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(cli("report", "results/s", "--format", "json").stdout)
    assert {row["strategy"] for row in rows} == set(STRATEGIES)
    slopes = {row["strategy"]: row["alpha_mean"] for row in rows}
    same = "SGD" in code  # under which the penalty and the groups are one method
    assert (slopes["loss-penalty"] == pytest.approx(slopes["exclude-alpha"], rel=1e-5)) == same
    assert len({slopes[name] for name in STRATEGIES if name != "loss-penalty"}) == len(STRATEGIES) - 1
    return rows


@pytest.mark.slow
def test_transformers_trainer(cli: Cli, tmp_path: Path) -> None:
    rows = studied(cli, tmp_path, TRAINER, "--seeds", "1", "--workers", "2")
    assert all(row["test_accuracy"] is not None for row in rows)
    environment = {**os.environ, "OTHER_SEED": "42", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = cli(*shlex.split("run --script 'python train.py' --weight-decay 0.7 --seeds 1 --name t"), env=environment)
    assert "TrainingArguments(seed=42): the study asks for seed 0; give decaybench.run_seed()" in done.stderr
    assert done.returncode == 1


@pytest.mark.slow
def test_lightning(cli: Cli, tmp_path: Path) -> None:
    rows = studied(cli, tmp_path, LIGHTNING, "--seeds", "1", "--workers", "2")
    assert all(row["test_mse"] is not None for row in rows)
    assert "validation_mse" in cli("report", "results/s", "--metric", "validation_mse").stdout.replace(" ", "_")


@pytest.mark.slow
def test_accelerate(cli: Cli, tmp_path: Path) -> None:
    rows = studied(cli, tmp_path, ACCELERATE, "--seeds", "1", "--workers", "2")
    assert all(row["test_mse"] is not None for row in rows)


@pytest.mark.slow
def test_two_processes_of_torchrun_give_one_record(cli: Cli, tmp_path: Path) -> None:
    launcher = "torchrun --standalone --nproc-per-node 2"
    rows = studied(cli, tmp_path, DISTRIBUTED, "--seeds", "1", "--launcher", launcher)
    assert all(row["seeds"] == 1 for row in rows)
    outputs = [path.read_text() for path in (tmp_path / "results" / "s" / "output").glob("*.txt")]
    assert len(outputs) == len(STRATEGIES)
    assert all("rank 0 of 2 is done" in text and "rank 1 of 2 is done" in text for text in outputs)
    records = [json.loads(path.read_text()) for path in (tmp_path / "results" / "s" / "runs").glob("*.json")]
    assert len(records) == len(STRATEGIES)
    assert {record["provenance"]["processes"] for record in records} == {2}
    assert len({record["fingerprints"]["initial"] for record in records}) == 1
