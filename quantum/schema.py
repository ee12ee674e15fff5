"""Typed requests and results of every stage: the nouns of `quantum`.

A request says *what* to compute and is part of the digest; `Resources` says *with what* and
never is. Atomic units inside; every name at a boundary ends in its unit.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from quantum.base import Frozen


class ConformerSpec(Frozen):
    """How one 3D geometry of a species is made (RDKit ETKDGv3, then a force field)."""

    method: Literal["etkdgv3"] = "etkdgv3"
    n_conformers: PositiveInt = Field(5, le=500, description="embeddings tried per species")
    seed: int = Field(20240229, ge=0, description="random seed of the embedding")
    force_field: Literal["mmff94s", "mmff94", "uff"] = Field(
        "mmff94s", description="first choice; UFF is the fallback where it lacks parameters"
    )
    prune_rmsd_angstrom: PositiveFloat = 0.5
    max_iterations: PositiveInt = Field(500, description="force-field steps per conformer")
    max_heavy_atoms: PositiveInt = Field(150, description="larger species are not embedded")


class CalculationSpec(Frozen):
    """One self-consistent-field calculation. All of it changes the number, all of it is keyed."""

    backend: Literal["pyscf"] = "pyscf"
    method: str = Field("b3lyp", description="functional as the program names it, or 'hf'")
    basis: str = "def2-svp"
    density_fitting: bool = True
    grid_level: int = Field(3, ge=0, le=9, description="quadrature of the functional (PySCF level)")
    convergence_hartree: PositiveFloat = 1e-7
    max_cycles: PositiveInt = 100


class GridSpec(Frozen):
    """A box of points around a molecule in its principal-axis frame."""

    spacing_bohr: PositiveFloat = Field(0.45, description="distance between grid points")
    margin_bohr: PositiveFloat = Field(5.0, description="box = extent of the nuclei + margin")
    delta_au: float = Field(
        1e-5, ge=0.0, description="constant added to the Pauli excess; damps ELF where rho is thin"
    )


class FeatureSpec(Frozen):
    """Fixed-length numbers made of an ELF map."""

    n_bins: PositiveInt = Field(20, description="bins of the ELF-value histograms")
    n_slices: PositiveInt = Field(16, description="slices along each principal axis")
    rho_cut_au: PositiveFloat = Field(1e-3, description="points below this density are not counted")


class Resources(Frozen):
    """What a calculation may use. Never part of a digest."""

    threads: PositiveInt = 1
    memory_mb: PositiveInt = 4000
    time_limit_s: PositiveFloat = 3600.0
    use_gpu: bool = False


class PipelineSpec(Frozen):
    """All stages of one feature run; one species passes through them in order."""

    conformer: ConformerSpec = ConformerSpec()
    calculation: CalculationSpec = CalculationSpec()
    grid: GridSpec = GridSpec()
    features: FeatureSpec = FeatureSpec()
