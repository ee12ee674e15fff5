"""RETAIN: reverse-time attention over visits (Choi et al., NeurIPS 2016).

For the prediction at visit t with visit vectors ``v_k``::

    g = GRU_alpha(v_t, v_(t-1), ..., v_1)      alpha = softmax over k of (w g_k + b)
    h = GRU_beta(v_t, v_(t-1), ..., v_1)       beta_k = tanh(W h_k + b)
    context = sum_k alpha_k beta_k * v_k       logits = W_out context + b_out

The vector of a past visit sums its diagnoses, procedures and drugs, that of visit t its diagnoses
and procedures. Because time runs backwards from t, every visit has a sequence of its own; all of
them go through the recurrent networks together as one packed sequence without padding.
Dropout acts on the embedded codes, on past drugs as a whole, and on the context.

Differences from the code that circulates as a baseline of medication recommendation (SafeDrug's
repository): there the softmax runs over a dimension of one element, so that every alpha is 1
(``attention: ones``), time runs forwards (``reverse_time: false``), and the codes of the visit
itself are not read, which leaves a first visit without any input (``current_codes: false``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from medrec.config import RetainModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, Prediction, Recommender
from medrec.models.layers import BagEmbedding


@dataclass(frozen=True)
class Histories:
    """The sequence that ends at each visit, packed step after step, the longest first.

    Attributes
    ----------
    visit : LongTensor (n,)
        Place of each element in the flattened (B, V) batch.
    owner : LongTensor (n,)
        Place of the visit to which the element's sequence belongs.
    row : LongTensor (n,)
        Number of the element's sequence.
    step : LongTensor (n,)
        Place of the element in its sequence.
    sizes : LongTensor (n_steps,)
        Elements per step; on the CPU.
    """

    visit: torch.Tensor
    owner: torch.Tensor
    row: torch.Tensor
    step: torch.Tensor
    sizes: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor, *, reverse: bool, current: bool) -> Histories:
        """Lay out the sequences of all visits of a mask (B, V)."""
        n_visits, device = mask.shape[1], mask.device
        owner = mask.flatten().nonzero().squeeze(1)
        length = owner % n_visits + int(current)
        order = torch.argsort(length, descending=True, stable=True)
        owner, length = owner[order], length[order]
        steps = torch.arange(n_visits, device=device).unsqueeze(1)
        inside = steps < length  # (n_steps, n_sequences), shrinking from step to step
        step, row = inside.nonzero(as_tuple=True)
        first = owner[row] - owner[row] % n_visits
        within = length[row] - 1 - step if reverse else step
        sizes = inside.sum(dim=1).cpu()
        return cls(first + within, owner[row], row, step, sizes[sizes > 0])


class Retain(Recommender):
    """See the module's text."""

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model = config.model
        assert isinstance(model, RetainModelConfig)
        self.model = model
        d = model.d_model
        self.diagnoses = BagEmbedding(context.n_diagnoses, d, model.dropout)
        self.procedures = BagEmbedding(context.n_procedures, d, model.dropout)
        self.drugs = nn.Linear(context.n_drugs, d, bias=False)
        nn.init.uniform_(self.drugs.weight, -0.1, 0.1)
        self.gru_alpha, self.gru_beta = nn.GRU(d, d), nn.GRU(d, d)
        # a bias would cancel in the softmax
        self.alpha = nn.Linear(d, 1, bias=False)
        self.beta = nn.Linear(d, d)
        self.dropout = nn.Dropout(model.dropout)
        self.output = nn.Linear(d, context.n_drugs)

    def forward(self, batch: VisitBatch, drugs: None = None) -> Prediction:
        """Predict all visits; ``extras["alpha"]`` holds the attention (B, V, V) of each visit."""
        n_patients, n_visits = batch.shape
        flat = n_patients * n_visits
        codes = self.diagnoses(batch.diagnoses, flat) + self.procedures(batch.procedures, flat)
        # visit k's drugs stand in the next place; the last visit's are unknown and never read
        own = torch.cat([batch.drugs_before[:, 1:], batch.drugs_before[:, :1] * 0.0], dim=1)
        past = codes + self.drugs(self.dropout(own)).reshape(flat, -1)
        layout = Histories.of(
            batch.mask, reverse=self.model.reverse_time, current=self.model.current_codes
        )
        is_current = (layout.visit == layout.owner).unsqueeze(1)
        vectors = torch.where(is_current, codes[layout.visit], past[layout.visit])
        weights, context = self._attend(vectors, layout, flat)
        alpha = weights.new_zeros(flat, n_visits)
        alpha[layout.owner, layout.visit % n_visits] = weights.detach()
        logits = self.output(self.dropout(context)).reshape(n_patients, n_visits, -1)
        return self.decide(logits, alpha=alpha.reshape(n_patients, n_visits, n_visits))

    def _attend(
        self, vectors: torch.Tensor, layout: Histories, flat: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight alpha of each element (n,), and the context of each visit (flat, d)."""
        context = vectors.new_zeros(flat, vectors.shape[1])
        if len(vectors) == 0:  # first visits only, and their codes are not to be read
            return vectors.new_zeros(0), context
        packed = PackedSequence(vectors, layout.sizes)
        scores = self.alpha(self.gru_alpha(packed)[0].data).squeeze(1)
        if self.model.attention == "ones":
            weights = torch.ones_like(scores)
        else:
            table = scores.new_full((int(layout.sizes[0]), len(layout.sizes)), -torch.inf)
            table[layout.row, layout.step] = scores
            weights = torch.softmax(table, dim=1)[layout.row, layout.step]
        gates = torch.tanh(self.beta(self.gru_beta(packed)[0].data))
        weighted = weights.unsqueeze(1) * gates * vectors
        return weights, context.index_add_(0, layout.owner, weighted)
