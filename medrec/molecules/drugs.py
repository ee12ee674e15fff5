"""Drug classes and their molecules, and the interaction matrix between classes.

Letters: D drugs (classes), K unique molecules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabulary
from quantum.base import InputError
from quantum.molecule import Species, species_from_smiles


def severity_matrix(cohort: Cohort, drugs: Vocabulary) -> NDArray[np.uint8]:
    """Highest severity between two classes.

    Returns
    -------
    numpy.ndarray
        uint8, shape (D, D), symmetric, zero diagonal. 0 is no known interaction, 1 to 4 as in
        `medrec.data.ddi.SEVERITY_NAMES`. TWOSIDES has no grades: all 0; see `ddi_matrix`.
    """
    return _pair_matrix(cohort, drugs, cohort.ddi_pairs["severity"].to_numpy())


def ddi_matrix(cohort: Cohort, drugs: Vocabulary) -> NDArray[np.uint8]:
    """Whether two classes interact, at the cohort's least severity or worse.

    Returns
    -------
    numpy.ndarray
        uint8 of 0 and 1, shape (D, D), symmetric, zero diagonal.
    """
    if cohort.config.ddi.source == "twosides":
        interacts = np.ones(len(cohort.ddi_pairs), dtype=np.uint8)
    else:
        severity = cohort.ddi_pairs["severity"].to_numpy()
        interacts = (severity >= cohort.config.ddi.min_severity).astype(np.uint8)
    return _pair_matrix(cohort, drugs, interacts)


def _pair_matrix(
    cohort: Cohort, drugs: Vocabulary, values: NDArray[np.generic]
) -> NDArray[np.uint8]:
    matrix = np.zeros((len(drugs), len(drugs)), dtype=np.uint8)
    pairs = cohort.ddi_pairs
    for a, b, value in zip(pairs["atc_a"], pairs["atc_b"], values, strict=True):
        i, j = drugs.index(a), drugs.index(b)
        if i is not None and j is not None and i != j:
            matrix[i, j] = matrix[j, i] = value
    return matrix


@dataclass(frozen=True)
class DrugMolecules:
    """Unique molecules of a drug vocabulary.

    Parameters
    ----------
    smiles : tuple of str
        Canonical standardised SMILES, length K, in alphabetical order.
    species : tuple of quantum.molecule.Species
        In the same order.
    projection : numpy.ndarray
        float32, shape (D, K): the mean over a class's molecules. A row sums to 1, or to 0 for a
        class without a molecule.
    dropped : tuple of tuple of str
        ATC code, SMILES and reason of every structure that could not be used.
    """

    smiles: tuple[str, ...]
    species: tuple[Species, ...]
    projection: NDArray[np.float32]
    dropped: tuple[tuple[str, str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.smiles)


def build_drug_molecules(cohort: Cohort, drugs: Vocabulary) -> DrugMolecules:
    """Molecules of the classes of a vocabulary, standardised and without repetition.

    A base and its hydrochloride are one molecule; an acid and its sodium salt are two, as the
    charge is kept (`quantum.molecule`). A structure that does not parse is recorded in ``dropped``
    and left out of its class's mean.
    """
    table = cohort.molecules
    return pool_molecules(zip(table["atc"], table["smiles"], strict=True), drugs)


def pool_molecules(structures: Iterable[tuple[str, str]], drugs: Vocabulary) -> DrugMolecules:
    """`build_drug_molecules` for pairs of ATC code and SMILES from anywhere."""
    members: dict[str, set[int]] = {}
    species_of: dict[str, Species] = {}
    dropped: list[tuple[str, str, str]] = []
    for atc, smiles in structures:
        row = drugs.index(atc)
        if row is None:
            continue
        try:
            species = species_from_smiles(smiles)
        except InputError as error:
            dropped.append((atc, smiles, str(error)))
            continue
        species_of[species.smiles] = species
        members.setdefault(species.smiles, set()).add(row)
    unique = sorted(species_of)
    projection = np.zeros((len(drugs), len(unique)), dtype=np.float32)
    for column, smiles in enumerate(unique):
        projection[sorted(members[smiles]), column] = 1.0
    n_members = projection.sum(axis=1, keepdims=True)
    projection = np.divide(projection, n_members, out=projection, where=n_members > 0)
    return DrugMolecules(
        tuple(unique), tuple(species_of[item] for item in unique), projection, tuple(dropped)
    )
