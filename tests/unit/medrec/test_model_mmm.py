"""MMM: its branches, features keyed by species, missing and hidden maps, and its batched step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medrec.config import TrainConfig
from medrec.data.dataset import collate
from medrec.fitting import LearningData, build_learning_data
from medrec.loading import load_config, validate_config
from medrec.models import build_model
from medrec.models.mmm import MMM, Bipartite
from medrec.models.representations import FeatureInput, hidden_maps
from medrec.molecules.features import FeatureTable
from quantum.base import ConfigError, InputError

N_FEATURES = {"elf": 3, "density": 2}


def make_table(cohort, folder, order: str = "given", without: int = 3) -> FeatureTable:
    """A table with a row for every species of the cohort; the last rows have no features."""
    species = build_learning_data(cohort, 0, None, molecules=True).drugs.species
    n, k = len(species), sum(N_FEATURES.values())
    values = np.random.default_rng(0).normal(size=(n, k)).astype(np.float32)
    mask = np.arange(n) < n - without
    values[~mask] = 0.0
    rows = np.arange(n) if order == "given" else np.random.default_rng(1).permutation(n)
    keys = pd.DataFrame({"species_key": [species[row].key for row in rows]})
    return FeatureTable(
        folder,
        {"feature_sets": N_FEATURES, "n_species": n},
        keys,
        values[rows],
        mask[rows],
        np.zeros(n + 1, np.int64),
        np.zeros(0, np.int16),
        np.zeros((0, 3), np.float32),
    )


@pytest.fixture(scope="module")
def data(synthetic, tmp_path_factory) -> LearningData:
    _, cohort = synthetic
    table = make_table(cohort, tmp_path_factory.mktemp("table"))
    return build_learning_data(cohort, 0, table, molecules=True)


def make(data: LearningData, *, seed: int = 0, ddi: bool = False, **model: object) -> MMM:
    representation = {"kind": "elf", **model.pop("representation", {})}
    config = TrainConfig.model_validate(
        {
            "name": "t",
            "model": {
                "name": "mmm",
                "d_model": 8,
                "dropout": 0.0,
                "representation": representation,
                **model,
            },
            "loss": {"gate": "mmm", "ddi_target": 0.01, "gate_kp": 1.0},
        }
    )
    context = data.context
    if ddi:  # half of all pairs interact, so that the gate is partly open
        torch.manual_seed(5)
        upper = torch.triu((torch.rand(context.ddi.shape) < 0.5).float(), 1)
        context = replace(context, ddi=upper + upper.T)
    torch.manual_seed(seed)
    built = build_model(config, context)
    assert isinstance(built, MMM)
    return built


def probs(model: MMM, data: LearningData) -> torch.Tensor:
    return model.predict(data.dataset.collate(list(data.dataset.patients)[:12])).probs


VARIANTS: dict[str, dict[str, object]] = {
    "full": {},
    "plain": {"match": "plain"},
    "trained": {"features": "trained"},
    "wo_elf": {"use_global": False},
    "wo_bipartite": {"use_local": False},
    "none": {"representation": {"kind": "none"}},
    "fingerprint": {"representation": {"kind": "fingerprint"}},
    "hidden": {"representation": {"hide_share": 0.5}},
}


@pytest.mark.parametrize("variant", ["full", "plain", "trained", "wo_elf", "wo_bipartite"])
def test_the_number_of_parameters_is_the_arithmetic_one(data: LearningData, variant: str):
    model, tables, d = make(data, **VARIANTS[variant]), data.context.molecules, 8
    n_codes = data.context.n_diagnoses + data.context.n_procedures
    n_drugs, n_fragments = tables.fragment_mask.shape
    n_molecules, n_features = tables.elf.shape
    assert tables.fragment_mask.any(dim=1).all()
    patient = n_codes * d + 2 * (2 * 3 * d * d + 2 * 3 * d) + (2 * d * d + d)
    first = n_features * d + d + d  # with the vector of missing maps
    second = d * d + d
    whole = first + second + (n_drugs * n_drugs + n_drugs) + 2 * n_drugs
    local = d * n_fragments + n_fragments + int(tables.fragment_mask.sum())
    norms = 2 * d if variant in ("plain", "wo_elf") else 4 * d
    expected = {
        "full": patient + whole + local + norms,
        "plain": patient + whole + local,
        "trained": patient + whole + local + norms + n_molecules * n_features,
        "wo_elf": patient + local + norms,
        "wo_bipartite": patient + whole + norms,
    }
    assert sum(p.numel() for p in model.parameters()) == expected[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(data: LearningData, variant: str):
    model = make(data, **VARIANTS[variant])
    batch = data.dataset.collate(list(data.dataset.patients)[:24])
    model.loss(batch, model(batch, model.encode_drugs())).total.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_ablations_and_options_differ(data: LearningData):
    # free features start at the measured ones: the same prediction before training
    found = {n: probs(make(data, **v), data) for n, v in VARIANTS.items() if n != "trained"}
    names = list(found)
    for i, name in enumerate(names):
        for other in names[:i]:
            assert not torch.allclose(found[name], found[other], atol=1e-4), (name, other)


def test_logits_are_the_product_of_both_branches(data: LearningData):
    whole, local, both = (make(data, **VARIANTS[n]) for n in ("wo_bipartite", "wo_elf", "full"))
    state = both.state_dict()
    for part in (whole, local):
        own = part.state_dict()
        part.load_state_dict({name: state[name] for name in own})
    batch = data.dataset.collate(list(data.dataset.patients)[:6])
    product = whole.predict(batch).logits * local.predict(batch).logits
    assert torch.allclose(both.predict(batch).logits, product, atol=1e-6)


def test_a_class_without_a_fragment_is_not_left_at_one_half():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    torch.manual_seed(0)
    layer = Bipartite(5, mask)
    assert layer.importance.out_features == 3 + 2
    assert len(layer.weight) == 3 + 2
    query = torch.randn(7, 5)
    scores = layer(query)
    assert scores.shape == (7, 4)
    assert (scores != 0).all()
    # each of the two moves by itself
    with torch.no_grad():
        place = int(torch.nonzero(layer.drug == 1))
        layer.weight[place] += 1.0
    moved = (layer(query) - scores).abs().sum(dim=0) > 0
    assert moved.tolist() == [False, True, False, False]


def test_the_sparse_local_branch_equals_the_masked_linear_layer(data: LearningData):
    mask = data.context.molecules.fragment_mask
    torch.manual_seed(0)
    layer = Bipartite(5, mask)
    dense = torch.full(mask.T.shape, 7.0)  # whatever is outside the mask does not count
    dense[layer.fragment, layer.drug] = layer.weight.detach()
    query = torch.randn(3, 5)
    expected = torch.sigmoid(layer.importance(query)) @ (dense * mask.T)
    assert torch.allclose(layer(query), expected, atol=1e-6)


# --------------------------------------------------------------------------- features and species


def test_the_order_of_the_table_changes_nothing(synthetic, tmp_path, data: LearningData):
    _, cohort = synthetic
    shuffled = build_learning_data(
        cohort, 0, make_table(cohort, tmp_path, "shuffled"), molecules=True
    )
    assert torch.equal(probs(make(data), data), probs(make(shuffled), shuffled))


def test_a_missing_map_shifts_no_other_row(data: LearningData):
    """The released code drops the row of a drug without maps; all later ones then move up."""
    model, tables = make(data), data.context.molecules
    reader = model.representation.molecule_encoder
    before = reader(tables)
    fewer = tables.elf_mask.clone()
    first = int(torch.nonzero(fewer)[0])
    fewer[first] = False
    after = reader(replace(tables, elf_mask=fewer))
    changed = (before != after).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [first]
    missing = after[~fewer]
    assert len(missing) == 4
    assert torch.equal(missing, reader.missing.expand_as(missing))


def test_the_shared_vector_is_learned_behind_the_activation(data: LearningData):
    model = make(data)
    reader = model.representation.molecule_encoder
    before = reader.missing.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = data.dataset.collate(list(data.dataset.patients)[:12])
    model.loss(batch, model(batch, model.encode_drugs())).total.backward()
    optimiser.step()
    assert not torch.equal(reader.missing, before)


def test_feature_sets_are_read_by_name(synthetic, tmp_path):
    _, cohort = synthetic
    table = make_table(cohort, tmp_path)
    chosen = build_learning_data(cohort, 0, table, molecules=True, feature_sets=("density",))
    assert chosen.context.molecules.elf.shape[1] == N_FEATURES["density"]
    make(chosen)
    with pytest.raises(InputError, match=r"no sets \['esp'\], expected some of: elf, density"):
        build_learning_data(cohort, 0, table, molecules=True, feature_sets=("esp",))


def test_only_the_global_branch_asks_for_a_feature_table(synthetic):
    _, cohort = synthetic
    bare = build_learning_data(cohort, 0, None, molecules=True)
    with pytest.raises(InputError, match="expected --features NAME"):
        make(bare)
    make(bare, use_global=False)
    make(bare, representation={"kind": "fingerprint"})


def test_free_features_move_and_frozen_ones_do_not(data: LearningData):
    frozen, free = make(data), make(data, features="trained")
    tables, measured = data.context.molecules, data.context.molecules.elf.clone()
    # the same sequence of random numbers: equal but for what is trained
    assert torch.equal(probs(frozen, data), probs(free, data))
    reader = free.representation.molecule_encoder
    assert torch.equal(reader.free, measured)
    optimiser = torch.optim.SGD(free.parameters(), lr=1.0)
    free.train()
    batch = data.dataset.collate(list(data.dataset.patients)[:12])
    free.loss(batch, free(batch, free.encode_drugs())).total.backward()
    optimiser.step()
    moved = (reader.free != measured).any(dim=1)
    assert moved.any()
    assert not moved[~tables.elf_mask].any()
    assert torch.equal(tables.elf, measured)


# --------------------------------------------------------------------------- hidden maps


def test_hidden_maps_are_nested_seeded_and_among_the_measured():
    mask = torch.arange(40) % 5 > 0

    def hidden(share: float, seed: int = 3) -> torch.Tensor:
        torch.manual_seed(seed)
        found = hidden_maps(mask, share)
        assert found is not None
        return found

    quarter, half, all_of_them = hidden(0.25), hidden(0.5), hidden(1.0)
    assert [int(h.sum()) for h in (quarter, half, all_of_them)] == [8, 16, 32]
    assert (half | ~quarter).all()
    assert torch.equal(all_of_them, mask)
    assert torch.equal(hidden(0.5), half)
    assert not torch.equal(hidden(0.5, seed=4), half)
    assert hidden_maps(mask, 0.0) is None
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    hidden_maps(mask, 0.5)
    assert torch.equal(torch.rand(2), expected)


def test_a_hidden_map_is_not_read_and_comes_back_with_the_checkpoint(data: LearningData):
    tables = data.context.molecules
    model = make(data, representation={"hide_share": 0.5})
    reader = model.representation.molecule_encoder
    assert isinstance(reader, FeatureInput)
    hidden = tables.elf_mask & ~reader.present(tables)
    assert int(hidden.sum()) == round(0.5 * int(tables.elf_mask.sum()))
    other = replace(tables, elf=torch.where(hidden.unsqueeze(1), 99.0, tables.elf))
    assert torch.equal(reader(tables), reader(other))
    again = make(data, seed=8, representation={"hide_share": 0.5})
    assert not torch.equal(again.representation.molecule_encoder.hidden, reader.hidden)
    again.load_state_dict(model.state_dict())
    assert torch.equal(probs(again, data), probs(model, data))


def test_with_every_map_hidden_the_features_do_not_matter(data: LearningData):
    model = make(data, representation={"hide_share": 1.0})
    reference = probs(model, data)
    doubled = replace(data.context.molecules, elf=2.0 * data.context.molecules.elf)
    model.representation.tables = doubled
    model.train()  # forget the encoding
    assert torch.equal(probs(model, data), reference)


# --------------------------------------------------------------------------- a plain step


@pytest.mark.parametrize("variant", ["full", "plain", "trained", "wo_elf", "wo_bipartite"])
def test_saved_and_loaded_predicts_the_same(data: LearningData, variant: str, tmp_path):
    model = make(data, **VARIANTS[variant])
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = make(data, seed=9, **VARIANTS[variant])
    assert not torch.equal(probs(other, data), probs(model, data))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(probs(other, data), probs(model, data))


def plain_logits(model: MMM, visits) -> torch.Tensor:
    """Logits of the last of some visits (D,), written out as in the paper."""
    states = []
    for bag, gru, codes in (
        (model.history.diagnoses, model.history.gru_diagnoses, visits.diagnoses),
        (model.history.procedures, model.history.gru_procedures, visits.procedures),
    ):
        sums = [bag.table.weight[torch.from_numpy(c)].sum(dim=0) for c in codes]
        states.append(gru(torch.stack(sums).unsqueeze(0))[0][0, -1])
    query = model.query(torch.cat(states))
    tables, reader = model.context.molecules, model.representation.molecule_encoder
    classes = []
    for owned in tables.projection:
        rows = []
        for molecule in owned.nonzero().flatten().tolist():
            first = reader.missing
            if tables.elf_mask[molecule]:
                first = reader.project.weight @ tables.elf[molecule] + reader.project.bias
            rows.append(model.molecule_head[1](torch.relu(first)))
        classes.append(torch.stack(rows).mean(dim=0))
    match = torch.sigmoid(torch.stack(classes) @ query)
    whole = torch.nn.functional.layer_norm(
        match + model.mix(match), match.shape, model.norm.weight, model.norm.bias
    )
    importance = torch.sigmoid(model.bipartite.importance(query))
    local = []
    for drug in range(len(match)):
        own = model.bipartite.drug == drug
        parts = importance[model.bipartite.fragment[own]] * model.bipartite.weight[own]
        local.append(parts.sum())
    return whole * torch.stack(local)


def plain_loss(model: MMM, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss of one visit, with torch's margin loss and loops over pairs."""
    values, ddi = torch.sigmoid(logits), model.context.ddi
    positive = target.nonzero().flatten()
    places = torch.full((len(target),), -1)
    places[: len(positive)] = positive
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    margin = torch.nn.functional.multilabel_margin_loss(values, places)
    prediction = 0.95 * bce + 0.05 * margin
    chosen = [i for i, p in enumerate(values.tolist()) if p >= 0.5]
    pairs = [(a, b) for a in chosen for b in chosen if a < b]
    rate = sum(float(ddi[a, b]) for a, b in pairs) / max(len(pairs), 1)
    alpha = max(0.0, 1.0 - max(0.0, rate - 0.01) / 1.0)
    interaction = 5e-4 * (ddi * torch.outer(values, values)).sum()
    return alpha * prediction + (1.0 - alpha) * interaction


def test_a_batched_loss_and_its_gradient_equal_the_plain_ones(data: LearningData):
    """The mean over all prefixes of a patient, each computed by itself."""
    model = make(data, ddi=True, match="plain")
    patient = max(data.dataset.patients, key=lambda p: len(data.dataset.patients[p]))
    visits = data.dataset.patients[patient]
    batch = collate([visits], [0], data.dataset.n_drugs)
    terms = model.loss(batch, model(batch, model.encode_drugs()))
    assert 0.0 < float(terms.parts["gate"]) < 1.0
    losses = []
    for t in range(1, len(visits) + 1):
        prefix = type(visits)(
            visits.diagnoses[:t], visits.procedures[:t], visits.drugs[:t], visits.n_unseen[:t]
        )
        target = torch.zeros(data.dataset.n_drugs)
        target[torch.from_numpy(prefix.drugs[-1])] = 1.0
        losses.append(plain_loss(model, plain_logits(model, prefix), target))
    reference = torch.stack(losses).mean()
    assert float(terms.total.detach()) == pytest.approx(float(reference.detach()), abs=1e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(terms.total, parameters)
    theirs = torch.autograd.grad(reference, parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


# --------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"use_global": False, "use_local": False}, "expected one branch or both"),
        ({"features": "trained", "representation": {"kind": "gin"}}, "'elf' or 'gin_elf'"),
        ({"representation": {"hide_share": 1.5}}, "less than or equal to 1"),
    ],
)
def test_contradictions_are_refused(model: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        validate_config({"name": "t", "model": {"name": "mmm", **model}}, TrainConfig, "t.yaml")


def test_shipped_configurations(root):
    found = {p.stem: load_config(p, TrainConfig) for p in root.glob("configs/papers/mmm*.yaml")}
    assert len(found) == 9
    for name, config in found.items():
        assert (config.name, config.model.name, config.loss.gate) == (name, "mmm", "mmm")
    read = {
        name: config.model.representation.feature_sets
        for name, config in found.items()
        if config.model.use_global and config.model.representation.kind == "elf"
    }
    elf = ("elf", "elements", "basins")
    assert read.pop("mmm") == read.pop("mmm_wo_bipartite") == elf
    assert read == {
        "mmm_volume": ("volume_cnn",),
        "mmm_slices": ("slice_cnn",),
        "mmm_density": ("density",),
        "mmm_lol": ("lol",),
        "mmm_esp": ("esp",),
    }
