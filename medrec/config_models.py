"""Configuration of recommenders, their loss and their training; see `medrec.config`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from medrec.config_papers import (
    BiMoRecModelConfig,
    MMMModelConfig,
    RepresentationConfig,
    SCQMedModelConfig,
)
from quantum.base import Frozen


class TopKModelConfig(Frozen):
    """The k most frequent drugs of the training visits, k = their mean number per visit."""

    name: Literal["topk"] = "topk"


class CopyLastModelConfig(Frozen):
    """The previous visit's drugs; top-k at a first visit."""

    name: Literal["copy_last"] = "copy_last"


class CopyFrequencyModelConfig(Frozen):
    """Previous visit's drugs united with the most frequent ones."""

    name: Literal["copy_frequency"] = "copy_frequency"
    min_frequency: float = Field(0.5, ge=0.0, le=1.0)


class LogisticRegressionModelConfig(Frozen):
    """One-vs-rest logistic regression on the current visit's codes (scikit-learn)."""

    name: Literal["logistic_regression"] = "logistic_regression"
    c: PositiveFloat = 1.0
    max_iterations: PositiveInt = 1000
    solver: Literal["newton-cg", "lbfgs"] = "newton-cg"
    tolerance: PositiveFloat = Field(
        1e-5, description="at 1e-4 the solvers differ by several hundredths in probability"
    )


class ECCModelConfig(Frozen):
    """Ensemble of classifier chains over drugs, on the current visit's codes (scikit-learn)."""

    name: Literal["ecc"] = "ecc"
    n_chains: PositiveInt = 10
    c: PositiveFloat = 1.0
    max_iterations: PositiveInt = 1000
    solver: Literal["newton-cg", "lbfgs"] = "newton-cg"
    tolerance: PositiveFloat = 1e-4
    sets: Literal["probabilities", "votes"] = Field(
        "probabilities",
        description="threshold the mean probability, or take what half of the chains choose",
    )


class RetainModelConfig(Frozen):
    """RETAIN (Choi et al., NeurIPS 2016): reverse-time attention over visits and codes."""

    name: Literal["retain"] = "retain"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    attention: Literal["visits", "ones"] = Field(
        "visits", description="softmax over visits; the usual baseline code gives all visits 1"
    )
    reverse_time: bool = Field(True, description="as in the paper; the baseline code: false")
    current_codes: bool = Field(
        True, description="read the visit's own diagnoses and procedures; the baseline code: false"
    )


class LeapModelConfig(Frozen):
    """LEAP (Zhang et al., KDD 2017): drugs decoded one by one from the current diagnoses."""

    name: Literal["leap"] = "leap"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.3, ge=0.0, lt=1.0)
    max_drugs: PositiveInt = Field(45, description="longest decoded list; the published code: 20")
    beam_width: PositiveInt = Field(1, description="1 is the greedy search, as published")
    order: Literal["frequent_first", "rare_first", "vocabulary"] = Field(
        "frequent_first", description="of target lists; frequency in the training visits"
    )
    tune_end: bool = Field(
        True, description="choose a bias of END on validation visits; released: none"
    )
    attention: Literal["additive", "linear"] = Field(
        "additive", description="linear: the released score, which cannot depend on the step"
    )
    attend: Literal["every_step", "first_step"] = Field(
        "every_step", description="first_step: the released code, which overwrites the diagnoses"
    )


class GAMENetModelConfig(Frozen):
    """GAMENet (Shang et al., AAAI 2019): graph-augmented memory of drug combinations."""

    name: Literal["gamenet"] = "gamenet"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    graph_dropout: float = Field(0.3, ge=0.0, lt=1.0)
    embedding_std: PositiveFloat | None = Field(
        None, description="start of the code embeddings; null is the published uniform one, ±0.1"
    )
    ddi_in_memory: bool = Field(True, description="subtract the interaction graph's memory")
    ddi_loss: Literal["annealed", "shared"] = Field(
        "annealed", description="the paper's annealed loss, or the gate of `loss`"
    )
    temperature: PositiveFloat = Field(2.0, description="of the annealed loss in the first epoch")
    cooling: float = Field(0.85, gt=0.0, le=1.0, description="temperature's factor per epoch")


class MicronModelConfig(Frozen):
    """MICRON (Yang et al., IJCAI 2021): changes of medication between two visits."""

    name: Literal["micron"] = "micron"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    add_threshold: float = Field(0.8, gt=0.0, lt=1.0)
    remove_threshold: float = Field(0.2, gt=0.0, lt=1.0)
    tune_thresholds: bool = Field(
        True, description="choose both, and that of first visits, on validation visits"
    )
    history: Literal["previous", "first"] = Field(
        "previous",
        description="the set that changes: the last visit's drugs, or (the released code) the "
        "predicted set, from the first visit's drugs on",
    )
    reconstruction_weight: NonNegativeFloat = 1.0
    ddi_weight: NonNegativeFloat = 1.0


class SafeDrugModelConfig(Frozen):
    """SafeDrug (Yang et al., IJCAI 2021): global and local molecule encoders."""

    name: Literal["safedrug"] = "safedrug"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    mpnn_layers: PositiveInt = Field(2, le=12)
    radius: PositiveInt = Field(2, le=6, description="of the Weisfeiler-Lehman fingerprints")
    encoder: Literal["trained", "frozen_random"] = Field(
        "trained", description="the released code never trains its molecule encoder"
    )
    readout: Literal["mean", "sum"] = Field(
        "mean", description="over the atoms of a molecule; the released code: sum"
    )
    query: Literal["normalised", "plain"] = Field(
        "normalised", description="layer norm, and matches divided by sqrt(d_model); plain: as read"
    )


class COGNetModelConfig(Frozen):
    """COGNet (Wu et al., WWW 2022): copy or generate each drug of a list."""

    name: Literal["cognet"] = "cognet"
    d_model: PositiveInt = Field(64, le=1024)
    n_heads: PositiveInt = 2
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    embedding_dropout: float = Field(0.3, ge=0.0, lt=1.0)
    d_feedforward: PositiveInt = 2048
    max_drugs: PositiveInt = 45
    beam_width: PositiveInt = Field(4, description="1 is the greedy search")
    beam_while_training: bool = Field(
        False, description="beam in the validation of each epoch too; published: greedy there"
    )
    order: Literal["rare_first", "frequent_first", "vocabulary"] = Field(
        "rare_first", description="of target lists; frequency in the training visits"
    )
    tune_end: bool = Field(
        True, description="choose a bias of END on validation visits; released: none"
    )
    rank_listed: Literal["max", "own_step"] = Field(
        "max", description="own_step: the released code's probability of a listed drug"
    )


class CausalMedModelConfig(Frozen):
    """CausalMed (Li et al., CIKM 2024): causal roles and effects of codes."""

    name: Literal["causalmed"] = "causalmed"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    n_discovery_codes: PositiveInt = Field(
        60, description="most frequent codes among which causal discovery runs"
    )
    pairs_per_code: PositiveFloat = Field(
        2.0, description="limit of discovery: pairs of codes per code that may be worth an edge"
    )
    n_effect_levels: PositiveInt = Field(5, le=100)


class DepotModelConfig(Frozen):
    """DEPOT (Zhao et al., 2024): motif trees, and drugs repeated or newly explored."""

    name: Literal["depot"] = "depot"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    n_layers: PositiveInt = 2
    n_heads: PositiveInt = 2
    sample_at_test: bool = Field(False, description="the released code draws noise at test time")


class UDCModelConfig(Frozen):
    """UDC (xmed-lab, 2024): discrete codes that rare diagnoses share with frequent ones."""

    name: Literal["udc"] = "udc"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    n_codebooks: PositiveInt = 4
    n_codes: PositiveInt = Field(64, le=32000)
    commitment: NonNegativeFloat = 0.25
    n_layers: PositiveInt = 2
    n_heads: PositiveInt = 2
    rare_share: float = Field(
        0.5, ge=0.0, le=1.0, description="of the diagnoses, least frequent first, that use codes"
    )
    view_dims: PositiveInt = Field(128, description="size of each view of a diagnosis")
    code_steps: NonNegativeInt = Field(300, description="steps of pre-training the codebooks")
    code_lr: PositiveFloat = 3e-3


_MOVED = {
    "gnn_layers": "representation.layers",
    "gnn_dropout": "representation.dropout",
    "substructure_encoder": "representation.fragments",
    "feature_sets": "representation.feature_sets",
    "use_elf": "representation.kind (gin_elf)",
}


class MoleRecModelConfig(Frozen):
    """MoleRec (Yang et al., WWW 2023), batched, with any representation of molecules."""

    name: Literal["molerec"] = "molerec"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="of the code embeddings")
    representation: RepresentationConfig = RepresentationConfig()
    n_heads: PositiveInt = 2
    sab: Literal["reference", "paper"] = "reference"

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, values: Any) -> Any:
        """Say where settings of earlier versions are now."""
        for name in _MOVED if isinstance(values, dict) else ():
            if name in values:
                raise ValueError(f"'{name}' is now '{_MOVED[name]}'")
        return values


ModelConfig = Annotated[
    TopKModelConfig
    | CopyLastModelConfig
    | CopyFrequencyModelConfig
    | LogisticRegressionModelConfig
    | ECCModelConfig
    | RetainModelConfig
    | LeapModelConfig
    | GAMENetModelConfig
    | MicronModelConfig
    | SafeDrugModelConfig
    | COGNetModelConfig
    | MoleRecModelConfig
    | CausalMedModelConfig
    | DepotModelConfig
    | UDCModelConfig
    | BiMoRecModelConfig
    | SCQMedModelConfig
    | MMMModelConfig,
    Field(discriminator="name"),
]


class LossConfig(Frozen):
    """Prediction loss and the DDI-gated loss (SafeDrug line)."""

    bce_weight: float = Field(0.95, ge=0.0, le=1.0)
    margin_weight: NonNegativeFloat = 0.05
    ddi_target: float = Field(0.06, gt=0.0, lt=1.0, description="acceptable DDI rate of a visit")
    ddi_scale: NonNegativeFloat = 5e-4
    ddi_normalised: bool = Field(False, description="divide by D(D-1) instead of using ddi_scale")
    gate: Literal["none", "safedrug", "molerec", "scqmed_code", "scqmed_paper", "mmm"] = "molerec"
    gate_temperature: PositiveFloat = Field(2.5, description="tau of the exponential gate")
    gate_kp: PositiveFloat = Field(0.05, description="slope of the linear and tanh gates")
    severity_weights: (
        tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] | None
    ) = Field(
        None,
        description="penalty of a pair of grade 1 to 4, in place of the published 0/1 matrix; "
        "grades below the cohort's min_severity count too",
    )
    gate_rate: Literal["published", "weighted"] = Field(
        "published",
        description="what the gate compares with the target: the visit's DDI rate, or the mean "
        "severity weight of its pairs over the largest weight",
    )

    @model_validator(mode="after")
    def _weights_are_usable(self) -> LossConfig:
        if self.severity_weights is not None and not any(self.severity_weights):
            raise ValueError("severity_weights are all 0; expected one above 0, or gate: none")
        if self.gate_rate == "weighted" and self.severity_weights is None:
            raise ValueError("gate_rate 'weighted' needs severity_weights")
        return self


class OptimConfig(Frozen):
    """Optimiser, schedule and stopping rule; the same for every learned model."""

    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-5
    epochs: PositiveInt = 50
    patience: PositiveInt = Field(10, description="epochs without a better validation Jaccard")
    batch_patients: PositiveInt = 16
    encode_every: PositiveInt = Field(
        1,
        description="optimiser steps that share one encoding of the molecules; the encoder then "
        "gets the mean gradient of those steps at once",
    )
    clip_norm: PositiveFloat | None = 5.0
    threshold: float = Field(
        0.5, gt=0.0, lt=1.0, description="in training, and in prediction unless it is tuned"
    )
    tune_threshold: bool = Field(
        True, description="after training, take the threshold with the best validation Jaccard"
    )


class TrainConfig(Frozen):
    """One recommender, trained and selected on validation Jaccard."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    model: ModelConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    split: NonNegativeInt = Field(0, description="which of the cohort's saved splits")
    seed: NonNegativeInt = 1203
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    threads: PositiveInt = Field(
        1, description="CPU threads of a run; a second core serves a second run better"
    )
