"""Typed requests of every stage, and the named levels: the nouns of `quantum`.

A request says *what* to compute and is part of the digest; `Resources` says *with what* and
never is. Atomic units inside; every name at a boundary ends in its unit.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from quantum.base import Frozen


class ConformerSpec(Frozen):
    """How the 3D geometries of a species are made (RDKit ETKDGv3, a force field, then a choice)."""

    method: Literal["etkdgv3"] = "etkdgv3"
    n_conformers: PositiveInt = Field(5, le=500, description="embeddings tried per species")
    seed: int = Field(20240229, ge=0, description="random seed of the embedding")
    force_field: Literal["mmff94s", "mmff94", "uff"] = Field(
        "mmff94s", description="first choice; UFF is the fallback where it lacks parameters"
    )
    prune_rmsd_angstrom: PositiveFloat = 0.5
    max_iterations: PositiveInt = Field(500, description="force-field steps per conformer")
    max_heavy_atoms: PositiveInt = Field(150, description="larger species are not embedded")
    energy_window_kcal_mol: PositiveFloat = Field(
        6.0, description="conformers above the lowest by more are not kept"
    )
    temperature_k: PositiveFloat = Field(298.15, description="of the Boltzmann weights")
    rank: int = Field(
        0, ge=0, description="which kept conformer goes on to the SCF; 0 has the lowest energy"
    )
    optimise: Literal["none", "gfn2-xtb", "dft"] = Field(
        "none", description="further optimisation of the chosen conformer"
    )
    optimise_method: str = Field("pbe", description="functional of `optimise: dft`")
    optimise_basis: str = Field("def2-svp", description="basis set of `optimise: dft`")


class CalculationSpec(Frozen):
    """One self-consistent-field calculation. All of it changes the number, all of it is keyed."""

    backend: Literal["pyscf", "psi4"] = "pyscf"
    method: str = Field("b3lyp", description="functional as the program names it, or 'hf'")
    basis: str = "def2-svp"
    density_fitting: bool = True
    auxiliary_basis: str = Field("", description="of the density fitting; empty: the default")
    grid_level: int = Field(3, ge=0, le=9, description="quadrature of the functional (PySCF level)")
    convergence_hartree: PositiveFloat = 1e-7
    max_cycles: PositiveInt = 100
    route: Literal["program", "screened"] = Field(
        "program", description="Fock matrix by the program, or by our sparse builder"
    )
    precision: Literal["single", "double"] = Field(
        "double", description="of the products in the screened route"
    )
    dispersion: Literal["none", "d3bj", "d4"] = Field(
        "none", description="added to the energy; the density does not feel it"
    )
    solvent_dielectric: float | None = Field(
        None, gt=1.0, description="relative permittivity of an IEF-PCM solvent; none: vacuum"
    )
    device: Literal["cpu", "gpu"] = Field("cpu", description="gpu: through gpu4pyscf")


ExtraField = Literal["lol", "esp", "gradient", "tau", "esp_surface"]
# in alphabetical order: a manifest's keys are sorted, and readers count columns in their order
FeatureSet = Literal[
    "basins",
    "bonds",
    "charges",
    "composition",
    "density",
    "electronic",
    "elements",
    "elf",
    "esp",
    "lol",
]
# sets that need more than ELF and rho: the field that they are made of
FIELD_OF_SET: dict[FeatureSet, ExtraField] = {"lol": "lol", "esp": "esp_surface"}


class GridSpec(Frozen):
    """A box of points around a molecule in its principal-axis frame."""

    spacing_bohr: PositiveFloat = Field(0.45, description="distance between grid points")
    margin_bohr: PositiveFloat = Field(5.0, description="box = extent of the nuclei + margin")
    delta_au: float = Field(
        1e-5, ge=0.0, description="constant added to the Pauli excess; damps ELF where rho is thin"
    )
    precision: Literal["single", "double"] = "double"
    extra_fields: tuple[ExtraField, ...] = Field(
        (),
        description="stored beside ELF and rho: LOL, electrostatic potential, |grad rho|, tau; "
        "esp_surface is the potential at the points around the surface rho = 0.001 alone",
    )


class FeatureSpec(Frozen):
    """Fixed-length numbers made of an ELF map and of other fields."""

    sets: tuple[FeatureSet, ...] = Field(
        tuple(name for name in get_args(FeatureSet) if name not in FIELD_OF_SET),
        min_length=1,
        description="sets of numbers; 'lol' and 'esp' need fields of grid.extra_fields",
    )
    n_bins: PositiveInt = Field(20, ge=2, description="bins of the histograms of ELF, LOL and ESP")
    n_slices: PositiveInt = Field(16, description="slices along each principal axis")
    rho_cap_au: PositiveFloat = Field(
        0.6, description="weights by density stop here: a uniform grid does not resolve cores"
    )
    rho_cut_au: PositiveFloat = Field(1e-3, description="points below this density are not counted")
    volume_points: int = Field(
        0,
        ge=0,
        le=256,
        description="edge of the stored 3-channel volume for image encoders; 0: none",
    )

    @field_validator("sets")
    @classmethod
    def _in_one_order(cls, sets: tuple[FeatureSet, ...]) -> tuple[FeatureSet, ...]:
        """The same sets in another order are the same request."""
        return tuple(name for name in get_args(FeatureSet) if name in sets)


class Resources(Frozen):
    """What a calculation may use. Never part of a digest."""

    threads: PositiveInt = 1
    memory_mb: PositiveInt = 4000
    time_limit_s: PositiveFloat = 3600.0


class PipelineSpec(Frozen):
    """All stages of one feature run; one species passes through them in order."""

    conformer: ConformerSpec = ConformerSpec()
    calculation: CalculationSpec = CalculationSpec()
    grid: GridSpec = GridSpec()
    features: FeatureSpec = FeatureSpec()

    @model_validator(mode="after")
    def _volume_needs_gradient(self) -> PipelineSpec:
        if self.features.volume_points and "gradient" not in self.grid.extra_fields:
            raise ValueError(
                "features.volume_points needs grid.extra_fields to hold 'gradient', "
                f"has {list(self.grid.extra_fields)}"
            )
        return self

    @model_validator(mode="after")
    def _sets_need_fields(self) -> PipelineSpec:
        for name in self.features.sets:
            field = FIELD_OF_SET.get(name)
            if field and field not in self.grid.extra_fields:
                raise ValueError(
                    f"features.sets has '{name}', which needs grid.extra_fields to hold "
                    f"'{field}', has {list(self.grid.extra_fields)}"
                )
        return self


# Named levels of effort. All start from the same geometry and end on the same grid, so they differ
# by the electronic structure alone; `benchmarks/new_drug.py` measures cost and distance of each.
Level = Literal["fast", "standard", "tight"]

_CONFORMER = ConformerSpec(n_conformers=10)
_GRID = GridSpec(
    spacing_bohr=0.4, precision="single", extra_fields=("gradient", "lol", "esp_surface")
)
_FEATURES = FeatureSpec(sets=get_args(FeatureSet), volume_points=32)

LEVELS: dict[str, PipelineSpec] = {
    "fast": PipelineSpec(
        conformer=_CONFORMER,
        calculation=CalculationSpec(
            method="pbe",
            basis="def2-svp",
            auxiliary_basis="def2-universal-jfit",
            grid_level=0,
            convergence_hartree=3e-5,
            route="screened",
            precision="single",
        ),
        grid=_GRID,
        features=_FEATURES,
    ),
    "standard": PipelineSpec(
        conformer=_CONFORMER,
        calculation=CalculationSpec(
            method="b3lyp",
            basis="def2-svp",
            grid_level=3,
            convergence_hartree=1e-6,
            route="screened",
            precision="single",
        ),
        grid=_GRID,
        features=_FEATURES,
    ),
    "tight": PipelineSpec(
        conformer=_CONFORMER,
        calculation=CalculationSpec(
            method="b3lyp",
            basis="def2-tzvp",
            grid_level=4,
            convergence_hartree=1e-8,
            route="screened",
            precision="double",
        ),
        grid=_GRID.model_copy(update={"precision": "double"}),
        features=_FEATURES,
    ),
}
