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

from medrec.config import BimodalPretrainConfig, EncoderConfig, RepresentationConfig
from medrec.data.schema import Vocabulary
from medrec.models.representations import Representation
from medrec.molecules.drugs import pool_molecules
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.fragment_conformers import build_fragment_conformers
from medrec.molecules.geometries import Conformer
from medrec.molecules.structure import brics_fragments, build_graphs, build_molecule_tables
from medrec.pretrain import data as pretrain_data
from medrec.pretrain.bimodal import (
    PARTS,
    BimodalEncoder,
    contrastive_loss,
    nt_xent,
    retrieval_accuracy,
)
from medrec.pretrain.data import Structures
from medrec.pretrain.loop import PretrainData, build_data, export_encoder, fit
from quantum.base import InputError
from quantum.conformers import embed
from quantum.molecule import Species, species_from_smiles
from quantum.schema import ConformerSpec
from quantum.units import BOHR_IN_ANGSTROM

SMILES = ("CCO", "CC(=O)O", "c1ccccc1", "NC(N)=O", "CCN", "OCC(O)CO")
FRAGMENTS = ("[4*]CC", "[3*]O[3*]", "[16*]c1ccccc1", "[1*]C(=O)C", "[5*]N[5*]", "[8*]CO")


def placed(text: str) -> Conformer:
    species = species_from_smiles(text)
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    return Conformer(np.array(species.atomic_numbers), coords * BOHR_IN_ANGSTROM)


def make_data(smiles: tuple[str, ...] = SMILES) -> PretrainData:
    fragments = build_fragment_conformers(FRAGMENTS, 0)
    return PretrainData(
        Structures(smiles, tuple(placed(text) for text in smiles), 4.5),
        Structures(tuple(fragments.smiles), tuple(fragments.conformers), 4.5),
        {"n_molecules": len(smiles)},
    )


def make_config(epochs: int = 6, dropout: float = 0.2, **options: Any) -> BimodalPretrainConfig:
    encoder = EncoderConfig(
        d_model=16,
        gin_layers=2,
        gvp_layers=1,
        dropout=dropout,
        gvp_dropout=dropout / 2,
        head_dropout=dropout,
        n_rbf=8,
    )
    return BimodalPretrainConfig(
        name="t", encoder=encoder, epochs=epochs, lr_step_epochs=3, **options
    )


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


def test_a_repeated_row_would_be_its_own_negative():
    vectors = torch.eye(4)[:3]
    once = nt_xent(vectors, vectors, 0.1)
    twice = nt_xent(vectors.repeat(2, 1), vectors.repeat(2, 1), 0.1)
    assert once.item() < -5  # the positive is not in the denominator
    assert twice.item() > -0.1


def test_the_loss_is_the_sum_of_both_parts():
    rows, _ = run(make_config(epochs=2))
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_molecule"] + row["loss_fragment"], abs=1e-5)
        assert row["loss_molecule"] != row["loss_fragment"]


def test_batches_hold_every_molecule_and_fragment_once():
    seen: dict[str, list[int]] = {"molecules": [], "fragments": []}
    data = make_data()
    for name, part in (("molecules", data.molecules), ("fragments", data.fragments)):
        original = part.batch

        def note(index, name=name, original=original):
            seen[name] += index
            return original(index)

        part.batch = note
    fit(make_config(epochs=1, batch_size=3), data, report=lambda row, make: None)
    assert sorted(seen["molecules"]) == sorted(seen["fragments"]) == list(range(6))


def test_too_few_structures_for_the_workers_are_refused():
    with pytest.raises(InputError, match="6 molecules in a batch for 4 workers"):
        fit(make_config(), make_data(), report=lambda row, make: None, world_size=4)


def test_the_loss_falls_and_the_best_state_is_a_copy():
    rows, states = run(make_config(epochs=20, dropout=0.0))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    best = min(row["loss"] for row in rows)
    assert states[-1]["best_loss"] == pytest.approx(best)
    name = "gin_molecule.atoms.table.weight"
    assert not torch.equal(states[0]["best"][name], states[-1]["best"][name])


def test_the_best_state_is_not_the_live_weights():
    """A learning rate that ruins the loss after the first epoch: best stays that epoch's."""
    finals: list[dict[str, Any]] = []

    def report(row, make_state):
        finals.append(make_state())

    config = make_config(epochs=4, dropout=0.0).model_copy(update={"lr": 5.0})
    last = fit(config, make_data(), report=report)
    name = "gvp_fragment.read_out.scalars.weight"
    assert last["best_loss"] == min(state["best_loss"] for state in finals)
    assert not torch.equal(last["best"][name], last["model"][name])
    best_epoch = [state["best_loss"] for state in finals].index(last["best_loss"])
    assert torch.equal(finals[best_epoch]["best"][name], last["best"][name])


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


def test_stage_two_starts_with_the_embeddings_of_stage_one(tmp_path):
    """Weights and batch-norm buffers of both 2D encoders, through a checkpoint file."""
    config = make_config(epochs=2)
    _, states = run(config)
    torch.save(export_encoder(config, states[-1]["best"]), tmp_path / "best.pt")
    exported = torch.load(tmp_path / "best.pt", weights_only=True)
    stage_one = BimodalEncoder(config.encoder).eval()
    stage_one.load_state_dict(states[-1]["best"])
    running = exported["gin_fragment"]["layers.0.norm.running_mean"]
    assert not torch.equal(running, torch.zeros_like(running))
    drugs = pool_molecules([("A", "CCO"), ("B", "CC(=O)Nc1ccc(O)cc1")], Vocabulary(("A", "B")))
    tables = build_molecule_tables(drugs, None)
    source = Representation(RepresentationConfig(layers=2), tables, 16)
    source.load_pretrained(exported)
    source.eval()
    with torch.no_grad():
        assert torch.equal(source.molecules(), stage_one.gin_molecule(tables.molecules))
        assert torch.equal(source.fragments(), stage_one.gin_fragment(tables.fragments))
    assert not torch.equal(
        exported["gin_molecule"]["atoms.table.weight"],
        exported["gin_fragment"]["atoms.table.weight"],
    )


def test_the_four_encoders_share_no_weight_and_are_all_exported():
    config = make_config(epochs=1)
    model = BimodalEncoder(config.encoder)
    addresses = [p.data_ptr() for p in model.parameters()]
    assert len(set(addresses)) == len(addresses)
    exported = export_encoder(config, model.state_dict())
    for part in PARTS:
        getattr(BimodalEncoder(config.encoder), part).load_state_dict(exported[part])
    assert exported["encoder"] == {"d_model": 16, "gin_layers": 2}
    assert exported["encoder_3d"]["gvp_layers"] == 1
    assert isinstance(model.gin_fragment, GINEncoder)


# --------------------------------------------------------------------------- structures


class Table:
    """A feature table of which only conformers are read."""

    class folder:
        name = "table"

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored = stored

    def rows(self, species: list[Species]) -> np.ndarray:
        self.names = [item.smiles for item in species]
        found = [i if name in self.stored else -1 for i, name in enumerate(self.names)]
        return np.array(found)

    def conformer(self, row: int) -> Any:
        return self.stored[self.names[row]][:2]


PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"


def species_of(*smiles: str) -> list[Species]:
    return [species_from_smiles(text) for text in smiles]


def test_structures_are_unique_and_what_is_left_out_is_counted(monkeypatch):
    listed = species_of("CCO", PARACETAMOL, "CCO", "OCC", "NC(N)=O", "CCN")
    table = Table({text: placed(text) for text in ("CCO", PARACETAMOL, "NC(N)=O")})
    fragments = {
        item for text in ("CCO", PARACETAMOL, "NC(N)=O", "CCN") for item in brics_fragments(text)
    }
    refused = "NC(N)=O"

    def conformer(smiles: str, seed: int) -> Any:
        if smiles == refused:
            raise InputError("no geometry")
        return original(smiles, seed)

    original = pretrain_data.build_fragment_conformers.__globals__["fragment_conformer"]
    monkeypatch.setitem(
        pretrain_data.build_fragment_conformers.__globals__, "fragment_conformer", conformer
    )
    data = build_data(listed, table, 4.5)
    assert data.molecules.smiles == tuple(sorted(("CCO", PARACETAMOL, "NC(N)=O")))
    assert len(data.fragments) == len(fragments) - 1
    assert data.facts["molecules_without_conformer"] == 1
    assert data.facts["fragments_without_conformer"] == 1
    assert data.facts["missing_fragments"] == {refused: "no geometry"}
    assert sum(data.facts["fragment_conformers"].values()) == data.facts["n_fragments"]
    graphs, geometries = data.molecules.batch([0, 1, 2])
    assert graphs.n_graphs == geometries.n_graphs == 3
    assert len(graphs.x) == len(geometries.atoms)  # heavy atoms of both views
    # a fragment without a conformer stays a fragment of the recommender
    drugs = pool_molecules([("A", refused), ("B", "CCO")], Vocabulary(("A", "B")))
    assert refused in build_molecule_tables(drugs, None).fragment_smiles


def test_a_drawing_in_the_table_is_refused():
    good = placed("CCO")
    flat = good._replace(coords_angstrom=np.asarray(good.coords_angstrom) * [1, 1, 0])
    stored = {"CCO": flat, "CCN": placed("CCN"), "NC(N)=O": placed("NC(N)=O")}
    with pytest.raises(InputError, match="drawing"):
        build_data(species_of(*stored), Table(stored), 4.5)
    stored["CCO"] = placed("CCN")
    with pytest.raises(InputError, match="other elements"):
        build_data(species_of(*stored), Table(stored), 4.5)
    with pytest.raises(InputError, match="0 molecules with a conformer in table"):
        build_data(species_of("CCO", "CCN"), Table({}), 4.5)


def test_both_views_of_a_molecule_number_atoms_alike():
    data = make_data()
    graphs, geometries = build_graphs(SMILES), data.molecules.batch(range(6))[1]
    assert torch.equal(graphs.batch, geometries.batch)


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
ours = list(range(rank, len(data), world))
found = wrapped(*data.molecules.batch(ours), *data.fragments.batch(ours))
flat, spatial, flat_part, spatial_part = (gather(item, world) for item in found)
loss = contrastive_loss(flat, spatial, 0.1, symmetric=False)
loss = loss + contrastive_loss(flat_part, spatial_part, 0.1, symmetric=False)
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
