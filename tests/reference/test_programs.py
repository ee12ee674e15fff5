"""PySCF against Psi4, and the screened route against PySCF's own.

Six molecules, among them an anion, a cation and a radical. Psi4 gives energies and orbitals; its
density cube is an independent check of the orbitals' order and normalisation.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from quantum.backends import Problem, SCFResult, get_backend
from quantum.backends.fields import electrostatic_potential
from quantum.backends.orbitals import density_on_box
from quantum.backends.psi4_backend import Psi4Backend, executable, row_order, run_program
from quantum.backends.pyscf_backend import build_mol
from quantum.base import InputError, ProgramMissingError, ResourceError
from quantum.conformers import embed
from quantum.elf import Box, build_box, compute_elf, principal_frame, total_density
from quantum.molecule import species_from_smiles
from quantum.schema import CalculationSpec, ConformerSpec, GridSpec, Resources

EXACT = CalculationSpec(
    method="hf", basis="def2-svp", density_fitting=False, convergence_hartree=1e-10
)
MOLECULES = {
    "water": "O",
    "urea": "NC(N)=O",
    "acetate, an anion": "CC(=O)[O-]",
    "methylammonium, a cation": "C[NH3+]",
    "methyl, a radical": "[CH3]",
    "chloromethane": "CCl",
}


def problem_of(smiles: str) -> Problem:
    species = species_from_smiles(smiles)
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    coords, _, _ = principal_frame(species.atomic_numbers, coords)
    return Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)


@cache
def solved(smiles: str, spec: CalculationSpec) -> SCFResult:
    return get_backend(spec.backend).run_scf(problem_of(smiles), spec, Resources(memory_mb=6000))


def elf_and_rho(smiles: str, spec: CalculationSpec, spacing: float = 0.5):
    problem, result = problem_of(smiles), solved(smiles, spec)
    box = build_box(problem.coords_bohr, GridSpec(spacing_bohr=spacing))
    mol = build_mol(problem, spec)
    fields = density_on_box(mol, result.mo_coeff, result.mo_occ, box.axes)
    return compute_elf(fields, 1e-5), total_density(fields)


# --------------------------------------------------------------------------- Psi4


@pytest.mark.psi4
@pytest.mark.skipif(executable() is None, reason="psi4 is not on the PATH")
@pytest.mark.parametrize("name", MOLECULES)
def test_both_programs_agree_with_exact_integrals(name: str):
    smiles = MOLECULES[name]
    ours, theirs = (
        solved(smiles, EXACT),
        solved(smiles, EXACT.model_copy(update={"backend": "psi4"})),
    )
    assert theirs.facts["program"] == "psi4"
    assert theirs.energy_hartree == pytest.approx(ours.energy_hartree, abs=1e-7)
    np.testing.assert_allclose(theirs.dipole_au, ours.dipole_au, atol=1e-4)
    np.testing.assert_allclose(theirs.charges_mulliken, ours.charges_mulliken, atol=1e-4)
    elf, rho = elf_and_rho(smiles, EXACT)
    other, _ = elf_and_rho(smiles, EXACT.model_copy(update={"backend": "psi4"}))
    assert np.abs(elf - other)[rho >= 1e-3].max() < 1e-4


@pytest.mark.psi4
@pytest.mark.skipif(executable() is None, reason="psi4 is not on the PATH")
@pytest.mark.parametrize("name", MOLECULES)
def test_densities_of_psi4s_orbitals_are_psi4s_own(name: str, tmp_path: Path):
    problem = problem_of(MOLECULES[name])
    mol = build_mol(problem, EXACT)
    options = (
        "psi4.set_options({'cubeprop_tasks': ['density'], 'cubic_grid_spacing': [.4, .4, .4]})\n"
        "psi4.cubeprop(wfn)"
    )
    run_program(mol, EXACT, Resources(), tmp_path, after=options)
    cube, box = read_cube(tmp_path / "Dt.cube")
    with np.load(tmp_path / "orbitals.npz") as found:
        rows = row_order(mol)
        coeff = np.stack([found["ca"][rows], found["cb"][rows]])
        counts = int(found["na"]), int(found["nb"])
    occ = np.stack([(np.arange(coeff.shape[2]) < n).astype(float) for n in counts])
    rho = total_density(density_on_box(mol, coeff, occ, box.axes))
    assert cube.max() > 0.2
    np.testing.assert_allclose(rho, cube, atol=1e-3)


def read_cube(path: Path) -> tuple[np.ndarray, Box]:
    lines = path.read_text().splitlines()[2:]
    n_atoms, *origin = [float(word) for word in lines[0].split()[:4]]
    axes = []
    for i in range(3):
        count, *step = [float(word) for word in lines[1 + i].split()]
        axes.append(origin[i] + step[i] * np.arange(int(count)))
    values = np.array(" ".join(lines[4 + int(n_atoms) :]).split(), dtype=float)
    box = Box((axes[0], axes[1], axes[2]), np.zeros((0, 3)))
    return values.reshape(box.shape), box


@pytest.mark.psi4
@pytest.mark.skipif(executable() is None, reason="psi4 is not on the PATH")
def test_psi4_with_a_functional_and_density_fitting_is_near():
    spec = CalculationSpec(method="b3lyp", convergence_hartree=1e-8, grid_level=3)
    theirs = solved("NC(N)=O", spec.model_copy(update={"backend": "psi4"}))
    assert theirs.energy_hartree == pytest.approx(solved("NC(N)=O", spec).energy_hartree, abs=5e-5)


@pytest.mark.psi4
@pytest.mark.skipif(executable() is None, reason="psi4 is not on the PATH")
def test_psi4_is_stopped_at_its_deadline_and_refuses_what_it_cannot():
    spec = EXACT.model_copy(update={"backend": "psi4"})
    with pytest.raises(ResourceError, match="stopped after"):
        Psi4Backend().run_scf(problem_of("O"), spec, Resources(time_limit_s=0.05))
    wet = spec.model_copy(update={"solvent_dielectric": 80.0})
    with pytest.raises(InputError, match="solvent_dielectric: 80"):
        Psi4Backend().run_scf(problem_of("O"), wet, Resources())
    with pytest.raises(InputError, match="core potentials"):
        Psi4Backend().run_scf(problem_of("CI"), spec, Resources())
    nonsense = spec.model_copy(update={"method": "nonsense"})
    with pytest.raises(InputError, match="Psi4"):
        Psi4Backend().run_scf(problem_of("O"), nonsense, Resources())


def test_an_absent_psi4_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quantum.backends.psi4_backend.executable", lambda: None)
    assert not Psi4Backend().available()
    with pytest.raises(ProgramMissingError, match="apt-get install psi4"):
        Psi4Backend().run_scf(problem_of("O"), EXACT, Resources())


# --------------------------------------------------------------------------- the screened route

PLAIN = CalculationSpec(method="b3lyp", grid_level=3, convergence_hartree=1e-8)


@pytest.mark.parametrize(
    ("smiles", "changes"),
    [
        ("CC(=O)Nc1ccc(O)cc1", {}),
        ("CC(=O)[O-]", {}),
        ("[CH3]", {}),
        ("C[CH]O", {"method": "pbe"}),
        ("NC(N)=O", {"method": "hf"}),
        ("NC(N)=O", {"method": "lda,vwn"}),
        ("CI", {"method": "pbe"}),
    ],
)
def test_the_screened_route_gives_what_the_program_gives(smiles: str, changes: dict):
    plain = PLAIN.model_copy(update={"grid_level": 2, **changes})
    reference = solved(smiles, plain)
    elf, rho = elf_and_rho(smiles, plain)
    for precision, energy_tolerance, elf_tolerance in (
        ("double", 2e-6, 1e-3),
        ("single", 1e-4, 5e-3),
    ):
        spec = plain.model_copy(
            update={"route": "screened", "precision": precision, "convergence_hartree": 1e-7}
        )
        result = solved(smiles, spec)
        assert result.energy_hartree == pytest.approx(
            reference.energy_hartree, abs=energy_tolerance
        )
        np.testing.assert_allclose(
            result.charges_mulliken, reference.charges_mulliken, atol=20 * energy_tolerance**0.75
        )
        other, _ = elf_and_rho(smiles, spec)
        assert np.abs(elf - other)[rho >= 1e-3].max() < elf_tolerance


def test_the_screened_route_refuses_what_it_does_not_know():
    backend = get_backend("pyscf")
    for changes, words in (
        ({"method": "m06-2x"}, "route: program"),
        ({"method": "camb3lyp"}, "route: program"),
        ({"solvent_dielectric": 80.0}, "solvent"),
        ({"density_fitting": False}, "density_fitting"),
    ):
        spec = PLAIN.model_copy(update={"route": "screened", **changes})
        with pytest.raises(InputError, match=words):
            backend.run_scf(problem_of("O"), spec, Resources())
    spec = PLAIN.model_copy(update={"route": "screened"})
    with pytest.raises(ResourceError, match="memory_mb"):
        backend.run_scf(problem_of("NC(N)=O"), spec, Resources(memory_mb=2))


# --------------------------------------------------------------------------- settings


def test_dispersion_is_added_to_the_energy_alone():
    spec = CalculationSpec(method="pbe", grid_level=1)
    bare = solved("CC", spec)
    for name in ("d3bj", "d4"):
        with_it = solved("CC", spec.model_copy(update={"dispersion": name}))
        assert -0.01 < with_it.energy_hartree - bare.energy_hartree < -1e-4
        assert with_it.facts["dispersion_hartree"] == pytest.approx(
            with_it.energy_hartree - bare.energy_hartree, abs=1e-9
        )
    with pytest.raises(InputError, match="no d3bj parameters"):
        solved("O", spec.model_copy(update={"method": "lda,vwn", "dispersion": "d3bj"}))


def test_a_solvent_lowers_the_energy_of_an_ion():
    spec = CalculationSpec(method="pbe", basis="sto-3g", grid_level=0)
    wet = solved("C[NH3+]", spec.model_copy(update={"solvent_dielectric": 78.4}))
    shift = wet.energy_hartree - solved("C[NH3+]", spec).energy_hartree
    assert -0.2 < shift < -0.08  # Born: about -1/2 q^2 / r with r of 4 Bohr


def test_without_gpu4pyscf_the_gpu_setting_says_what_to_install():
    pytest.importorskip("pyscf")
    try:
        import gpu4pyscf  # noqa: F401
    except ImportError:
        with pytest.raises(ProgramMissingError, match="gpu4pyscf"):
            solved("O", CalculationSpec(device="gpu", grid_level=0))


def test_the_fitted_potential_is_the_exact_one_outside_the_cores():
    problem, result = problem_of("NC(N)=O"), solved("NC(N)=O", PLAIN)
    mol = build_mol(problem, PLAIN)
    rng = np.random.default_rng(1)
    points = problem.coords_bohr[rng.integers(0, 8, 200)] + rng.normal(scale=2.5, size=(200, 3))
    distance = np.linalg.norm(points[:, None] - problem.coords_bohr, axis=-1).min(axis=1)
    points = points[distance > 1.0]
    ours = electrostatic_potential(mol, result.mo_coeff, result.mo_occ, points)
    density = np.einsum("spi,si,sqi->pq", result.mo_coeff, result.mo_occ, result.mo_coeff)
    electrons = np.array([np.vdot(density, v) for v in mol.intor("int1e_grids", grids=points)])
    away = np.linalg.norm(points[:, None] - problem.coords_bohr, axis=-1)
    exact = (mol.atom_charges() / away).sum(axis=1) - electrons
    assert len(points) > 100
    np.testing.assert_allclose(ours, exact, atol=2e-3)
