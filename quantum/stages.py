"""What each stage of the pipeline computes: conformer → SCF → ELF map → features.

A stage takes a species, the settings and the records before it, and returns a record without a
key; keys and storage are the pipeline's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantum.backends import Problem, SCFResult, get_backend
from quantum.base import ConvergenceError, Frozen, provenance
from quantum.conformers import choose, embed_ensemble
from quantum.descriptors import Molecule, compute_feature_vector, feature_names, feature_sets
from quantum.elf import (
    Box,
    build_box,
    check_elf,
    compute_elf,
    compute_lol,
    gradient_norm,
    principal_frame,
    resample,
    total_density,
)
from quantum.geometry import Geometry, check_geometry
from quantum.molecule import Species
from quantum.optimise import optimise
from quantum.recovery import ladder
from quantum.schema import PipelineSpec, Resources
from quantum.store import Record
from quantum.surface import find_surface
from quantum.units import ANGSTROM_IN_BOHR, BOHR_IN_ANGSTROM

_FIELDS = ("lol", "surface_area", "surface_esp")
_SCALARS = ("n_electrons", "energy_hartree", "homo_hartree", "lumo_hartree", "gap_hartree")


def run_conformer(species: Species, spec: PipelineSpec, geometry: Geometry | None) -> Record:
    """Geometry of a species: embedded, or the one that was given; optimised if wanted."""
    arrays: dict[str, Any] = {}
    if geometry is None:
        ensemble = embed_ensemble(species, spec.conformer)
        coords, facts = choose(ensemble, spec.conformer, species), dict(ensemble.facts)
        arrays["ensemble_coords_bohr"] = ensemble.coords_bohr
        arrays["ensemble_energies_kcal_mol"] = ensemble.energies_kcal_mol
        arrays["ensemble_weights"] = ensemble.weights
    else:
        check_geometry(species, geometry.array(), geometry.source)
        coords = geometry.array() * ANGSTROM_IN_BOHR
        facts = {"method": "given", "source": geometry.source}
    if spec.conformer.optimise != "none":
        coords, more = optimise(species, coords, spec.conformer)
        check_geometry(species, coords * BOHR_IN_ANGSTROM, "the optimised geometry")
        facts |= more
    return Record(
        key="",
        stage="conformer",
        request=_request(species, spec.conformer),
        scalars=facts,
        arrays={"coords_bohr": coords, "atomic_numbers": _numbers(species), **arrays},
        provenance=provenance("rdkit", "tblite", "geometric"),
    )


def run_scf(
    species: Species, spec: PipelineSpec, conformer: Record, resources: Resources
) -> Record:
    """Orbitals, energies, charges, bond orders and multipoles, in the principal-axis frame."""
    coords, _, _ = principal_frame(species.atomic_numbers, conformer.arrays["coords_bohr"])
    problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
    result, attempts = solve(problem, spec, resources)
    homo, lumo = _frontier(result)
    return Record(
        key="",
        stage="scf",
        request=_request(species, spec.calculation),
        scalars={
            "energy_hartree": result.energy_hartree,
            "homo_hartree": homo,
            "lumo_hartree": lumo,
            "gap_hartree": None if homo is None or lumo is None else lumo - homo,
            "dipole_norm_au": float(np.linalg.norm(result.dipole_au)),
            "attempts": attempts,
            **result.facts,
        },
        arrays={
            "coords_bohr": coords,
            "atomic_numbers": _numbers(species),
            "mo_coeff": result.mo_coeff,
            "mo_occ": result.mo_occ,
            "mo_energy_hartree": result.mo_energy_hartree,
            "dipole_au": result.dipole_au,
            "charges_mulliken": result.charges_mulliken,
            **result.arrays,
        },
        provenance=provenance("pyscf"),
    )


def solve(
    problem: Problem, spec: PipelineSpec, resources: Resources
) -> tuple[SCFResult, list[dict[str, Any]]]:
    """Climb the ladder of remedies.

    Returns
    -------
    result : SCFResult
    attempts : list of dict
        Attempts that failed before: remedies and last energies.

    Raises
    ------
    ConvergenceError
        If no rung converges; the message lists them all.
    """
    backend = get_backend(spec.calculation.backend)
    attempts: list[dict[str, Any]] = []
    last = ConvergenceError("no attempt was made")
    for remedies in ladder():
        try:
            return backend.run_scf(problem, spec.calculation, resources, remedies), attempts
        except ConvergenceError as error:
            last = error
            energies = [round(value, 6) for value in error.energies_hartree]
            attempts.append({"remedies": list(remedies), "energies_hartree": energies})
    tried = "; ".join("+".join(item["remedies"]) or "none" for item in attempts)
    raise ConvergenceError(f"{last}; remedies tried: {tried}", last.energies_hartree)


def _frontier(result: SCFResult) -> tuple[float | None, float | None]:
    occupied = result.mo_occ > 0
    energies = result.mo_energy_hartree
    homo = float(energies[occupied].max()) if occupied.any() else None
    lumo = float(energies[~occupied].min()) if (~occupied).any() else None
    return homo, lumo


def run_elf(species: Species, spec: PipelineSpec, scf: Record) -> Record:
    """ELF, rho and the extra fields on the points of the box."""
    from quantum.backends.orbitals import density_on_box
    from quantum.backends.pyscf_backend import build_mol

    coords = scf.arrays["coords_bohr"]
    box = build_box(coords, spec.grid)
    problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
    mol = build_mol(problem, spec.calculation)
    orbitals = scf.arrays["mo_coeff"], scf.arrays["mo_occ"]
    fields = density_on_box(mol, *orbitals, box.axes, spec.grid.precision)
    elf = compute_elf(fields, spec.grid.delta_au)
    check_elf(elf)
    extra: dict[str, Any] = {}
    for name in spec.grid.extra_fields:
        extra |= _extra_arrays(name, fields, box, mol, orbitals)
    return Record(
        key="",
        stage="elf",
        request=_request(species, spec.grid),
        scalars={
            "origin_bohr": box.origin_bohr.tolist(),
            "spacing_bohr": spec.grid.spacing_bohr,
            "shape": list(box.shape),
        },
        arrays={
            "elf": elf.astype(np.float32),
            "rho": total_density(fields).astype(np.float32),
            **extra,
            "coords_bohr": coords,
            "atomic_numbers": _numbers(species),
        },
        provenance=provenance("pyscf"),
    )


def _extra_arrays(
    name: str, fields: Any, box: Box, mol: Any, orbitals: tuple[Any, Any]
) -> dict[str, Any]:
    """Arrays of one of `quantum.schema.ExtraField`."""
    from quantum.backends.fields import COULOMB_FIT, electrostatic_potential

    if name == "esp_surface":
        surface = find_surface(total_density(fields), gradient_norm(fields), box)
        points = box.points()[surface.index]
        values = electrostatic_potential(mol, *orbitals, points, COULOMB_FIT)
        return {
            "surface_index": surface.index.astype(np.int32),
            "surface_area": surface.area_bohr2.astype(np.float32),
            "surface_esp": values.astype(np.float32),
        }
    if name == "lol":
        field = compute_lol(fields)
    elif name == "gradient":
        field = gradient_norm(fields)
    elif name == "tau":
        field = fields[:, 4].sum(axis=0)
    else:
        field = electrostatic_potential(mol, *orbitals, box.points()).reshape(box.shape)
    return {name: field.astype(np.float32)}


def run_features(species: Species, spec: PipelineSpec, scf: Record, elf: Record) -> Record:
    """Fixed-length features, and the small volume for image encoders if wanted."""
    scalars = {name: float(scf.scalars[name] or 0.0) for name in (*_SCALARS, "dipole_norm_au")}
    scalars |= {"charge": float(species.charge), "multiplicity": float(species.multiplicity)}
    molecule = Molecule(
        elf=elf.arrays["elf"].astype(float),
        rho=elf.arrays["rho"].astype(float),
        box=box_of(elf),
        numbers=np.array(species.atomic_numbers),
        scalars=scalars,
        arrays=scf.arrays,
        fields={n: elf.arrays[n].astype(float) for n in _FIELDS if n in elf.arrays},
    )
    arrays: dict[str, Any] = {"vector": compute_feature_vector(molecule, spec.features)}
    if spec.features.volume_points:
        names = ("elf", "rho", "gradient")
        arrays["volume"] = resample(
            np.stack([elf.arrays[name] for name in names]), spec.features.volume_points
        )
    return Record(
        key="",
        stage="features",
        request=_request(species, spec.features),
        scalars={
            "names": feature_names(spec.features),
            "sets": {name: len(names) for name, names in feature_sets(spec.features).items()},
        },
        arrays=arrays,
        provenance=provenance(),
    )


def box_of(record: Record) -> Box:
    """Grid of a stored ELF map."""
    origin, spacing = record.scalars["origin_bohr"], record.scalars["spacing_bohr"]
    axes = [
        start + spacing * np.arange(n)
        for start, n in zip(origin, record.scalars["shape"], strict=True)
    ]
    return Box((axes[0], axes[1], axes[2]), record.arrays["coords_bohr"])


def _numbers(species: Species) -> Any:
    return np.array(species.atomic_numbers, dtype=np.int16)


def _request(species: Species, settings: Frozen) -> dict[str, Any]:
    return {
        "species": species.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
    }
