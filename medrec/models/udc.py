"""UDC: discrete codes that rare diagnoses share with frequent ones (xmed-lab, 2024).

Two stages in one model. Stage one, in `UDC.fit_context`, on training visits only: two views of each
diagnosis go through linear encoders to one set of residual codebooks (moving averages, commitment
loss); the two views are to agree on their codes (code matching), a decoder whose normalisation is
conditioned on the diagnosis's procedures and drugs restores each view, and a contrastive term draws
a diagnosis to one with similar drugs and away from one with different drugs. Stage two: rare
diagnoses are the sum of their codes, in both views, so that they share parameters with frequent
ones; the codes go on learning with the visit model, a causal Transformer over the visits.

Differences from the published model, with their reasons:

* Text view: Sap-BERT embeddings of the titles are not at hand. Here it is TF-IDF and a truncated
  SVD of the words of the ICD titles and of the beginnings of the codes, from the shipped tables.
  Embeddings of any kind can take their place: ``UDC.fit_context(config, data, text=tensor)``.
* Co-occurrence view: positive PMI and a truncated SVD of co-occurrence counts, not a visit
  Transformer trained beforehand.
* Which diagnoses are rare, the weights of the loss terms (1 each), the temperature of the contrast
  and the size of the visit Transformer are not fixed by the description this was written from.
* The released evaluation uses a threshold of 0.4; here it is tuned, as for every model.

Only diagnoses are quantised, as published.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import TrainConfig, UDCModelConfig
from medrec.data.dataset import CodeBag, VisitBatch
from medrec.models.base import DrugContext, FittingData, Prediction, Recommender
from medrec.models.codebooks import Quantised, ResidualCodebooks, code_matching
from medrec.models.diagnosis_views import DiagnosisViews, diagnosis_views
from medrec.models.layers import BagEmbedding
from quantum.base import InputError

CODE_BATCH = 512
CONTRAST_TEMPERATURE = 0.1


class UDC(Recommender):
    """See the module's text."""

    rare: torch.Tensor
    codes: torch.Tensor

    @classmethod
    def fit_context(
        cls, config: TrainConfig, data: FittingData, text: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Learn the codes of the diagnoses.

        Parameters
        ----------
        text : Tensor (N, d), optional
            Text embeddings of the diagnosis vocabulary, in its order.
        """
        model = config.model
        assert isinstance(model, UDCModelConfig)
        given = None if text is None else text.detach().cpu().numpy()
        views = diagnosis_views(data, model.view_dims, model.rare_share, config.seed, given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            trainer = CodeTrainer(model, views)
            trainer.fit(model.code_steps, model.code_lr)
        first, second = trainer.quantise()
        return {
            "codes": torch.stack([first.codes, second.codes], dim=1).to(torch.int16),
            "codebooks": trainer.books.table.clone(),
            "rare": torch.from_numpy(views.rare),
        }

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, UDCModelConfig)
        d = model.d_model
        if d % model.n_heads or d % 2:
            raise InputError(
                f"d_model {d} is not even, or not divisible by n_heads {model.n_heads}, in udc"
            )
        self.register_buffer("rare", context.fitted["rare"].unsqueeze(1))
        self.register_buffer("codes", context.fitted["codes"].long())
        self.codebooks = nn.Parameter(context.fitted["codebooks"].clone())
        self.from_codes = nn.Linear(2 * d, d)
        self.diagnoses = nn.Embedding(max(context.n_diagnoses, 1), d)
        nn.init.uniform_(self.diagnoses.weight, -0.1, 0.1)
        self.procedures = BagEmbedding(context.n_procedures, d, model.dropout)
        self.drugs = nn.Linear(context.n_drugs, d, bias=False)
        self.dropout = nn.Dropout(model.dropout)
        self.visit = nn.Linear(3 * d, d)
        layer = nn.TransformerEncoderLayer(d, model.n_heads, 4 * d, model.dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, model.n_layers, enable_nested_tensor=False)
        self.output = nn.Linear(d, context.n_drugs)

    def diagnosis_vectors(self) -> torch.Tensor:
        """Vectors of the vocabulary (N, d): a table's row, or for a rare diagnosis its codes."""
        if not len(self.rare):
            return self.diagnoses.weight
        levels = torch.arange(self.codebooks.shape[0], device=self.codes.device)
        summed = self.codebooks[levels, self.codes].sum(dim=2)  # (N, 2, d)
        return torch.where(self.rare, self.from_codes(summed.flatten(1)), self.diagnoses.weight)

    def forward(self, batch: VisitBatch, drugs: None = None) -> Prediction:
        """Predict all visits in one causal pass."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        vectors = torch.cat(
            [
                self._diagnoses(batch.diagnoses, flat),
                self.procedures(batch.procedures, flat),
                self.drugs(self.dropout(batch.drugs_before)).reshape(flat, -1),
            ],
            dim=1,
        )
        visits = self.visit(vectors).reshape(n_patients, n_visits, -1)
        visits = visits + positions(n_visits, visits.shape[2], visits.device)
        # padding comes after a patient's visits, so that looking back never meets it
        ahead = torch.ones(n_visits, n_visits, dtype=torch.bool, device=visits.device).triu(1)
        return self.decide(self.output(self.transformer(visits, mask=ahead)))

    def _diagnoses(self, bag: CodeBag, flat: int) -> torch.Tensor:
        vectors = self.dropout(self.diagnosis_vectors()[bag.index])
        return vectors.new_zeros(flat, vectors.shape[1]).index_add_(0, bag.visit, vectors)


def positions(n: int, d: int, device: torch.device) -> torch.Tensor:
    """Sine and cosine positions of n visits (n, d), of any length (Vaswani et al., 2017)."""
    rates = torch.exp(torch.arange(0, d, 2, device=device) * (-math.log(10000.0) / d))
    angles = torch.arange(n, device=device).unsqueeze(1) * rates
    return torch.stack([torch.sin(angles), torch.cos(angles)], dim=2).flatten(1)


class ConditionedDecoder(nn.Module):
    """Restores a view; scale and shift of its normalisation come from the condition."""

    def __init__(self, d: int, d_condition: int, d_view: int) -> None:
        super().__init__()
        self.into = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.condition = nn.Linear(d_condition, 2 * d)
        self.out = nn.Linear(d, d_view)

    def forward(self, codes: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Decode (n, d_view)."""
        scale, shift = self.condition(condition).chunk(2, dim=1)
        return self.out(torch.relu(self.norm(self.into(codes)) * (1.0 + scale) + shift))


class CodeTrainer(nn.Module):
    """Stage one: learns the codebooks from the views of the diagnoses."""

    def __init__(self, model: UDCModelConfig, views: DiagnosisViews) -> None:
        super().__init__()
        d = model.d_model
        self.commitment = model.commitment
        self.views = [torch.from_numpy(view) for view in (views.co_occurrence, views.text)]
        self.condition = torch.from_numpy(views.condition)
        self.near, self.far = torch.from_numpy(views.near), torch.from_numpy(views.far)
        self.books = ResidualCodebooks(model.n_codebooks, model.n_codes, d)
        self.encoders = nn.ModuleList(nn.Linear(view.shape[1], d) for view in self.views)
        self.decoders = nn.ModuleList(
            ConditionedDecoder(d, self.condition.shape[1], view.shape[1]) for view in self.views
        )
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))

    def encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of some diagnoses in both views, before quantisation."""
        first, second = (
            encoder(view[rows]) for encoder, view in zip(self.encoders, self.views, strict=True)
        )
        return first, second

    @torch.no_grad()
    def quantise(self) -> tuple[Quantised, Quantised]:
        """Codes of all diagnoses in both views."""
        first, second = self.encode(torch.arange(len(self.near)))
        return self.books(first), self.books(second)

    def fit(self, n_steps: int, lr: float) -> list[float]:
        """Train; returns the loss of every step with codes.

        The first third of the steps is without codes: codebooks that start from moving vectors
        would be left behind by them, and few codes would ever be used.
        """
        n, losses = len(self.near), list[float]()
        if n == 0:
            return losses
        optimiser = torch.optim.Adam(self.parameters(), lr=lr)
        for step in range(n_steps + 1):
            if step == n_steps // 3:
                everything = torch.cat(self.encode(torch.arange(n)))
                self.books.start_from(everything.detach(), self.generator.initial_seed())
            if step == n_steps:
                break
            rows = torch.randperm(n, generator=self.generator)[:CODE_BATCH]
            loss, quantised = self.step_loss(rows, with_codes=step >= n_steps // 3)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            for item in quantised:
                self.books.follow(item, self.generator)
            if quantised:
                losses.append(float(loss.detach()))
        return losses

    def step_loss(
        self, rows: torch.Tensor, *, with_codes: bool
    ) -> tuple[torch.Tensor, list[Quantised]]:
        """Restoration and contrast, and with codes also commitment and code matching."""
        encoded = self.encode(rows)
        if not with_codes:
            return self._described(rows, encoded), []
        first, second = (self.books(z) for z in encoded)
        loss = self._described(rows, (first.vectors, second.vectors))
        loss = loss + code_matching(first, second, self.books)
        loss = loss + self.commitment * (first.commitment + second.commitment)
        return loss, [first, second]

    def _described(
        self, rows: torch.Tensor, vectors: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """How well vectors of both views restore the views, and tell near from far."""
        loss = self.condition.new_zeros(())
        near, far = self.encode(self.near[rows]), self.encode(self.far[rows])
        for i, (vector, decoder) in enumerate(zip(vectors, self.decoders, strict=True)):
            restored = decoder(vector, self.condition[rows])
            # rows of a view have length 1: the squared length of the error is at most of order 1
            loss = loss + (restored - self.views[i][rows]).square().sum(dim=1).mean()
            margin = F.cosine_similarity(vector, near[i]) - F.cosine_similarity(vector, far[i])
            loss = loss + F.softplus(-margin / CONTRAST_TEMPERATURE).mean()
        return loss


def joint_collisions(codes: torch.Tensor) -> float:
    """Share of diagnoses whose codes (N, 2, L) another diagnosis has too."""
    if not len(codes):
        return 0.0
    _, counts = np.unique(codes.flatten(1).cpu().numpy(), axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(codes))
