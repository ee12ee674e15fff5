"""Configuration of the papers' recommenders (BiMoRec, SCQMed, MMM) and of what they are built on.

Representations of molecules, which plug into several recommenders, are here too; see
`medrec.config`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from quantum.base import Frozen

RepresentationKind = Literal["gin", "molinteract", "elf", "fingerprint", "gin_elf", "none"]


class RepresentationConfig(Frozen):
    """How a recommender knows molecules and their fragments."""

    kind: RepresentationKind = Field(
        "gin",
        description="gin: 2D graph network, pre-trained if a run is given; molinteract: 2D and 3D "
        "towers that interact; elf: columns of the feature table; fingerprint: ECFP4; gin_elf: sum "
        "of both; none: one learned vector per drug class and no molecule or fragment at all",
    )
    layers: PositiveInt = Field(4, le=12, description="of the graph networks")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="inside the graph networks")
    fragments: Literal["gnn", "table"] = Field(
        "gnn", description="fragments by a 2D graph network of their own, or a learned table"
    )
    feature_sets: tuple[str, ...] | None = Field(
        None, description="sets of the feature table that elf and gin_elf read; null means all"
    )
    shuffle_seed: NonNegativeInt | None = Field(
        None, description="null test: give each drug class the molecules of another one"
    )
    hide_share: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="elf and gin_elf: share of the molecules' maps to hide, drawn by the run's "
        "seed; a larger share hides the maps of a smaller one and more",
    )


class BiMoRecModelConfig(Frozen):
    """BiMoRec (Mu et al.): bimodal pre-trained molecules, enhanced in several steps."""

    name: Literal["bimorec"] = "bimorec"
    d_model: PositiveInt = Field(128, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="of the code embeddings")
    representation: RepresentationConfig = RepresentationConfig()
    n_heads: PositiveInt = 2
    sab: Literal["reference", "paper"] = "reference"
    intra_visit: bool = Field(True, description="attention among the molecules given together")
    latest_visit: bool = Field(True, description="gate by the logits of the latest visit")

    @model_validator(mode="after")
    def _heads_share_the_size(self) -> BiMoRecModelConfig:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}")
        return self


class SCQMedModelConfig(Frozen):
    """SCQMed (Lv et al.): quantised medical concepts with a semantic and a structural view."""

    name: Literal["scqmed"] = "scqmed"
    d_model: PositiveInt = Field(128, le=1024, description="hidden size of the three GRUs")
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    concepts: Literal["codes", "table"] = Field(
        "codes", description="shared code tables; table: one free vector per concept (w/o RQ-VAE)"
    )
    views: tuple[Literal["semantic", "structural"], ...] = Field(
        ("semantic", "structural"), description="semantic alone is the ablation w/o SE"
    )
    history: Literal["previous", "cumulative"] = Field(
        "previous", description="cumulative: the released code's sum over all earlier visits"
    )
    head: Literal["mlp", "linear"] = Field("mlp", description="linear: the released code")

    @model_validator(mode="after")
    def _views_differ(self) -> SCQMedModelConfig:
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(
                f"views {list(self.views)} is empty or repeats one; expected semantic, structural "
                "or both"
            )
        return self


class MMMModelConfig(Frozen):
    """MMM (arXiv:2510.07910): quantum-chemical maps beside a bipartite fragment encoder."""

    name: Literal["mmm"] = "mmm"
    d_model: PositiveInt = Field(64, le=1024)
    dropout: float = Field(0.5, ge=0.0, lt=1.0)
    representation: RepresentationConfig = RepresentationConfig(kind="elf")
    use_global: bool = Field(True, description="false: w/o ELF")
    use_local: bool = Field(True, description="false: w/o the bipartite branch")
    features: Literal["frozen", "trained"] = Field(
        "frozen", description="trained: the released code, where the features are free parameters"
    )
    match: Literal["normalised", "plain"] = Field(
        "normalised",
        description="layer norm of queries and class vectors, and their products divided by "
        "sqrt(d_model); plain: as released",
    )

    @model_validator(mode="after")
    def _consistent(self) -> MMMModelConfig:
        if not (self.use_global or self.use_local):
            raise ValueError("use_global and use_local are both false; expected one branch or both")
        if self.features == "trained" and self.representation.kind not in ("elf", "gin_elf"):
            raise ValueError(
                f"features 'trained' is about a feature table; representation kind is "
                f"'{self.representation.kind}', expected 'elf' or 'gin_elf'"
            )
        return self


# --------------------------------------------------------------------------- medical concepts


class TextConfig(Frozen):
    """Semantic view: sentence embeddings of a concept's title."""

    encoder: Literal["tfidf_svd", "transformer"] = Field(
        "tfidf_svd",
        description="offline default: character n-grams, truncated SVD; transformer: a folder with "
        "a sentence encoder such as BioBERT, read through transformers",
    )
    path: str | None = Field(None, description="folder of the transformer")
    pooling: Literal["mean", "cls"] = "mean"
    dims: PositiveInt = Field(768, description="of the offline default, at most")
    batch_size: PositiveInt = Field(64, description="titles at once through the transformer")

    @model_validator(mode="after")
    def _has_path(self) -> TextConfig:
        if self.encoder == "transformer" and self.path is None:
            raise ValueError("encoder 'transformer' needs path, a folder with its files")
        return self


class GraphConfig(Frozen):
    """Structural view: a knowledge graph of concepts, and its encoder."""

    source: Literal["open", "umls"] = "open"
    umls: str | None = Field(None, description="folder with MRCONSO.RRF and MRREL.RRF")
    umls_hops: PositiveInt = Field(1, le=4, description="how far from the cohort's concepts")
    umls_max_nodes: PositiveInt = Field(
        30_000, description="the best linked neighbours are kept up to here"
    )
    encoder: Literal["kgin", "spectral"] = "kgin"
    dims: PositiveInt = 256
    layers: PositiveInt = 2
    intents: PositiveInt = 4
    epochs: NonNegativeInt = 30
    lr: PositiveFloat = 1e-3
    independence: NonNegativeFloat = Field(1e-4, description="weight of the intents' independence")
    held_out: float = Field(
        0.05, ge=0.0, le=0.5, description="share of linked pairs to measure the encoder on"
    )

    @model_validator(mode="after")
    def _has_files(self) -> GraphConfig:
        if self.source == "umls" and self.umls is None:
            raise ValueError("source 'umls' needs umls, the folder with MRCONSO.RRF and MRREL.RRF")
        return self


class CodebookSizes(Frozen):
    """Codes per level, by kind of concept."""

    diagnoses: PositiveInt = Field(256, le=32000)
    procedures: PositiveInt = Field(256, le=32000)
    drugs: PositiveInt = Field(32, le=32000)


class QuantiserConfig(Frozen):
    """SE-RQVAE: residual quantisation of both views of every concept, aligned."""

    levels: PositiveInt = 4
    code_dim: PositiveInt = 64
    codebook_sizes: CodebookSizes = Field(CodebookSizes(), description="codes per level")
    commitment: NonNegativeFloat = 1.0
    align_weight: NonNegativeFloat = 0.01
    align_temperature: PositiveFloat = 0.1
    epochs: PositiveInt = 2000
    patience: PositiveInt = Field(20, description="epochs without a gain of `least_gain`")
    least_gain: NonNegativeFloat = Field(
        0.02,
        description="training goes on while the share of the views that the codes do not restore, "
        "plus the joint collision rate, falls by more than this",
    )
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    batch_size: PositiveInt = Field(
        128, description="concepts per step, and so the negatives of the alignment; released: 1024"
    )
    balance_last_level: bool = Field(
        False, description="Sinkhorn assignment at the last level, as in the released code"
    )
    revive_dead_codes: bool = True


class ConceptConfig(Frozen):
    """SCQMed, stage 1: descriptions of medical concepts and their codes."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    text: TextConfig = TextConfig()
    graph: GraphConfig = GraphConfig()
    quantiser: QuantiserConfig = QuantiserConfig()
    structure: bool = Field(True, description="false: w/o SE, the semantic view alone is quantised")
    seed: NonNegativeInt = 42
