"""Vectors of molecules from exported encoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem

from medrec.config_molecules import MoleculeEncoderConfig
from medrec.library.build import encode_smiles
from medrec.library.loader import collate
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.encoders import build_encoder
from medrec.properties.embed import embed
from quantum.base import InputError

SMILES = ["CCO", "c1ccccc1O", "OCC", "C", "[Na+].[Cl-]", "CC(=O)Nc1ccc(O)cc1", "O=C(O)CCC"]
MODALITY = {
    "molinteract": "both",
    "two_towers": "both",
    "gine": "2d",
    "schnet": "3d",
    "visnet": "3d",
}


def encoder(kind: Any, **changes: Any) -> MoleculeEncoder:
    torch.manual_seed(1)
    config = MoleculeEncoderConfig(kind=kind, d_model=16, layers=2, **changes)
    return build_encoder(config, MODALITY[kind]).eval()


def vectors(frame: pd.DataFrame) -> np.ndarray:
    return frame.filter(regex=r"^v\d+$").to_numpy()


@pytest.mark.parametrize("kind", ["molinteract", "two_towers", "gine"])
def test_vectors_are_means_of_the_2d_states(kind: str) -> None:
    trained = encoder(kind)
    found = embed(SMILES, trained.export())
    network = build_encoder(trained.config, "2d").eval()
    network.load_pretrained(trained.export())
    library = encode_smiles(SMILES)
    assert vectors(found).shape == (len(SMILES), 16)
    assert vectors(found).dtype == np.float32
    for row in range(len(SMILES)):
        batch = collate(library, np.array([row]))
        with torch.no_grad():
            flat = network(batch).flat
        assert flat is not None
        np.testing.assert_allclose(vectors(found)[row], flat[0].mean(dim=0).numpy(), atol=1e-5)
    assert np.ptp(vectors(found), axis=0).max() > 0.01


def test_a_single_tower_needs_no_other_to_give_its_states() -> None:
    """The 2D tower of a pair is the whole of its 2D vectors."""
    pair = encoder("two_towers")
    config = MoleculeEncoderConfig(kind="gine", d_model=16, layers=2)
    single = embed(SMILES, pair.export(), encoder=config)
    np.testing.assert_array_equal(vectors(single), vectors(embed(SMILES, pair.export())))


@pytest.mark.parametrize(
    ("kind", "width"), [("molinteract", 32), ("two_towers", 32), ("schnet", 16), ("visnet", 16)]
)
def test_conformers_give_the_states_of_the_3d_view_too(kind: str, width: int) -> None:
    trained = encoder(kind)
    smiles = [text for text in SMILES if "." not in text]
    found = embed(smiles, trained.export(), conformers=True)
    assert vectors(found).shape == (len(smiles), width)
    library = encode_smiles(smiles, conformers=True)
    assert library.arrays["placed"].all()
    batch = collate(library, np.arange(len(smiles)))
    with torch.no_grad():
        expected = trained.pooled(trained(batch), batch)
    np.testing.assert_allclose(vectors(found), expected.numpy(), atol=1e-5)


def test_order_and_batches_change_nothing() -> None:
    state = encoder("molinteract").export()
    order = [3, 0, 6, 2, 5, 1, 4]
    whole = embed(SMILES, state)
    mixed = embed([SMILES[i] for i in order], state, batch_size=2)
    assert mixed["smiles"].tolist() == [SMILES[i] for i in order]
    np.testing.assert_allclose(vectors(mixed), vectors(whole)[order], atol=1e-5)


def test_the_way_a_molecule_is_written_does_not_matter() -> None:
    found = embed(["CCO", "OCC", "C(O)C", "COC"], encoder("molinteract").export())
    assert found["canonical"].tolist() == ["CCO"] * 3 + ["COC"]
    values = vectors(found)
    np.testing.assert_allclose(values[1:3], values[[0, 0]], atol=1e-5)
    assert np.abs(values[3] - values[0]).max() > 1e-3


def test_refused_molecules_keep_their_row_and_have_a_reason() -> None:
    state = encoder("molinteract").export()
    smiles = ["CCO", "not a molecule", "", "C1CC", "N"]
    found = embed(smiles, state)
    assert found["smiles"].tolist() == smiles
    bad = [1, 2, 3]
    assert np.isnan(vectors(found)[bad]).all()
    assert np.isfinite(vectors(found)[[0, 4]]).all()
    assert (found["reason"] != "").tolist() == [False, True, True, True, False]
    assert found["canonical"].tolist() == ["CCO", "", "", "", "N"]
    assert found.attrs["n_rejected"] == 3
    np.testing.assert_allclose(vectors(found)[4], vectors(embed(["N"], state))[0], atol=1e-5)
    none = embed(["nothing", "here"], state)
    assert np.isnan(vectors(none)).all()
    assert none.attrs["n_rejected"] == 2


def test_molecules_without_a_conformer_are_refused() -> None:
    found = embed(["CCC", "C1#CC1", "CCN"], encoder("schnet").export(), conformers=True)
    assert found["reason"].tolist() == ["", "no 3D coordinates", ""]
    assert np.isnan(vectors(found)).any(axis=1).tolist() == [False, True, False]


def test_hydrogens_can_be_atoms() -> None:
    state = encoder("gine").export()
    with_them = embed(["CCO"], state, hydrogens=True)
    library = encode_smiles(["CCO"], hydrogens=True)
    assert library.n_atoms[0] == Chem.AddHs(Chem.MolFromSmiles("CCO")).GetNumAtoms()
    assert np.abs(vectors(with_them) - vectors(embed(["CCO"], state))).max() > 1e-3


def test_layers_read_and_interactor_follow_the_run() -> None:
    last, mean = (encoder("molinteract", jk=jk) for jk in ("last", "mean"))
    assert not np.allclose(
        vectors(embed(SMILES, last.export())),
        vectors(embed(SMILES, mean.export(), encoder=mean.config)),
    )
    other = encoder("molinteract", interactor="attention")
    assert np.isfinite(vectors(embed(SMILES, other.export()))).all()


def test_embedding_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    state = encoder("gine").export()
    torch.set_rng_state(before)
    embed(["C"], state)
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(InputError, match="schnet reads conformers alone"):
        embed(SMILES, encoder("schnet").export())
    with pytest.raises(InputError, match="gine reads no conformers"):
        embed(SMILES, encoder("gine").export(), conformers=True)
    with pytest.raises(InputError, match="state holds elf; expected an encoder"):
        embed(SMILES, {"elf": {}})
    with pytest.raises(InputError, match="no SMILES"):
        embed([], encoder("gine").export())
    with pytest.raises(InputError, match="sizes"):
        embed(
            SMILES,
            encoder("gine").export(),
            encoder=MoleculeEncoderConfig(kind="gine", d_model=8, layers=2),
        )
