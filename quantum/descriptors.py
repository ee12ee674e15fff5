"""Fixed-length descriptions of a molecule from its fields and orbitals, in named sets.

None depends on the molecule's placement. Sets can be switched on and off where they are read; the
exported manifest says which columns belong to which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import get_args

import numpy as np
import numpy.typing as npt

from quantum.base import IntegrityError
from quantum.basins import KINDS, find_basins
from quantum.elf import Array, Box
from quantum.schema import FeatureSet, FeatureSpec
from quantum.surface import STATISTICS, potential_histogram, potential_statistics

FEATURE_SETS: tuple[str, ...] = get_args(FeatureSet)
_ELEMENTS = (1, 6, 7, 8)  # groups of their own; every other element is one group
_GROUPS = ("H", "C", "N", "O", "other")
_SHELLS_BOHR = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
# the innermost shell is left out: a uniform grid does not resolve cores
_DENSITY_SHELLS_BOHR = _SHELLS_BOHR[1:]
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
    fields : mapping
        What the sets in `quantum.schema.FIELD_OF_SET` need: ``lol`` (nx, ny, nz) on the points of
        ``box``; ``surface_esp`` and ``surface_area`` (S,) on those of the molecular surface.
    """

    elf: Array
    rho: Array
    box: Box
    numbers: npt.NDArray[np.int_]
    scalars: Mapping[str, float]
    arrays: Mapping[str, Array]
    fields: Mapping[str, Array] = field(default_factory=dict)

    @property
    def group(self) -> npt.NDArray[np.int64]:
        """Index of each atom's element group."""
        return np.array(
            [_ELEMENTS.index(z) if z in _ELEMENTS else len(_ELEMENTS) for z in self.numbers]
        )


def feature_sets(spec: FeatureSpec) -> dict[str, list[str]]:
    """Names of the numbers of each set of ``spec.sets``, in the order of `FEATURE_SETS`."""
    names = _names_of_all_sets(spec)
    return {name: names[name] for name in FEATURE_SETS if name in spec.sets}


def _names_of_all_sets(spec: FeatureSpec) -> dict[str, list[str]]:
    return {
        "elf": [*_histogram_names("elf", spec.n_bins), "log_volume_bohr3"],
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
        "density": [
            *_histogram_names("density", spec.n_bins // 2),
            "density_log_volume_bohr3",
            *(
                f"density_mean_{g}_shell_{i}"
                for g in _GROUPS
                for i in range(1, len(_DENSITY_SHELLS_BOHR))
            ),
        ],
        "lol": [*_histogram_names("lol", spec.n_bins), "lol_log_volume_bohr3"],
        "esp": [
            *(f"esp_area_bin_{i:02d}" for i in range(spec.n_bins)),
            *(f"esp_{name}" for name in STATISTICS),
        ],
    }


def _histogram_names(field_name: str, n_bins: int) -> list[str]:
    """Names of what `_histograms` returns."""
    return [
        *(f"{field_name}_volume_bin_{i:02d}" for i in range(n_bins)),
        *(f"{field_name}_charge_bin_{i:02d}" for i in range(n_bins)),
        f"{field_name}_mean",
        f"{field_name}_std",
    ]


def feature_names(spec: FeatureSpec) -> list[str]:
    """Names of all numbers that `compute_feature_vector` returns, in order."""
    return [name for names in feature_sets(spec).values() for name in names]


def compute_feature_vector(molecule: Molecule, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """All sets of one molecule, in the order of `feature_names`.

    Raises
    ------
    IntegrityError
        If no grid point has enough density, a set's field is missing, or a number is not finite.
    """
    counted = molecule.rho.ravel() >= spec.rho_cut_au
    if not counted.any():
        raise IntegrityError(f"no grid point has a density above {spec.rho_cut_au:g} a.u.")
    parts: dict[str, Callable[[], Array]] = {
        "elf": lambda: _elf_set(molecule, counted, spec),
        "elements": lambda: _elements_set(molecule, counted, spec),
        "basins": lambda: _basins_set(molecule, spec),
        "composition": lambda: _composition_set(molecule),
        "electronic": lambda: _electronic_set(molecule),
        "charges": lambda: _charges_set(molecule),
        "bonds": lambda: _bonds_set(molecule),
        "density": lambda: _density_set(molecule, counted, spec),
        "lol": lambda: _lol_set(molecule, counted, spec),
        "esp": lambda: _esp_set(molecule, spec),
    }
    vector = np.concatenate([parts[name]() for name in feature_sets(spec)]).astype(np.float32)
    if not np.isfinite(vector).all():
        names = np.array(feature_names(spec))[~np.isfinite(vector)].tolist()
        raise IntegrityError(f"features are not finite: {names}")
    return vector


def _elf_set(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    values, density = m.elf.ravel()[counted], _weights(m, counted, spec)
    edges = np.linspace(0.0, 1.0, spec.n_bins + 1)
    return np.append(_histograms(values, density, edges), _log_volume(m, counted))


def _histograms(values: Array, density: Array, edges: Array) -> Array:
    """Histograms by volume and by charge, mean and spread by volume."""
    by_volume = np.histogram(values, edges)[0] / values.size
    by_charge = np.histogram(values, edges, weights=density)[0] / density.sum()
    return np.concatenate([by_volume, by_charge, [values.mean(), values.std()]])


def _log_volume(m: Molecule, counted: npt.NDArray[np.bool_]) -> float:
    return float(np.log(counted.sum() * m.box.cell_volume))


def _weights(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    """Density of the counted points, capped near the nuclei."""
    return np.minimum(m.rho.ravel()[counted], spec.rho_cap_au)


def _elements_set(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    """Mean ELF by element group and distance; charge by element group and ELF value."""
    points, values = m.box.points()[counted], m.elf.ravel()[counted]
    density = _weights(m, counted, spec)
    means, owner = _shell_means(m, points, values, _SHELLS_BOHR)
    bins = np.minimum((values * _ELEMENT_BINS).astype(int), _ELEMENT_BINS - 1)
    charge = np.zeros((len(_GROUPS), _ELEMENT_BINS))
    np.add.at(charge, (owner, bins), density / density.sum())
    return np.concatenate([means.ravel(), charge.ravel()])


def _shell_means(
    m: Molecule, points: Array, values: Array, shells_bohr: tuple[float, ...]
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Mean (groups, shells) of a field around each element group; group of the nearest atom."""
    sums = np.zeros((len(_GROUPS), len(shells_bohr) - 1))
    counts = np.zeros_like(sums)
    nearest = np.full(len(points), np.inf)
    owner = np.zeros(len(points), dtype=np.int64)
    for group, centre in zip(m.group, m.box.coords_bohr, strict=True):
        distance = np.linalg.norm(points - centre, axis=1)
        near = distance < shells_bohr[-1]
        sums[group] += np.histogram(distance[near], shells_bohr, weights=values[near])[0]
        counts[group] += np.histogram(distance[near], shells_bohr)[0]
        closer = distance < nearest
        nearest[closer], owner[closer] = distance[closer], group
    return sums / np.maximum(counts, 1.0), owner


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


def _density_set(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    """Of the cube root of rho, capped: an inverse length, which spreads valence and tail evenly."""
    weights = _weights(m, counted, spec)
    values = np.cbrt(weights)
    low, high = np.cbrt(spec.rho_cut_au), np.cbrt(spec.rho_cap_au)
    histograms = _histograms(values, weights, np.linspace(low, high, spec.n_bins // 2 + 1))
    means, _ = _shell_means(m, m.box.points()[counted], values, _DENSITY_SHELLS_BOHR)
    return np.concatenate([histograms, [_log_volume(m, counted)], means.ravel()])


def _lol_set(m: Molecule, counted: npt.NDArray[np.bool_], spec: FeatureSpec) -> Array:
    values = _field(m, "lol", "lol").ravel()[counted]
    edges = np.linspace(0.0, 1.0, spec.n_bins + 1)
    histograms = _histograms(values, _weights(m, counted, spec), edges)
    return np.append(histograms, _log_volume(m, counted))


def _esp_set(m: Molecule, spec: FeatureSpec) -> Array:
    esp, area = _field(m, "surface_esp", "esp"), _field(m, "surface_area", "esp")
    return np.concatenate(
        [potential_histogram(esp, area, spec.n_bins), potential_statistics(esp, area)]
    )


def _field(m: Molecule, name: str, of_set: str) -> Array:
    if name not in m.fields:
        raise IntegrityError(f"set '{of_set}' needs the field '{name}', has {sorted(m.fields)}")
    return m.fields[name]
