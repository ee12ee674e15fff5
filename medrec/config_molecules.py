"""Configuration of molecule libraries, molecular pre-training and property prediction.

See `medrec.config`. A library is imported once (`LibraryConfig`); encoders are pre-trained on it
(`MoleculePretrainConfig`) and fine-tuned on the targets of a library (`PropertyConfig`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from quantum.base import Frozen

# --------------------------------------------------------------------------- libraries

MOLECULENET = (
    "bace", "bbbp", "clintox", "esol", "freesolv", "hiv", "lipo", "muv", "sider", "tox21", "toxcast"
)  # fmt: skip


class QM9Source(Frozen):
    """QM9 with its B3LYP geometries: one Parquet file, or ``gdb9.sdf`` with ``gdb9.sdf.csv``."""

    format: Literal["qm9"] = "qm9"
    path: Path
    exclude: Path | None = Field(
        None, description="list of inconsistent molecules (uncharacterized.txt) to leave out"
    )


class QM8Source(Frozen):
    """QM8 as a CSV table; geometries from QM9 through a table of row numbers."""

    format: Literal["qm8"] = "qm8"
    path: Path
    qm9: Path | None = Field(None, description="QM9 Parquet file, for geometries")
    links: Path | None = Field(None, description="table row, qm9_index")


class MoleculeNetSource(Frozen):
    """One data set of MoleculeNet as a CSV table of SMILES and targets."""

    format: Literal["moleculenet"] = "moleculenet"
    dataset: Literal[
        "bace", "bbbp", "clintox", "esol", "freesolv", "hiv", "lipo", "muv", "sider", "tox21",
        "toxcast",
    ]  # fmt: skip
    path: Path


class SDFSource(Frozen):
    """Molecules with 3D coordinates in one or several SDF files (PCQM4Mv2, or one's own)."""

    format: Literal["sdf"] = "sdf"
    path: Path = Field(description="an SDF file, gzipped or not, or a folder of them")
    targets: Path | None = Field(None, description="CSV table whose rows are the SDF's records")
    target_columns: tuple[str, ...] = ()
    units: tuple[str, ...] = Field((), description="one for each target column")


class SmilesSource(Frozen):
    """A table with a column of SMILES."""

    format: Literal["smiles"] = "smiles"
    path: Path
    smiles_column: str = "smiles"
    target_columns: tuple[str, ...] = ()
    units: tuple[str, ...] = Field((), description="one for each target column")
    conformers: bool = Field(False, description="make one conformer each with RDKit (ETKDGv3)")


MoleculeSource = Annotated[
    QM9Source | QM8Source | MoleculeNetSource | SDFSource | SmilesSource,
    Field(discriminator="format"),
]


class LibraryConfig(Frozen):
    """A set of molecules to import into arrays that are read through memory maps."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    source: MoleculeSource
    hydrogens: bool = Field(
        False, description="atoms of both views: all atoms, or heavy atoms alone"
    )
    max_atoms: PositiveInt = Field(
        256, le=1024, description="larger molecules are left out and counted"
    )
    need_positions: bool = Field(
        False, description="leave out, and count, molecules without 3D coordinates"
    )
    limit: PositiveInt | None = Field(None, description="only the first so many records")


# --------------------------------------------------------------------------- encoders

EncoderKind = Literal["molinteract", "gine", "schnet", "two_towers", "visnet"]
Modality = Literal["both", "2d", "3d"]


class MoleculeEncoderConfig(Frozen):
    """A network from molecules to states of atoms and of molecules."""

    kind: EncoderKind = Field(
        "molinteract",
        description="molinteract: GINE and SchNet that exchange states in every layer; two_towers: "
        "the same towers without exchange; gine, schnet: one of them; visnet: equivariant "
        "transformer of PyTorch Geometric, an upper anchor",
    )
    d_model: PositiveInt = Field(300, le=1024)
    layers: PositiveInt = Field(8, le=16)
    interactor: Literal["mlp", "mean", "attention"] = Field(
        "mlp", description="molinteract: MLP of both states, their mean, or self-attention"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    jk: Literal["last", "mean", "sum"] = Field("last", description="which layers are read")


# --------------------------------------------------------------------------- pre-training tasks

InteractTerm = Literal["distance", "angle", "dihedral", "edge", "spd", "centrality"]
ALL_TERMS: tuple[InteractTerm, ...] = (
    "distance", "angle", "dihedral", "edge", "spd", "centrality"
)  # fmt: skip
"""L_All; L_Simple is ``("distance", "spd")``."""


class PredictTaskConfig(Frozen):
    """MolInteract's tasks: 2D states predict 3D quantities and the other way round (Eqs. 4-9)."""

    kind: Literal["predict"] = "predict"
    terms: tuple[InteractTerm, ...] = Field(ALL_TERMS, min_length=1)
    centrality: Literal["eigenvector", "betweenness"] = "eigenvector"
    centrality_form: Literal["difference", "sum"] = Field(
        "difference",
        description="difference of two atoms' states; sum is Eq. 9 as printed, which cannot rank",
    )
    pairs_per_atom: PositiveInt = Field(2, description="random pairs for distance, path, ranking")
    max_pairs: PositiveInt = Field(256, description="random pairs of one molecule at most")
    spd_classes: PositiveInt = Field(20, ge=2, description="longer paths fall into the last one")
    dihedral_bins: PositiveInt = Field(20, ge=2)


class ContrastiveTaskConfig(Frozen):
    """Align whole molecules' 2D and 3D vectors from 2D to 3D."""

    kind: Literal["contrastive"] = "contrastive"
    loss: Literal["nt_xent", "infonce"] = Field(
        "nt_xent",
        description="nt_xent: BiMoRec's and 3D InfoMax's, positives left out of the denominator; "
        "infonce: positives in it",
    )
    temperature: PositiveFloat = 0.1
    d_projection: PositiveInt = 256


class MaskingTaskConfig(Frozen):
    """Predict the hidden atomic number of masked atoms (attribute masking)."""

    kind: Literal["masking"] = "masking"
    share: float = Field(0.15, gt=0.0, lt=1.0)


PretrainTask = Annotated[
    PredictTaskConfig | ContrastiveTaskConfig | MaskingTaskConfig, Field(discriminator="kind")
]

# --------------------------------------------------------------------------- optimisation


class FitConfig(Frozen):
    """How a network is fitted: the same for pre-training and property prediction.

    ``batch_size`` is that of the whole run, all workers and accumulation steps together, so the
    number of workers changes neither the gradients nor the name of a run.
    """

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 1024
    accumulate: PositiveInt = Field(1, description="parts of a batch that pass one after another")
    lr: PositiveFloat = 1e-4
    schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine falls to 0")
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = None
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products; weights and geometry stay float32"
    )
    ema: float | None = Field(None, gt=0.0, lt=1.0, description="decay of averaged weights")
    checkpoint_minutes: PositiveFloat = 10.0
    patience: PositiveInt | None = Field(
        None, description="stop after so many epochs without a better validation score"
    )
    seed: NonNegativeInt = 42

    @model_validator(mode="after")
    def _parts(self) -> FitConfig:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} is larger than batch_size {self.batch_size}"
            )
        return self


class SplitConfig(Frozen):
    """Which molecules train, validate and test."""

    kind: Literal["random", "scaffold", "none"] = Field(
        "random",
        description="scaffold: Bemis-Murcko groups, largest first; none: all molecules train",
    )
    train: float = Field(0.8, gt=0.0, description="share, or number if above 1")
    valid: float = Field(0.1, ge=0.0, description="share, or number if above 1; the rest tests")
    seed: NonNegativeInt = Field(42, description="of a random split; a scaffold split has none")


class MoleculePretrainConfig(Frozen):
    """Pre-train an encoder on the training part of a library."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    encoder: MoleculeEncoderConfig = MoleculeEncoderConfig()
    task: PretrainTask = PredictTaskConfig()
    split: SplitConfig = Field(
        SplitConfig(kind="none"), description="molecules outside the training part are not seen"
    )
    limit: PositiveInt | None = Field(None, description="only so many training molecules")
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _possible(self) -> MoleculePretrainConfig:
        kind, task = self.encoder.kind, self.task
        if task.kind == "predict" and kind != "molinteract":
            raise ValueError(f"task predict needs an encoder molinteract, not {kind}")
        if task.kind == "contrastive" and kind != "two_towers":
            raise ValueError(f"task contrastive needs an encoder two_towers, not {kind}")
        if task.kind == "masking" and kind not in ("gine", "schnet"):
            raise ValueError(f"task masking needs an encoder gine or schnet, not {kind}")
        if task.kind == "contrastive" and self.fit.accumulate > 1:
            raise ValueError(
                "task contrastive compares all molecules of a batch: accumulate must be 1, "
                f"not {self.fit.accumulate}"
            )
        return self


class PropertyConfig(Frozen):
    """Fine-tune an encoder, pre-trained or not, on targets of a library."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    encoder: MoleculeEncoderConfig = MoleculeEncoderConfig()
    modality: Modality = Field(
        "both",
        description="2d, 3d: the other tower is off, its initial embedding frozen (molinteract)",
    )
    targets: tuple[str, ...] | None = Field(None, description="null is all of the library")
    split: SplitConfig = SplitConfig()
    limit_train: PositiveInt | None = Field(None, description="only so many training molecules")
    head_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    freeze_encoder: bool = False
    fit: FitConfig = FitConfig(batch_size=128)

    @model_validator(mode="after")
    def _possible(self) -> PropertyConfig:
        kind = self.encoder.kind
        if kind == "gine" and self.modality != "2d":
            raise ValueError("an encoder gine needs modality 2d")
        if kind in ("schnet", "visnet") and self.modality != "3d":
            raise ValueError(f"an encoder {kind} needs modality 3d")
        return self
