"""LEAP: drugs prescribed one by one from the current diagnoses (Zhang et al., KDD 2017), batched.

A GRU decoder starts from the embedding of the start token. At every step it attends to the
diagnoses of the visit with its state and gets that context and the newest drug; a linear layer
gives the next drug or END. Trained with the true list as input (teacher forcing) and cross-entropy,
averaged over the tokens of a visit and then over visits. No procedures, no history, and no
fine-tuning by reinforcement (disabled in the released code as well).

What differs from the released code, and the options:

- ``attention``. The released score is one linear layer on [state, diagnosis]: the state's share is
  the same for all diagnoses, cancels in the softmax, and the attention cannot depend on the step.
  The paper means content-based attention; the default ``additive`` is v tanh(W_h h + W_e e), and
  ``linear`` is the released score (without the half that cancels).
- ``attend``. The released code overwrites the diagnoses with the first step's context, so that
  all later steps see that one vector: ``first_step``. The default attends at ``every_step``.
  With ``linear`` both are the same.
- ``order`` of the drugs in a target list. The released code takes the order of the prescription
  file; here it is the drugs' frequency in the training visits, the most frequent first, or the
  rarest first, or the order of the vocabulary.
- Lists may hold up to ``max_drugs`` drugs (released: 20) and no drug twice; a drug is compared with
  END among the drugs not listed yet. ``beam_width`` above 1 decodes with a beam (greedy in the
  validation of each epoch). END is no drug and never counted; the start token cannot be an output.
- ``tune_end`` chooses, after training and on validation visits, a bias of END; see
  `medrec.models.decoding`. The released code has none.

Probabilities for ranking, as published: the mean over the steps of the decoded list of the
softmax's drug part. They rank drugs; they are not chances that a drug is in the set, since those
of a visit add up to at most 1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medrec.config import LeapModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, Prediction
from medrec.models.decoding import DrugLists, ListRecommender, PaddedSets
from medrec.models.losses import LossTerms
from medrec.molecules.encoders_2d import FastDropout


class Leap(ListRecommender):
    """See the module's text."""

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        model = config.model
        assert isinstance(model, LeapModelConfig)
        super().__init__(
            config,
            context,
            order=model.order,
            width=model.beam_width,
            width_in_training=1,
            max_drugs=model.max_drugs,
            ranking="mean",
            tune_end=model.tune_end,
        )
        d, self.settings = model.d_model, model
        self.diagnoses = nn.Embedding(max(context.n_diagnoses, 1), d)
        self.tokens = nn.Embedding(context.n_drugs + 1, d)
        self.dropout = FastDropout(model.dropout)
        self.attention = AdditiveAttention(d) if model.attention == "additive" else None
        self.linear_score = None if self.attention is not None else nn.Linear(d, 1, bias=False)
        self.cell = nn.GRUCell(2 * d, d)
        self.out = nn.Linear(d, context.n_drugs + 1)

    def forward(self, batch: VisitBatch, drugs: None) -> Prediction:
        """Embed the diagnoses and, in evaluation mode, decode."""
        number = torch.cumsum(batch.mask.flatten(), 0) - 1  # of each visit, without padding
        rows = number[batch.diagnoses.visit]
        sets = PaddedSets.of(batch.diagnoses.index, rows, int(batch.mask.sum()))
        vectors, present = self.dropout(self.diagnoses(sets.index)), sets.mask
        extras = {"vectors": vectors, "present": present}
        if self.training:
            return self.undecoded(batch, extras)
        return self.decode(batch, lambda width: LeapDecoder(self, vectors, present, width), extras)

    def loss(self, batch: VisitBatch, prediction: Prediction) -> LossTerms:
        """Cross-entropy of the true lists, END included; mean over tokens, then over visits."""
        lists = DrugLists.of(batch.target[batch.mask], self.order)
        # longest first: at each step the lists still growing are the first rows
        lengths, longest = torch.sort(lists.lengths, descending=True, stable=True)
        inputs, outputs = lists.inputs[longest], lists.outputs[longest]
        steps = torch.arange(inputs.shape[1], device=lengths.device)
        growing = (lengths.unsqueeze(0) > steps.unsqueeze(1)).T
        tokens = self.dropout(self.tokens(inputs)).unbind(1)
        view = self.view(
            prediction.extras["vectors"][longest], prediction.extras["present"][longest]
        )
        hidden = self.first_hidden(len(longest))
        states = []
        for token, n in zip(tokens, growing.sum(dim=0).tolist(), strict=True):
            view = view.first(n)
            hidden = self.advance(view, token[:n].unsqueeze(1), hidden[:n])
            states.append(hidden.squeeze(1))
        logits = self.out(torch.cat(states))
        loss = F.cross_entropy(logits, outputs.T[growing.T], reduction="none")
        share = 1.0 / lengths.unsqueeze(0).expand(growing.T.shape)[growing.T]
        total = (loss * share).sum() / len(lengths)
        return LossTerms(total, {"nll": total.detach()})

    def view(self, vectors: torch.Tensor, present: torch.Tensor) -> DiagnosisView:
        """What the decoder sees of the diagnoses (n, C, d) of n visits."""
        if self.attention is None:
            assert self.linear_score is not None
            scores = self.linear_score(vectors).squeeze(-1).unsqueeze(1)
            return DiagnosisView(vectors, present, None, _weighted(scores, present, vectors))
        view = DiagnosisView(vectors, present, self.attention.keys(vectors), None)
        if self.settings.attend == "first_step":
            view.context = self.attention(view, self.first_hidden(len(vectors)))
        return view

    def first_hidden(self, n: int) -> torch.Tensor:
        """State before the first step (n, 1, d): the start token's embedding."""
        return self.tokens.weight[-1].expand(n, 1, -1)

    def advance(
        self, view: DiagnosisView, tokens: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Next state (n, w, d) from embedded tokens (n, w, d) and the state before (n, w, d)."""
        if view.context is not None:
            context = view.context.expand(hidden.shape)
        else:
            assert self.attention is not None
            context = self.attention(view, hidden)
        inputs = torch.cat([context, tokens], dim=-1)
        return self.cell(inputs.flatten(0, 1), hidden.flatten(0, 1)).reshape(hidden.shape)


class DiagnosisView:
    """Diagnoses of n visits as the decoder uses them.

    Attributes
    ----------
    vectors : Tensor (n, C, d)
    present : BoolTensor (n, C)
    keys : Tensor (n, C, d) or None
        Projected once for all steps.
    context : Tensor (n, 1, d) or None
        The context of all steps, where it does not depend on the step.
    """

    def __init__(
        self,
        vectors: torch.Tensor,
        present: torch.Tensor,
        keys: torch.Tensor | None,
        context: torch.Tensor | None,
    ) -> None:
        self.vectors, self.present, self.keys, self.context = vectors, present, keys, context

    def first(self, n: int) -> DiagnosisView:
        """View of the first n visits."""
        return self if n == len(self.vectors) else self.rows(slice(0, n))

    def rows(self, rows: slice | torch.Tensor) -> DiagnosisView:
        """View of some visits."""
        keys = None if self.keys is None else self.keys[rows]
        context = None if self.context is None else self.context[rows]
        return DiagnosisView(self.vectors[rows], self.present[rows], keys, context)


class AdditiveAttention(nn.Module):
    """Content-based attention of w states to the diagnoses of their visit."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.keys = nn.Linear(d_model, d_model)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.score = nn.Linear(d_model, 1, bias=False)

    def forward(self, view: DiagnosisView, hidden: torch.Tensor) -> torch.Tensor:
        """Contexts (n, w, d) of states (n, w, d); zero for a visit without a diagnosis."""
        assert view.keys is not None
        joint = torch.tanh(view.keys.unsqueeze(1) + self.query(hidden).unsqueeze(2))
        return _weighted(self.score(joint).squeeze(-1), view.present, view.vectors)


def _weighted(scores: torch.Tensor, present: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Softmax of scores (n, w, C) over the codes present, then the mean of vectors (n, w, d)."""
    mask = present.unsqueeze(1)
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1)
    return (weights * mask) @ vectors


class LeapDecoder:
    """States of w lists of each visit; see `medrec.models.decoding.StepDecoder`."""

    def __init__(
        self, model: Leap, vectors: torch.Tensor, present: torch.Tensor, width: int
    ) -> None:
        self.model, self.view = model, model.view(vectors, present)
        self.hidden = model.first_hidden(len(vectors)).repeat(1, width, 1)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Probabilities of the next drug or END (a, w, D + 1)."""
        self.hidden = self.model.advance(self.view, self.model.tokens(tokens), self.hidden)
        return torch.softmax(self.model.out(self.hidden), dim=-1)

    def select(self, visits: torch.Tensor | None, parents: torch.Tensor) -> None:
        """Keep some visits and let their lists go on from their parents."""
        if visits is not None:
            self.view, self.hidden = self.view.rows(visits), self.hidden[visits]
        if parents.shape[1] > 1:
            index = parents.unsqueeze(-1).expand(-1, -1, self.hidden.shape[2])
            self.hidden = self.hidden.gather(1, index)
