"""ELF and densities against theory and against PySCF's own evaluator."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from quantum.backends import Problem, SCFResult
from quantum.backends.orbitals import density_on_box
from quantum.backends.pyscf_backend import PySCFBackend, build_mol
from quantum.base import ConvergenceError, InputError, IntegrityError
from quantum.conformers import embed
from quantum.descriptors import Molecule, compute_feature_vector, feature_names
from quantum.elf import (
    Box,
    build_box,
    check_elf,
    compute_elf,
    compute_lol,
    gradient_norm,
    principal_frame,
    resample,
    slices,
    spin_resolved,
    total_density,
)
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task, compute_features, plan
from quantum.recovery import ladder
from quantum.schema import (
    CalculationSpec,
    ConformerSpec,
    FeatureSpec,
    GridSpec,
    PipelineSpec,
    Resources,
)
from quantum.store import MemoryStore

PBE = CalculationSpec(method="pbe", basis="def2-svp", grid_level=1, convergence_hartree=1e-8)
GRID = GridSpec(spacing_bohr=0.4, margin_bohr=4.0, delta_au=0.0)
FEATURES = FeatureSpec()


@cache
def solved(smiles: str, spec: CalculationSpec = PBE) -> tuple[Problem, SCFResult]:
    species = species_from_smiles(smiles)
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    coords, _, _ = principal_frame(species.atomic_numbers, coords)
    problem = Problem(species.atomic_numbers, coords, species.charge, species.multiplicity)
    return problem, PySCFBackend().run_scf(problem, spec, Resources())


def fields_of(smiles: str, grid: GridSpec = GRID) -> tuple[np.ndarray, Box]:
    problem, result = solved(smiles)
    box = build_box(problem.coords_bohr, grid)
    mol = build_mol(problem, PBE)
    fields = density_on_box(mol, result.mo_coeff, result.mo_occ, box.axes, grid.precision)
    return spin_resolved(fields), box


def test_elf_of_two_paired_electrons_is_one_everywhere():
    fields, _ = fields_of("[H][H]")
    dense = fields[:, 0].sum(axis=0) > 1e-8
    np.testing.assert_allclose(compute_elf(fields, 0.0)[dense], 1.0, atol=1e-12)
    # without the cleaning of rounding noise, where the density is not thin
    rho, grad, tau = fields[0, 0], fields[0, 1:4], fields[0, 4]
    excess = tau - (grad**2).sum(axis=0) / (8 * rho)
    thick = rho > 1e-4
    assert np.abs(excess[thick]).max() < 1e-10
    # the regularising constant shows where the density is thin
    assert compute_elf(fields, 1e-5)[dense].min() < 0.9


def test_elf_of_the_uniform_gas_is_one_half():
    rho = np.array([1e-3, 0.1, 2.0])
    per_spin = rho / 2
    tau = 0.3 * (6 * np.pi**2) ** (2 / 3) * per_spin ** (5 / 3)
    one = np.stack([per_spin, *np.zeros((3, 3)), tau])
    np.testing.assert_allclose(compute_elf(np.stack([one, one]), 0.0), 0.5, rtol=1e-12)


def test_open_shell_formula_reduces_to_the_closed_shell_one():
    fields, _ = fields_of("O")
    total = fields.sum(axis=0)
    rho, grad2, tau = total[0], (total[1:4] ** 2).sum(axis=0), total[4]
    thick = rho > 1e-3
    excess = tau[thick] - grad2[thick] / (8 * rho[thick])
    uniform = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho[thick] ** (5 / 3)
    expected = 1 / (1 + (excess / uniform) ** 2)
    np.testing.assert_allclose(compute_elf(fields, 0.0)[thick], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("smiles", "electrons"), [("[H][H]", 2), ("O", 10), ("[CH3]", 9), ("[NH4+]", 10)]
)
def test_densities_hold_their_electrons_and_elf_is_bounded(smiles: str, electrons: int):
    _, result = solved(smiles)
    assert result.facts["n_electrons"] == electrons
    assert result.facts["electrons_integrated"] == pytest.approx(electrons, abs=2e-3 * electrons)
    fields, _ = fields_of(smiles)
    elf = compute_elf(fields, 1e-5)
    check_elf(elf)
    assert elf.max() > 0.9
    if smiles == "[CH3]":
        assert np.abs(fields[0, 0] - fields[1, 0]).max() > 1e-2


def test_tiled_evaluation_equals_the_plain_one():
    from pyscf.dft import numint

    problem, result = solved("NC(N)=O")
    box = build_box(problem.coords_bohr, GRID)
    mol = build_mol(problem, PBE)
    ours = density_on_box(mol, result.mo_coeff, result.mo_occ, box.axes)[0].reshape(5, -1)
    ao = numint.eval_ao(mol, box.points(), deriv=1)
    plain = numint.eval_rho2(
        mol, ao, result.mo_coeff[0], result.mo_occ[0], xctype="MGGA", with_lapl=False
    )
    np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_single_precision_is_close_where_there_is_density():
    exact, _ = fields_of("NC(N)=O")
    rough, _ = fields_of("NC(N)=O", GRID.model_copy(update={"precision": "single"}))
    dense = total_density(exact) >= 1e-3
    difference = np.abs(compute_elf(rough, 1e-5) - compute_elf(exact, 1e-5))
    assert 0 < difference[dense].max() < 2e-5


def test_lol_is_one_half_in_the_uniform_gas_and_bounded_in_a_molecule():
    rho = np.array([1e-3, 0.1, 2.0])
    tau = 0.3 * (3 * np.pi**2) ** (2 / 3) * rho ** (5 / 3)
    gas = np.stack([rho, *np.zeros((3, 3)), tau])[None]
    np.testing.assert_allclose(compute_lol(gas), 0.5, rtol=1e-12)
    fields, _ = fields_of("O")
    lol = compute_lol(fields)
    assert lol.min() >= 0
    assert 0.6 < lol.max() < 1
    # by its definition, at one point
    at = np.unravel_index(total_density(fields).argmax(), lol.shape)
    density, kinetic = fields[(slice(None), 0, *at)].sum(), fields[(slice(None), 4, *at)].sum()
    t = 0.3 * (3 * np.pi**2) ** (2 / 3) * density ** (5 / 3) / kinetic
    assert lol[at] == pytest.approx(t / (1 + t), rel=1e-9)


def test_gradient_norm_is_the_slope_of_the_density():
    fields, box = fields_of("O", GridSpec(spacing_bohr=0.15, margin_bohr=2.0))
    rho, norm = total_density(fields), gradient_norm(fields)
    slopes = np.gradient(rho, *[axis[1] - axis[0] for axis in box.axes])
    numeric = np.sqrt(sum(slope**2 for slope in slopes))
    inner = np.zeros(rho.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True  # one-sided slopes at the border are worse
    smooth = (rho < 0.05) & inner
    np.testing.assert_allclose(numeric[smooth], norm[smooth], rtol=0.05)


def test_resampled_volume_keeps_values_and_proportions():
    x, y, z = np.meshgrid(np.arange(21.0), np.arange(11.0), np.arange(5.0), indexing="ij")
    cube = resample(np.stack([x, y, z]), 21)
    assert cube.shape == (3, 21, 21, 21)
    np.testing.assert_allclose(cube[0, :, 10, 10], np.arange(21.0), atol=1e-5)
    np.testing.assert_allclose(cube[1, 10, 5:16, 10], np.arange(11.0), atol=1e-5)
    assert not cube[:, :, :4].any()
    assert not cube[:, :, :, :7].any()


def test_the_ladder_rescues_a_radical_that_does_not_converge_plainly():
    species = species_from_smiles("[O]N=O")
    spec = PipelineSpec(calculation=PBE, conformer=ConformerSpec(n_conformers=1))
    store = MemoryStore()
    stages = ("conformer", "scf")
    outcome = compute_features(Task(species=species, spec=spec, stages=stages), store)
    assert outcome.status == "done", outcome.message
    record = store.get(plan(species, spec)["scf"])
    assert record.scalars["remedies"]
    assert record.scalars["n_electrons"] == 23


def vector(coords: np.ndarray, numbers: tuple[int, ...]) -> np.ndarray:
    framed, _, _ = principal_frame(numbers, coords)
    problem = Problem(numbers, framed, 0, 1)
    result = PySCFBackend().run_scf(problem, PBE, Resources())
    box = build_box(framed, GRID)
    fields = density_on_box(build_mol(problem, PBE), result.mo_coeff, result.mo_occ, box.axes)
    scalars = dict.fromkeys(("homo_hartree", "lumo_hartree", "gap_hartree", "charge"), 0.0)
    scalars |= {"n_electrons": 26.0, "dipole_norm_au": float(np.linalg.norm(result.dipole_au))}
    scalars |= {"energy_hartree": result.energy_hartree, "multiplicity": 1.0}
    molecule = Molecule(
        elf=compute_elf(fields, 1e-5),
        rho=total_density(fields),
        box=box,
        numbers=np.array(numbers),
        scalars=scalars,
        arrays=result.arrays,
    )
    return compute_feature_vector(molecule, FEATURES)


def test_features_do_not_depend_on_placement_or_atom_order():
    species = species_from_smiles("CCO")
    coords, _ = embed(species, ConformerSpec(n_conformers=1))
    reference = vector(coords, species.atomic_numbers)
    turn = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    moved = vector(coords @ turn.T + [3.0, -5.0, 0.7], species.atomic_numbers)
    order = np.random.default_rng(0).permutation(len(coords))
    numbers = tuple(int(species.atomic_numbers[i]) for i in order)
    shuffled = vector(coords[order], numbers)
    assert len(reference) == len(feature_names(FEATURES))
    np.testing.assert_allclose(moved, reference, atol=5e-3)
    np.testing.assert_allclose(shuffled, reference, atol=5e-3)
    other = species_from_smiles("CCC")
    coords, _ = embed(other, ConformerSpec(n_conformers=1))
    assert np.abs(vector(coords, other.atomic_numbers) - reference).max() > 0.05


def test_frame_is_a_proper_rotation():
    rng = np.random.default_rng(3)
    coords = rng.normal(size=(7, 3)) * [3, 2, 1]
    framed, rotation, centre = principal_frame(np.arange(1, 8), coords)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose((coords - centre) @ rotation.T, framed)
    mirrored, _, _ = principal_frame(np.arange(1, 8), coords * [1, 1, -1])
    assert np.abs(mirrored - framed).max() > 0.1


def test_slices_are_planes_of_the_volume():
    volume = np.arange(60.0).reshape(3, 4, 5)
    x, y, z = slices(volume, 2)
    np.testing.assert_array_equal(x, volume[[0, 2]])
    np.testing.assert_array_equal(y, volume[:, [0, 3]].transpose(1, 0, 2))
    assert z.shape == (2, 3, 4)


def test_bad_requests_and_results_are_refused():
    problem, _ = solved("O")
    with pytest.raises(InputError, match="no-such-basis"):
        build_mol(problem, CalculationSpec(basis="no-such-basis"))
    with pytest.raises(InputError, match="functional"):
        PySCFBackend().run_scf(problem, CalculationSpec(method="nonsense"), Resources())
    with pytest.raises(InputError, match="multiplicity 2"):
        build_mol(Problem((8,), np.zeros((1, 3)), 0, 2), PBE)
    with pytest.raises(IntegrityError, match="expected 0 to 1"):
        check_elf(np.array([0.2, 1.5]))


def test_no_convergence_carries_energies_and_remedies_never_change_the_physics():
    problem, _ = solved("O")
    hurried = PBE.model_copy(update={"max_cycles": 1, "convergence_hartree": 1e-10})
    with pytest.raises(ConvergenceError, match="not converged in 1 cycles") as caught:
        PySCFBackend().run_scf(problem, hurried, Resources())
    assert caught.value.energies_hartree
    reference = solved("O")[1].energy_hartree
    for remedies in ladder():
        result = PySCFBackend().run_scf(problem, PBE, Resources(), remedies)
        assert result.energy_hartree == pytest.approx(reference, abs=1e-6)
        assert result.facts["remedies"] == list(remedies)
