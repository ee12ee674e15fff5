"""Fixed-length descriptions of a molecule from its ELF map and orbitals, in named sets.

None depends on the molecule's placement. Sets can be switched on and off where they are read; the
exported manifest says which columns belong to which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
import numpy.typing as npt

from quantum.base import IntegrityError
from quantum.basins import KINDS, find_basins
from quantum.elf import Array, Box
from quantum.schema import FeatureSet, FeatureSpec

FEATURE_SETS: tuple[str, ...] = get_args(FeatureSet)
_ELEMENTS = (1, 6, 7, 8)  # groups of their own; every other element is one group
_GROUPS = ("H", "C", "N", "O", "other")
_SHELLS_BOHR = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
_ELEMENT_BINS = 10
# populations of cores are left out: a uniform grid does not resolve them
_BASIN_NUMBERS = {
    False: ("per_heavy_atom", "elf_mean"),
    True: ("per_heavy_atom", "elf_mean", "electrons_mean", "electrons_std"),
}
_BOND_EDGES = (0.3, 0.7, 0.95, 1.2, 1.5, 1.8, 2.2, 9.0)


@dataclass(frozen=True)
class Molecule:
    """What descriptors are made of.

    Attributes
    ----------
    elf, rho : ndarray (nx, ny, nz)
        On the points of ``box``.
    numbers : ndarray (A,)
        Atomic numbers.
    scalars : mapping
        ``n_electrons``, ``energy_hartree``, ``homo_hartree``, ``lumo_hartree``, ``gap_hartree``,
        ``dipole_norm_au``, ``charge``, ``multiplicity``.
    arrays : mapping
        ``quadrupole_au`` (3, 3), ``charges_loewdin`` (A,), ``mayer_bond_orders`` (A, A),
        ``spin_populations`` (A,).
    """

    elf: Array
    rho: Array
    box: Box
    numbers: npt.NDArray[np.int_]
    scalars: Mapping[str, float]
    arrays: Mapping[str, Array]

    @property
    def group(self) -> npt.NDArray[np.int64]:
        """Index of each atom's element group."""
        return np.array(
            [_ELEMENTS.index(z) if z in _ELEMENTS else len(_ELEMENTS) for z in self.numbers]
        )


def feature_sets(spec: FeatureSpec) -> dict[str, list[str]]:
    """Names of the numbers of each set, in order."""
    return {
        "elf": [
            *(f"elf_volume_bin_{i:02d}" for i in range(spec.n_bins)),
            *(f"elf_charge_bin_{i:02d}" for i in range(spec.n_bins)),
            "elf_mean",
            "elf_std",
            "log_volume_bohr3",
        ],
        "elements": [
            *(f"elf_mean_{g}_shell_{i}" for g in _GROUPS for i in range(len(_SHELLS_BOHR) - 1)),
            *(f"elf_charge_{g}_bin_{i}" for g in _GROUPS for i in range(_ELEMENT_BINS)),
        ],
        "basins": [
            f"basin_{kind}_{what}" for kind in KINDS for what in _BASIN_NUMBERS[kind != "core"]
        ],
        "composition": [*(f"share_atoms_{g}" for g in _GROUPS), "log_n_electrons", "charge"],
        "electronic": [
            "energy_per_electron_hartree",
            "homo_hartree",
            "lumo_hartree",
            "gap_hartree",
            "dipole_norm_au",
            "quadrupole_norm_au",
            "quadrupole_asymmetry",
            "unpaired_electrons",
        ],
        "charges": [f"charge_{g}_{what}" for g in _GROUPS for what in ("mean", "min", "max")],
        "bonds": [
            *(f"bonds_order_{low:g}_{high:g}" for low, high in _bond_bins()),
            *(f"valence_{g}_mean" for g in _GROUPS),
        ],
    }


def feature_names(spec: FeatureSpec) -> list[str]:
    """Names of all numbers that `compute_feature_vector` returns, in order."""
    return [name for names in feature_sets(spec).values() for name in names]


def compute_feature_vector(molecule: Molecule, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """All sets of one molecule, in the order of `feature_names`.

    Raises
    ------
    IntegrityError
        If no grid point has enough density, or a number is not finite.
    """
    counted = molecule.rho.ravel() >= spec.rho_cut_au
    if not counted.any():
        raise IntegrityError(f"no grid point has a density above {spec.rho_cut_au:g} a.u.")
    parts = {
        "elf": _elf_set(molecule, counted, spec),
        "elements": _elements_set(molecule, counted, spec),
        "basins": _basins_set(molecule, spec),
        "composition": _composition_set(molecule),
        "electronic": _electronic_set(molecule),
        "charges": _charges_set(molecule),
        "bonds": _bonds_set(molecule),
    }
    vector = np.concatenate([parts[name] for name in FEATURE_SETS]).astype(np.float32)
    if not np.isfinite(vector).all():
        names = np.array(feature_names(spec))[~np.isfinite(vector)].tolist()
        raise IntegrityError(f"features are not finite: {names}")
    return vector


def _elf_set(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    values, density = m.elf.ravel()[counted], _weights(m, counted, spec)
    edges = np.linspace(0.0, 1.0, spec.n_bins + 1)
    by_volume = np.histogram(values, edges)[0] / values.size
    by_charge = np.histogram(values, edges, weights=density)[0] / density.sum()
    volume = values.size * m.box.cell_volume
    return np.concatenate([by_volume, by_charge, [values.mean(), values.std(), np.log(volume)]])


def _weights(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    """Density of the counted points, capped near the nuclei."""
    return np.minimum(m.rho.ravel()[counted], spec.rho_cap_au)


def _elements_set(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    """Mean ELF by element group and distance; charge by element group and ELF value."""
    points, values = m.box.points()[counted], m.elf.ravel()[counted]
    density = _weights(m, counted, spec)
    sums = np.zeros((len(_GROUPS), len(_SHELLS_BOHR) - 1))
    counts = np.zeros_like(sums)
    nearest = np.full(len(points), np.inf)
    owner = np.zeros(len(points), dtype=np.int64)
    for group, centre in zip(m.group, m.box.coords_bohr, strict=True):
        distance = np.linalg.norm(points - centre, axis=1)
        near = distance < _SHELLS_BOHR[-1]
        sums[group] += np.histogram(distance[near], _SHELLS_BOHR, weights=values[near])[0]
        counts[group] += np.histogram(distance[near], _SHELLS_BOHR)[0]
        closer = distance < nearest
        nearest[closer], owner[closer] = distance[closer], group
    bins = np.minimum((values * _ELEMENT_BINS).astype(int), _ELEMENT_BINS - 1)
    charge = np.zeros((len(_GROUPS), _ELEMENT_BINS))
    np.add.at(charge, (owner, bins), density / density.sum())
    return np.concatenate([(sums / np.maximum(counts, 1.0)).ravel(), charge.ravel()])


def _basins_set(m: Molecule, spec: FeatureSpec) -> Array:
    basins = find_basins(m.elf, m.rho, m.box, m.numbers, spec.rho_cut_au)
    heavy = max(int((m.numbers > 1).sum()), 1)
    numbers: list[float] = []
    for kind, name in enumerate(KINDS):
        of_kind = basins.kind == kind
        population, peak = basins.population[of_kind], basins.elf[of_kind]
        some = bool(of_kind.any())
        numbers += [of_kind.sum() / heavy, peak.mean() if some else 0.0]
        if name != "core":
            numbers += [population.mean(), population.std()] if some else [0.0, 0.0]
    return np.array(numbers)


def _composition_set(m: Molecule) -> Array:
    share = np.bincount(m.group, minlength=len(_GROUPS)) / len(m.numbers)
    return np.array([*share, np.log(m.scalars["n_electrons"]), m.scalars["charge"]])


def _electronic_set(m: Molecule) -> Array:
    values = np.sort(np.linalg.eigvalsh(m.arrays["quadrupole_au"]))
    norm = float(np.linalg.norm(values))
    names = ("homo_hartree", "lumo_hartree", "gap_hartree", "dipole_norm_au")
    return np.array(
        [
            m.scalars["energy_hartree"] / m.scalars["n_electrons"],
            *(m.scalars[name] for name in names),
            norm,
            (values[1] / norm) if norm > 1e-9 else 0.0,
            m.scalars["multiplicity"] - 1.0,
        ]
    )


def _charges_set(m: Molecule) -> Array:
    charges = m.arrays["charges_loewdin"]
    rows = []
    for group in range(len(_GROUPS)):
        own = charges[m.group == group]
        rows.append([own.mean(), own.min(), own.max()] if len(own) else [0.0, 0.0, 0.0])
    return np.array(rows).ravel()


def _bonds_set(m: Molecule) -> Array:
    orders = m.arrays["mayer_bond_orders"]
    upper = orders[np.triu_indices(len(orders), 1)]
    counts = [((upper >= low) & (upper < high)).sum() for low, high in _bond_bins()]
    valence = orders.sum(axis=1)
    means = [
        valence[m.group == group].mean() if (m.group == group).any() else 0.0
        for group in range(len(_GROUPS))
    ]
    return np.array([*(np.array(counts) / len(m.numbers)), *means])


def _bond_bins() -> list[tuple[float, float]]:
    return list(pairwise(_BOND_EDGES))
