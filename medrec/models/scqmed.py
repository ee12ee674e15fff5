"""SCQMed: three GRUs over quantised medical concepts (Lv et al., section III-C), batched.

A concept c is a sequence of code indices per view, fixed by stage 1 (`medrec.concepts`); the code
tables, started from the codebooks of stage 1, learn with the recommender. With V views, L levels::

    q_c = concatenation over views of sum_l e_{l, index_c,l}                     in R^{V d}
    v_D = sum of q_d over the visit's diagnoses;  v_P alike;  v_M of the previous visit's drugs
    x_t = [GRU_D(v_D)_t | GRU_P(v_P)_t | GRU_M(v_M)_t],   logits = head(x_t)              (Eq. 5)

This is the paper. The released code loads one learnable vector per concept, which shares nothing,
and then its constructor draws all of them anew, so that nothing of stage 1 is left; its history is
the sum over *all* earlier visits (``history: cumulative``), its head one linear layer
(``head: linear``), and every epoch is evaluated and stopped on the test part.

Left open by the paper: the dropout, which here is element-wise on each looked-up concept vector
before the sum, as in the released code; the head's hidden layer (``d_model``, ReLU); the first
visit's history, a zero vector that the third GRU reads as its first input.

Ablations: ``concepts: table`` (w/o RQ-VAE, one free vector of ``d_model`` per concept, no concept
table needed) and ``views: [semantic]`` with a concept table made without structure (w/o SE).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medrec.concepts.table import KINDS, ConceptTensors, index_dtype
from medrec.config import SCQMedModelConfig, TrainConfig
from medrec.data.dataset import CodeBag, VisitBatch
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import BagEmbedding
from medrec.molecules.encoders_2d import FastDropout
from quantum.base import InputError


class CodeEmbedding(nn.Module):
    """Sum of concept vectors per visit; a vector is put together from shared codes.

    Parameters
    ----------
    index : LongTensor (N, V, L)
        Codes of the N concepts; kept in the smallest integer type.
    books : Tensor (V, L, K, d)
        Vectors that the code tables start from.
    """

    index: torch.Tensor
    starts: torch.Tensor

    def __init__(self, index: torch.Tensor, books: torch.Tensor, dropout: float) -> None:
        super().__init__()
        n_views, n_levels, n_codes, _ = books.shape
        small = torch.uint8 if index_dtype(n_codes).itemsize == 1 else torch.int16
        self.register_buffer("index", index.to(small))
        self.tables = nn.Parameter(books.clone())
        # place of each table's first code when all are stacked
        starts = torch.arange(n_views * n_levels).reshape(n_views, n_levels) * n_codes
        self.register_buffer("starts", starts, persistent=False)
        self.dropout = FastDropout(dropout)

    @property
    def size(self) -> int:
        """Size of a concept vector, V d."""
        return self.tables.shape[0] * self.tables.shape[3]

    def vectors(self, concepts: torch.Tensor) -> torch.Tensor:
        """Vectors of some concepts (n,); (n, V d)."""
        places = self.index[concepts].long() + self.starts
        n, n_views, n_levels = places.shape
        stacked = self.tables.flatten(0, 2)
        summed = F.embedding_bag(places.reshape(n * n_views, n_levels), stacked, mode="sum")
        return summed.reshape(n, self.size)

    def forward(self, bag: CodeBag, n_visits: int) -> torch.Tensor:
        """Embed a bag; (n_visits, V d)."""
        vectors = self.dropout(self.vectors(bag.index))
        empty = vectors.new_zeros(n_visits, self.size)
        return empty.index_add_(0, bag.visit, vectors)


class SCQMed(Recommender):
    """See the module's text."""

    needs_concepts = True

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, SCQMedModelConfig)
        d = model.d_model
        self.history = model.history
        embedding = {kind: _embedding(model, context, kind) for kind in KINDS}
        size = embedding["drugs"].size
        self.embed = nn.ModuleDict(embedding)
        self.grus = nn.ModuleDict({kind: nn.GRU(size, d, batch_first=True) for kind in KINDS})
        self.head: nn.Module = nn.Linear(3 * d, context.n_drugs)
        if model.head == "mlp":
            self.head = nn.Sequential(nn.Linear(3 * d, d), nn.ReLU(), nn.Linear(d, context.n_drugs))

    def forward(self, batch: VisitBatch, drugs: None = None) -> Prediction:
        """Predict all visits in one causal pass; the drugs of the visits are not an input."""
        bags = {
            "diagnoses": batch.diagnoses,
            "procedures": batch.procedures,
            "drugs": bag_of(batch.drugs_before),
        }
        states = [
            self.grus[kind](self._visits(kind, bag, batch.shape))[0] for kind, bag in bags.items()
        ]
        return self.decide(self.head(torch.cat(states, dim=-1)))

    def _visits(self, kind: str, bag: CodeBag, shape: tuple[int, int]) -> torch.Tensor:
        """Visit vectors of one kind (B, V, size)."""
        n_patients, n_visits = shape
        visits = self.embed[kind](bag, n_patients * n_visits).reshape(n_patients, n_visits, -1)
        if kind == "drugs" and self.history == "cumulative":
            return visits.cumsum(dim=1)
        return visits


def bag_of(sets: torch.Tensor) -> CodeBag:
    """Bag of the codes in multi-hot sets (B, V, N)."""
    visit, code = sets.flatten(0, 1).nonzero(as_tuple=True)
    return CodeBag(code, visit)


class FreeEmbedding(BagEmbedding):
    """One free vector per concept."""

    @property
    def size(self) -> int:
        """Size of a concept vector."""
        return self.table.embedding_dim


def _embedding(
    model: SCQMedModelConfig, context: DrugContext, kind: str
) -> CodeEmbedding | FreeEmbedding:
    if model.concepts == "table":
        return FreeEmbedding(getattr(context, f"n_{kind}"), model.d_model, model.dropout)
    if kind not in context.concepts:
        raise InputError(
            "scqmed needs the codes of medical concepts and was given none; make them with "
            "`medrec concepts configs/concepts/open.yaml --cohort NAME` and pass --concepts NAME, "
            "or set model.concepts to 'table'"
        )
    found = context.concepts[kind]
    return CodeEmbedding(*_of_views(found, model.views, kind), model.dropout)


def _of_views(
    found: ConceptTensors, views: tuple[str, ...], kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and books of the wanted views, in their order."""
    missing = [view for view in views if view not in found.views]
    if missing:
        raise InputError(
            f"the concept table has no {missing[0]} codes of {kind}, only "
            f"{', '.join(found.views)}; expected model.views of a part of these, or a table made "
            "with structure: true"
        )
    place = [found.views.index(view) for view in views]
    return found.index[:, place], found.books[place]
