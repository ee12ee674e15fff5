"""Representations of molecules behind a recommender, and the two null tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medrec.config import RepresentationConfig, TrainConfig
from medrec.fitting import LearningData, build_learning_data
from medrec.loading import validate_config
from medrec.models import build_model
from medrec.models.representations import InteractInput, Representation, derangement, owners
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.encoders_interact import InteractEncoder
from medrec.molecules.geometries import build_geometries
from medrec.molecules.structure import MoleculeTables, conformer_geometries
from quantum.base import ConfigError, InputError

KINDS = ("gin", "molinteract", "elf", "fingerprint", "gin_elf", "none")
RECOMMENDERS = ("molerec", "bimorec", "mmm")
SIZES = {"layers": 2, "dropout": 0.0}


def with_features(tables: MoleculeTables, seed: int = 0) -> MoleculeTables:
    """Made-up features and positions, each missing for some molecules."""
    generator = torch.Generator().manual_seed(seed)
    n = len(tables.elf_mask)
    mask = torch.arange(n) % 3 > 0
    kept = torch.arange(n) % 4 > 0
    conformers = []
    for molecule in torch.nonzero(kept).flatten():
        numbers = tables.molecules.x[tables.molecules.batch == molecule, 0]
        conformers.append((numbers, 2.5 * torch.randn(len(numbers), 3, generator=generator)))
    return replace(
        tables,
        elf=torch.randn(n, 5, generator=generator) * mask.unsqueeze(1),
        elf_mask=mask,
        geometries=build_geometries(conformers, 4.5),
        with_geometry=kept,
    )


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    _, cohort = synthetic
    plain = build_learning_data(cohort, 0, None, molecules=True)
    molecules = with_features(plain.context.molecules)
    return replace(plain, context=replace(plain.context, molecules=molecules))


@pytest.fixture(scope="module")
def tables(data) -> MoleculeTables:
    return data.context.molecules


def model_of(
    data: LearningData,
    tables: MoleculeTables | None = None,
    name: str = "molerec",
    seed: int = 0,
    **representation,
):
    config = TrainConfig.model_validate(
        {
            "name": "t",
            "model": {
                "name": name,
                "d_model": 16,
                "dropout": 0.0,
                "representation": {**SIZES, **representation},
            },
        }
    )
    torch.manual_seed(seed)
    context = data.context if tables is None else replace(data.context, molecules=tables)
    return build_model(config, context)


def built(tables: MoleculeTables, **settings) -> Representation:
    torch.manual_seed(0)
    return Representation(RepresentationConfig(**{**SIZES, **settings}), tables, 8)


@pytest.mark.parametrize("fragments", ["gnn", "table"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECOMMENDERS)
def test_every_kind_takes_a_step_that_reaches_every_parameter(name, kind, fragments, data):
    batch = data.dataset.collate(list(data.dataset.patients)[:16])
    silent: set[str] | None = None
    for seed in range(3):  # with one seed, all units of a narrow layer may be off for every visit
        model = model_of(data, name=name, seed=seed, kind=kind, fragments=fragments)
        model.train()
        model.loss(batch, model(batch, model.encode_drugs())).total.backward()
        still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        silent = still if silent is None else silent & still
    # with one fragment per drug, attention to fragments is 1 whatever the drug's vector is
    idle = ("representation.molecule_encoder", "aggregate.", "molecule_attention.")
    assert {part for part in silent if kind != "none" or not part.startswith(idle)} == set()
    before = [p.detach().clone() for p in model.parameters()]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", RECOMMENDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_is_repeatable_and_encodes_once(kind, name, data, monkeypatch):
    model = model_of(data, name=name, kind=kind, dropout=0.5)
    calls = []
    encode = model.representation.molecules
    monkeypatch.setattr(model.representation, "molecules", lambda: calls.append(1) or encode())
    batch = data.dataset.collate(list(data.dataset.patients)[:4])
    first, second = (model.predict(batch).probs for _ in range(2))
    assert torch.equal(first, second)
    assert len(calls) == 1
    model.train()
    assert torch.equal(model.predict(batch).probs, first)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_owners(kind, tables):
    part = built(tables, kind=kind)
    n_drugs, n_molecules = tables.projection.shape
    n_fragments = tables.fragments.n_graphs
    if kind == "none":
        n_molecules = n_fragments = n_drugs
    assert part.molecules().shape == (n_molecules, 8)
    assert part.fragments().shape == (n_fragments, 8)
    assert part.drugs().shape == (n_drugs, 8)
    assert torch.allclose(part.drugs(), part.projection @ part.molecules())
    assert part.fragment_mask.shape == (n_drugs, n_fragments)


# --------------------------------------------------------------------------- null tests


def reversed_tables(tables: MoleculeTables) -> MoleculeTables:
    """Every class with the molecules of another, and other features."""
    return replace(
        with_features(tables, seed=9),
        projection=tables.projection.flip(0),
        fragment_mask=tables.fragment_mask.flip(0),
        fingerprints=1.0 - tables.fingerprints,
    )


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_without_molecules_nothing_of_them_is_left(name, data, tables):
    batch = data.dataset.collate(list(data.dataset.patients)[:4])
    others = reversed_tables(tables)
    same = [model_of(data, own, name, kind="none").predict(batch).probs for own in (tables, others)]
    assert torch.equal(*same)
    for kind in set(KINDS) - {"none"}:
        found = [
            model_of(data, own, name, kind=kind).predict(batch).probs for own in (tables, others)
        ]
        assert not torch.allclose(*found, atol=1e-6), kind
    part = built(tables, kind="none")
    identity = torch.eye(len(tables.projection))
    assert torch.equal(part.projection, identity)
    assert torch.equal(part.fragment_mask, identity > 0)


@pytest.mark.parametrize("n", [2, 3, 12, 131])
def test_a_derangement_leaves_nothing_in_its_place(n):
    orders = [derangement(n, seed) for seed in range(200)]
    for order in orders:
        assert not (order == torch.arange(n)).any()
        assert torch.equal(order.sort().values, torch.arange(n))
    assert torch.equal(derangement(n, 7), orders[7])
    if n > 2:
        assert len({tuple(order.tolist()) for order in orders}) > 1


def test_three_classes_have_two_derangements_that_are_equally_likely():
    firsts = [int(derangement(3, seed)[0]) for seed in range(400)]
    assert 150 < firsts.count(1) < 250


def test_shuffling_moves_molecules_and_fragments_together(tables):
    config = RepresentationConfig(kind="gin", shuffle_seed=3)
    projection, mask = owners(config, tables)
    order = derangement(len(projection), 3)
    assert torch.equal(projection, tables.projection[order])
    assert torch.equal(mask, tables.fragment_mask[order])
    assert not torch.equal(projection, tables.projection)
    one = replace(tables, projection=tables.projection[:1], fragment_mask=tables.fragment_mask[:1])
    with pytest.raises(InputError, match="1 drug class cannot be shuffled"):
        owners(config, one)


@pytest.mark.parametrize("name", RECOMMENDERS)
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"none"}))
def test_shuffled_predictions_differ_from_the_real_ones(kind, name, data):
    batch = data.dataset.collate(list(data.dataset.patients)[:4])
    real, null = (
        model_of(data, name=name, kind=kind, shuffle_seed=seed).predict(batch).probs
        for seed in (None, 1)
    )
    assert not torch.allclose(real, null, atol=1e-6)


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("elf", "feature table"), ("gin_elf", "feature table"), ("molinteract", "conformer")],
)
def test_kinds_that_read_features_refuse_without(kind, expected, tables):
    bare = replace(tables, elf=tables.elf[:, :0], geometries=None)
    with pytest.raises(InputError, match=expected):
        built(bare, kind=kind)


def test_conformers_with_other_atoms_than_the_smiles_do_not_count():
    class Drugs(list):
        smiles = ("CCO", "CO", "[H][H]")
        species = (None,) * 3

    class Features:
        found = (([6, 6, 8, 1], [[0.0, 0, i] for i in range(4)]), ([8, 6], [[0.0, 0, 0]] * 2))

        def rows(self, species):
            return [0, 1, 2]

        def conformer(self, row):
            return self.found[row] if row < 2 else ([1, 1], [[0.0, 0, 0], [0, 0, 0.7]])

    geometries, present = conformer_geometries(Drugs("abc"), Features())
    assert present.tolist() == [True, False, False]
    assert len(geometries.element) == 3


# --------------------------------------------------------------------------- starting weights


@pytest.mark.parametrize("kind", ["gin", "gin_elf"])
def test_graph_networks_start_from_a_run(kind, tables):
    torch.manual_seed(4)
    source = GINEncoder(8, 2, 0.0)
    state = {
        "gin_molecule": source.state_dict(),
        "encoder": {"d_model": 8, "gin_layers": 2},
    }
    part = built(tables, kind=kind)
    part.load_pretrained(state)
    part.eval()
    source.eval()
    assert torch.equal(part.fragments(), source(tables.fragments))
    if kind == "gin":
        assert torch.equal(part.molecules(), source(tables.molecules))
    with pytest.raises(InputError, match="'gin_molecule'"):
        part.load_pretrained(InteractEncoder(8, 2).export())


def test_molinteract_starts_from_its_own_checkpoint(tables):
    torch.manual_seed(4)
    source = InteractEncoder(8, 2)
    part = built(tables, kind="molinteract")
    fragments = part.fragments()
    part.load_pretrained(source.export())
    assert isinstance(part.molecule_encoder, InteractInput)
    for name, value in source.state_dict().items():
        assert torch.equal(part.molecule_encoder.towers.state_dict()[name], value), name
    assert torch.equal(part.fragments(), fragments)
    with pytest.raises(InputError, match="'interact'"):
        part.load_pretrained({"gin_molecule": {}, "encoder": {}})


@pytest.mark.parametrize("kind", ["elf", "fingerprint", "none"])
def test_kinds_without_a_molecule_network_refuse_a_run(kind, tables):
    state = {"gin_molecule": {}, "encoder": {"d_model": 8, "gin_layers": 2}}
    with pytest.raises(InputError, match="no molecule encoder"):
        built(tables, kind=kind).load_pretrained(state)


@pytest.mark.parametrize(
    ("old", "new"),
    [("gnn_layers", "layers"), ("use_elf", "kind"), ("feature_sets", "feature_sets")],
)
def test_settings_of_earlier_versions_say_where_they_are_now(old, new):
    tree = {"name": "x", "model": {"name": "molerec", old: 1}}
    with pytest.raises(ConfigError, match=rf"'{old}' is now 'representation\.{new}"):
        validate_config(tree, TrainConfig, "f.yaml")
