"""Contrastive pre-training: the loss by hand, resume, copies, two processes equal one."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from medrec.config import BimodalPretrainConfig, EncoderConfig
from medrec.molecules.encoders_2d import GINEncoder
from medrec.pretrain.bimodal import contrastive_loss, nt_xent, retrieval_accuracy
from medrec.pretrain.loop import PretrainData, export_encoder, fit
from quantum.conformers import embed
from quantum.molecule import species_from_smiles
from quantum.schema import ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM

SMILES = ("CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO")


def make_data(smiles: tuple[str, ...] = SMILES) -> PretrainData:
    conformers = []
    for text in smiles:
        species = species_from_smiles(text)
        coords, _ = embed(species, ConformerSpec(n_conformers=1))
        conformers.append((np.array(species.atomic_numbers), coords * BOHR_IN_ANGSTROM))
    return PretrainData(smiles, tuple(conformers), 4.5)


def make_config(epochs: int = 6, dropout: float = 0.2) -> BimodalPretrainConfig:
    encoder = EncoderConfig(d_model=16, gin_layers=2, gvp_layers=1, dropout=dropout, n_rbf=8)
    return BimodalPretrainConfig(name="t", encoder=encoder, epochs=epochs, lr_step_epochs=3)


def run(config: BimodalPretrainConfig, resume: dict[str, Any] | None = None, stop: int = 99):
    rows, states = [], []

    def report(metrics: dict[str, Any], make_state: Any) -> None:
        rows.append(metrics)
        states.append(make_state())
        if metrics["epoch"] == stop:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        fit(config, make_data(), report=report, resume=resume)
    return rows, states


def test_nt_xent_by_hand():
    flat = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    spatial = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    half = 1 / math.sqrt(2)
    # row 0: positive 1, negative cos 45 degrees; row 1: positive cos 45 degrees, negative 0
    expected = ((half - 1.0) + (0.0 - half)) / 2 / 0.5
    assert nt_xent(flat, spatial, 0.5).item() == pytest.approx(expected, abs=1e-6)
    both = contrastive_loss(flat, spatial, 0.5, symmetric=True).item()
    other = nt_xent(spatial, flat, 0.5).item()
    assert both == pytest.approx((expected + other) / 2, abs=1e-6)
    assert retrieval_accuracy(flat, spatial) == 1.0


def test_the_loss_falls_and_the_best_state_is_a_copy():
    rows, states = run(make_config(epochs=20, dropout=0.0))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    best = min(row["loss"] for row in rows)
    assert states[-1]["best_loss"] == pytest.approx(best)
    first_best = states[0]["best"]["gin.atoms.table.weight"]
    assert not torch.equal(first_best, states[-1]["best"]["gin.atoms.table.weight"])


def test_three_and_three_epochs_equal_six():
    whole, whole_states = run(make_config())
    _, half_states = run(make_config(), stop=2)
    rest, rest_states = run(make_config(), resume=half_states[-1])
    assert [row["epoch"] for row in rest] == [3, 4, 5]
    assert [r["loss"] for r in rest] == [r["loss"] for r in whole[3:]]
    for name, value in whole_states[-1]["model"].items():
        assert torch.equal(value, rest_states[-1]["model"][name]), name


def test_a_state_loads_with_the_restricted_unpickler(tmp_path):
    _, states = run(make_config(epochs=1))
    torch.save(states[-1], tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    rows, _ = run(make_config(epochs=2), resume=loaded)
    assert [row["epoch"] for row in rows] == [1]


def test_export_carries_batch_norm_buffers():
    config = make_config(epochs=2)
    _, states = run(config)
    exported = export_encoder(config, states[-1]["best"])
    encoder = GINEncoder(16, 2, 0.2)
    encoder.load_state_dict(exported["gin_molecule"])
    running = encoder.layers[0].norm.running_mean
    assert not torch.equal(running, torch.zeros_like(running))


WORKER = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {folder!r})
from test_pretrain import make_config, make_data
from medrec.pretrain.loop import gather
from medrec.pretrain.bimodal import BimodalEncoder, contrastive_loss
rank, world = int(sys.argv[1]), int(sys.argv[2])
if world > 1:
    place = "file://" + sys.argv[3]
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
config = make_config(dropout=0.0)
torch.manual_seed(0)
model = BimodalEncoder(config.encoder)
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm1d | torch.nn.Dropout):
        module.eval()
wrapped = DistributedDataParallel(model) if world > 1 else model
data = make_data()
flat, spatial = wrapped(*data.batch(list(range(rank, len(data), world))))
flat, spatial = gather(flat, world), gather(spatial, world)
loss = contrastive_loss(flat, spatial, 0.1, symmetric=False)
loss.backward()
norm = sum(p.grad.double().pow(2).sum() for p in model.parameters() if p.grad is not None)
print(f"{{loss.item():.8f}} {{norm.sqrt().item():.8f}}", flush=True)
"""


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path, root):
    code = WORKER.format(folder=str(root / "tests" / "unit" / "medrec"))

    def start(rank: int, world: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(rank), str(world), str(tmp_path / "rendezvous")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    one = start(0, 1).communicate(timeout=120)[0].split()
    workers = [start(0, 2), start(1, 2)]
    two = [worker.communicate(timeout=120)[0].split() for worker in workers]
    for values in two:
        assert float(values[0]) == pytest.approx(float(one[0]), abs=1e-5)
        assert float(values[1]) == pytest.approx(float(one[1]), rel=1e-5)
