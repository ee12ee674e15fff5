"""Explanations: each effect is the difference of two predictions, and touches nothing else."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rdkit import Chem

from medrec.config import TrainConfig
from medrec.data.dataset import PatientVisits, collate
from medrec.explain.atoms import atom_effects, fragment_places
from medrec.explain.drawing import fragment_svg, interaction_svg, molecule_svg, shade
from medrec.explain.fragments import (
    encoders_once,
    fragment_effects,
    fragment_masks,
    without_fragment,
)
from medrec.explain.occlusion import Omission, history_effects, last_scores, omissions
from medrec.explain.vectors import drug_vectors
from medrec.fitting import LearningData, build_learning_data, fit_context
from medrec.models import build_model
from medrec.molecules.encoders_2d import GINEncoder
from medrec.molecules.structure import brics_fragments

SIZES = {"d_model": 16, "dropout": 0.0}
GIN = {"representation": {"kind": "gin", "layers": 1, "dropout": 0.0}}
FINGERPRINT = {"representation": {"kind": "fingerprint"}}
FRAGMENT_MODELS = {
    "molerec": GIN,
    "bimorec": GIN,
    "safedrug": {},
    "mmm": FINGERPRINT,
}


@pytest.fixture(scope="module")
def data(synthetic) -> LearningData:
    return build_learning_data(synthetic[1], 0, None, molecules=True)


def build(data: LearningData, name: str, **model):
    config = TrainConfig.model_validate({"name": "t", "model": {"name": name, **SIZES, **model}})
    torch.manual_seed(0)
    built = build_model(config, fit_context(config, data).context)
    built.eval()
    return built


@pytest.fixture(scope="module")
def patient(data) -> PatientVisits:
    """A patient with three or more visits, each with a drug, a diagnosis and a procedure."""
    return next(
        visits
        for visits in data.dataset.values()
        if len(visits) > 2
        and all(len(c) for k in ("diagnoses", "procedures", "drugs") for c in getattr(visits, k))
    )


# --------------------------------------------------------------------------- history


def test_an_omission_takes_one_thing_and_leaves_the_patient_as_it_was(patient):
    code = int(patient.diagnoses[1][0])
    without = Omission(1, "diagnoses", code).apply(patient)
    assert code not in without.diagnoses[1]
    assert len(without.diagnoses[1]) == len(patient.diagnoses[1]) - 1
    assert code in patient.diagnoses[1]
    for kind in ("procedures", "drugs"):
        assert getattr(without, kind) == getattr(patient, kind)
    shorter = Omission(0, "visit").apply(patient)
    assert len(shorter) == len(patient) - 1
    assert np.array_equal(shorter.drugs[0], patient.drugs[1])
    assert np.array_equal(shorter.diagnoses[-1], patient.diagnoses[-1])


def test_everything_a_prediction_may_read_is_left_out_once(patient):
    found = omissions(patient)
    assert len(set(found)) == len(found)
    n_codes = sum(len(c) for k in ("diagnoses", "procedures") for c in getattr(patient, k))
    n_drugs = sum(len(codes) for codes in patient.drugs[:-1])
    assert len(found) == n_codes + n_drugs + len(patient) - 1
    last = len(patient) - 1
    assert not any(item.visit == last and item.kind in ("drugs", "visit") for item in found)


@pytest.mark.parametrize("name", ["retain", "safedrug"])
def test_effects_equal_predictions_made_one_by_one(data, patient, name):
    model, n_drugs = build(data, name), data.dataset.n_drugs
    left_out, effects, scores = history_effects(model, patient, n_drugs)
    assert np.abs(effects).max() > 1e-3
    full = model.predict(collate([patient], [0], n_drugs)).logits[0, -1].double().numpy()
    assert scores == pytest.approx(full, abs=1e-6)
    for item, effect in list(zip(left_out, effects, strict=True))[:: len(left_out) // 6]:
        alone = model.predict(collate([item.apply(patient)], [0], n_drugs)).logits[0, -1]
        assert effect == pytest.approx(full - alone.double().numpy(), abs=3e-5)


def test_codes_that_a_model_does_not_read_have_no_effect_at_all(data, patient):
    # LEAP reads the diagnoses of the current visit and nothing else
    left_out, effects, scores = history_effects(build(data, "leap"), patient, data.dataset.n_drugs)
    last = len(patient) - 1
    read = np.array([item.kind == "diagnoses" and item.visit == last for item in left_out])
    assert (effects[~read] == 0.0).all()
    assert (effects[read] != 0.0).any()
    # probabilities, as its set is decoded
    assert ((scores >= 0) & (scores <= 1)).all()


def test_drugs_of_earlier_visits_move_only_models_that_read_them(data, patient):
    for name, reads in (("retain", True), ("safedrug", False)):
        left_out, effects, _ = history_effects(build(data, name), patient, data.dataset.n_drugs)
        drugs = np.array([item.kind == "drugs" for item in left_out])
        assert (effects[drugs] != 0.0).any() == reads, name


# --------------------------------------------------------------------------- fragments


@pytest.mark.parametrize("name", sorted(FRAGMENT_MODELS))
def test_without_a_fragment_only_its_class_changes(data, patient, name):
    model = build(data, name, **FRAGMENT_MODELS[name])
    masks, n_drugs = fragment_masks(model), data.dataset.n_drugs
    assert masks
    drug = max(range(n_drugs), key=lambda d: len(masks[0].fragments(d)))
    fragments = masks[0].fragments(drug)
    assert fragments == torch.nonzero(data.context.molecules.fragment_mask[drug]).flatten().tolist()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    full = last_scores(model, [patient], n_drugs)[0]
    with without_fragment(model, masks, drug, fragments[0]):
        changed = last_scores(model, [patient], n_drugs)[0]
    others = np.arange(n_drugs) != drug
    if name == "bimorec":
        # its last layers mix the scores of all classes: others follow, the class itself moves
        assert changed[drug] != full[drug]
    else:
        assert np.abs(changed - full)[drug] > 1e-6
        assert changed[others] == pytest.approx(full[others], abs=1e-6)
    # and everything is as before
    assert np.array_equal(last_scores(model, [patient], n_drugs)[0], full)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_fragment_effects_equal_a_model_built_without_the_fragment(data, patient):
    model = build(data, "molerec", **GIN)
    masks, n_drugs = fragment_masks(model), data.dataset.n_drugs
    drug = max(range(n_drugs), key=lambda d: len(masks[0].fragments(d)))
    effects = fragment_effects(model, patient, drug)
    assert sorted(effects) == masks[0].fragments(drug)
    fragment = max(effects, key=lambda f: abs(effects[f]))
    full = last_scores(model, [patient], n_drugs)[0, drug]
    column = int((model.aggregate.fragment[drug] == fragment).nonzero())
    other = build(data, "molerec", **GIN)
    other.aggregate.present[drug, column] = False
    expected = full - last_scores(other, [patient], n_drugs)[0, drug]
    assert effects[fragment] == pytest.approx(expected, abs=1e-5)
    assert expected != 0.0


def test_graph_networks_run_once_and_are_given_back(data, patient, monkeypatch):
    model = build(data, "molerec", **GIN)
    calls = []
    forward = GINEncoder.forward
    monkeypatch.setattr(
        GINEncoder, "forward", lambda self, graphs: (calls.append(1), forward(self, graphs))[1]
    )
    with encoders_once(model):
        for _ in range(3):
            model.eval()
            last_scores(model, [patient], data.dataset.n_drugs)
    assert len(calls) == 2  # molecules and fragments
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("settings", [{"kind": "none"}, {"kind": "gin", "shuffle_seed": 1}])
def test_models_without_the_classes_own_molecules_say_nothing_of_fragments(data, settings):
    model = build(data, "molerec", representation={"layers": 1, **settings})
    assert fragment_masks(model) == []


def test_a_model_without_molecules_has_no_fragments(data, patient):
    model = build(data, "retain")
    assert fragment_masks(model) == []
    assert fragment_effects(model, patient, 0) == {}


# --------------------------------------------------------------------------- vectors


@pytest.mark.parametrize(
    ("name", "settings", "source"),
    [
        ("molerec", GIN, "molecules"),
        ("mmm", FINGERPRINT, "encoded"),
        ("safedrug", {}, "encoded"),
        ("depot", {}, "encoded"),
        ("retain", {}, "output"),
        ("leap", {}, "output"),
        ("gamenet", {}, "output"),
    ],
)
def test_every_kind_of_model_gives_one_vector_per_class(data, name, settings, source):
    found = drug_vectors(build(data, name, **settings))
    assert found is not None
    assert found.values.shape[0] == data.dataset.n_drugs
    assert found.values.shape[1] in (16, 32)  # gamenet's output reads two joined states
    assert source in found.source


def test_output_rows_are_the_drugs_and_not_the_end_token(data):
    model = build(data, "leap")
    expected = model.out.weight[: data.dataset.n_drugs].detach().double().numpy()
    assert np.array_equal(drug_vectors(model).values, expected)


def test_counting_models_have_no_vectors(data):
    config = TrainConfig.model_validate({"name": "t", "model": {"name": "topk"}})
    assert drug_vectors(build_model(config, data.context)) is None


# --------------------------------------------------------------------------- drawings

IBUPROFEN = "CC(C)Cc1ccc(C(C)C(=O)O)cc1"


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return root


def test_fragments_cover_every_atom_of_a_molecule_once():
    places = [
        atom
        for fragment in brics_fragments(IBUPROFEN)
        for atoms in fragment_places(IBUPROFEN, fragment)
        for atom in atoms
    ]
    assert sorted(places) == list(range(Chem.MolFromSmiles(IBUPROFEN).GetNumAtoms()))


def test_a_molecule_that_is_its_own_fragment_is_covered_whole():
    assert brics_fragments("CCO") == ["CCO"]
    assert fragment_places("CCO", "CCO") == [(0, 1, 2)]


def test_a_fragment_that_no_single_cut_gives_is_matched():
    # the ring has two places to cut, and the decomposition took them one after the other
    smiles, fragment = "CNC1(c2ccccc2Cl)CCCCC1=O", "[4*]C1([15*])CCCCC1=O"
    assert fragment in brics_fragments(smiles)
    assert fragment_places(smiles, fragment) == [(2, 10, 11, 12, 13, 14, 15)]


def test_a_fragment_of_another_molecule_is_nowhere():
    # it would match every chain of two carbon atoms
    assert "[4*]CC" in brics_fragments("CCOC")
    assert fragment_places("CCCCC", "[4*]CC") == []
    assert (atom_effects("CCCCC", {"[4*]CC": 1.0}) == 0.0).all()


def test_atoms_take_the_effect_of_their_fragment():
    acid = next(f for f in brics_fragments(IBUPROFEN) if "C(=O)O" in f or "O" in f)
    values = atom_effects(IBUPROFEN, {acid: -0.5})
    oxygens = [a.GetIdx() for a in Chem.MolFromSmiles(IBUPROFEN).GetAtoms() if a.GetSymbol() == "O"]
    assert (values[oxygens] == -0.5).all()
    assert (values == 0.0).any()


def test_drawings_are_whole_svg_elements():
    n_atoms = Chem.MolFromSmiles(IBUPROFEN).GetNumAtoms()
    plain = molecule_svg(IBUPROFEN, np.zeros(n_atoms))
    coloured = molecule_svg(IBUPROFEN, np.linspace(-1.0, 1.0, n_atoms))
    assert len(list(parse(coloured).iter())) > len(list(parse(plain).iter()))
    parse(fragment_svg("[16*]c1ccccc1", 0.2, 0.4))


def test_raised_is_blue_lowered_orange_and_nothing_white():
    assert shade(0.0) == (1.0, 1.0, 1.0)
    assert shade(1.0)[2] > shade(1.0)[0]
    assert shade(-1.0)[0] > shade(-1.0)[2]
    assert sum(shade(0.2)) > sum(shade(0.9))


def test_interactions_are_drawn_with_escaped_names():
    partners = [{"atc": f"A0{i}A", "name": "a<b & c", "severity": i} for i in range(5)]
    root = parse(interaction_svg(("B01A", "anti<thrombotic>"), partners))
    kinds = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert kinds.count("line") == 5
    assert kinds.count("rect") == 6
    parse(interaction_svg(("B01A", ""), []))
