"""SafeDrug: global and local molecule encoders (Yang et al., IJCAI 2021), batched.

A visit's query is matched with the vectors of whole molecules (a message-passing network over
Weisfeiler-Lehman fingerprints of all atoms) and, through the fragments, with their parts; the logit
of a drug is the product of both matches.

Differences from the released code: all visits of a patient go through one causal pass; molecules
are encoded once per optimiser step and their encoder is trained. The released one is run once in
the constructor, is in no optimiser and in no checkpoint: ``encoder: frozen_random`` gives that
random map, but saves it. Molecules of a class are averaged in both. ``readout: sum`` adds up the
atoms of a molecule as the released code does; the default is the paper's mean. The interaction
gate is max(0, .), as in the paper; the released min(0, .) drops or even reverses the prediction
loss above the target. Fingerprints come from sorted molecules and not from the order of a set.

Not in the paper: the query passes a layer norm, and its products with molecules are divided by
sqrt(d). All molecule vectors lie in the positive quadrant, so that without it a common shift of the
query drives every match to 1 within the first hundred batched steps, and the model stays at the
most frequent drugs for many epochs. ``query: plain`` leaves this out.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import nn

from medrec.config import SafeDrugModelConfig, TrainConfig
from medrec.data.dataset import VisitBatch
from medrec.models.base import DrugContext, FittingData, Prediction, Recommender
from medrec.models.layers import CodeHistory
from medrec.molecules.encoders_2d import sum_rows
from medrec.molecules.fingerprints import all_atom_graph, fingerprints, message_plan
from medrec.molecules.repetitions import RowSums
from quantum.base import InputError


class FingerprintMPNN(nn.Module):
    """Message passing over fingerprints, h <- ReLU(W h) + A ReLU(W h), and a read-out.

    Parameters
    ----------
    n_fingerprints : int
    plan : list of RowSums
        One per layer, see `medrec.molecules.fingerprints.message_plan`.
    n_atoms : Tensor (K,) or None
        Divides the sum over a molecule's atoms; None leaves the sum.
    """

    n_atoms: torch.Tensor | None

    def __init__(
        self, n_fingerprints: int, d_model: int, plan: list[RowSums], n_atoms: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(n_fingerprints, d_model)
        self.layers = nn.ModuleList(nn.Linear(d_model, d_model) for _ in plan)
        self.register_buffer("n_atoms", n_atoms, persistent=False)
        for number, sums in enumerate(plan):
            for part in fields(sums):
                name = f"plan_{number}_{part.name}"
                self.register_buffer(name, getattr(sums, part.name), persistent=False)

    def _sums(self, number: int) -> RowSums:
        names = (f"plan_{number}_{part.name}" for part in fields(RowSums))
        return RowSums(*(self.get_buffer(name) for name in names))

    def forward(self) -> torch.Tensor:
        """Vectors of the molecules (K, d)."""
        h = self.table.weight
        for number, layer in enumerate(self.layers):
            h = sum_rows(torch.relu(layer(h)), self._sums(number))
        return h if self.n_atoms is None else h / self.n_atoms.unsqueeze(1)


class SafeDrug(Recommender):
    """See the module's text."""

    needs_molecules = True

    def __init__(self, config: TrainConfig, context: DrugContext) -> None:
        super().__init__(config, context)
        model, molecules = config.model, context.molecules
        assert isinstance(model, SafeDrugModelConfig)
        if molecules is None or "n_fingerprints" not in context.fitted:
            raise InputError("safedrug needs the molecules of the drugs and their fingerprints")
        d, n_drugs = model.d_model, context.n_drugs
        self.history = CodeHistory(context.n_diagnoses, context.n_procedures, d, model.dropout)
        normalised = model.query == "normalised"
        self.query = nn.Sequential(nn.ReLU(), nn.Linear(2 * d, d))
        self.query_norm = nn.LayerNorm(d) if normalised else nn.Identity()
        self.match_scale = d**-0.5 if normalised else 1.0
        fitted = context.fitted
        names = [part.name for part in fields(RowSums)]
        plan = [
            RowSums(*(fitted[f"plan_{number}_{name}"] for name in names))
            for number in range(model.mpnn_layers)
        ]
        n_atoms = fitted["n_atoms"] if model.readout == "mean" else None
        self.mpnn = FingerprintMPNN(int(fitted["n_fingerprints"]), d, plan, n_atoms)
        if model.encoder == "frozen_random":
            self.mpnn.requires_grad_(False)
        self.mix = nn.Linear(n_drugs, n_drugs)
        self.norm = nn.LayerNorm(n_drugs)
        self.parts = nn.Linear(d, molecules.fragments.n_graphs)
        bound = n_drugs**-0.5
        of_parts = torch.empty(molecules.fragments.n_graphs, n_drugs).uniform_(-bound, bound)
        self.bipartite = nn.Parameter(of_parts)

    @classmethod
    def fit_context(cls, config: TrainConfig, data: FittingData) -> dict[str, torch.Tensor]:
        """Fingerprints of the molecules' atoms; no patient is looked at.

        Returns
        -------
        dict of str to Tensor
            ``n_fingerprints``, ``n_atoms`` (K,) and the index lists of each layer.
        """
        model = config.model
        assert isinstance(model, SafeDrugModelConfig)
        if data.drugs is None or not len(data.drugs):
            raise InputError("safedrug needs the molecules of the drugs; the cohort has none")
        graph = all_atom_graph(data.drugs.smiles)
        labels = fingerprints(graph, model.radius)
        fitted = {
            "n_fingerprints": torch.tensor(max(labels) + 1),
            "n_atoms": torch.bincount(torch.tensor(graph.molecule), minlength=len(data.drugs)),
        }
        for number, sums in enumerate(message_plan(graph, labels, model.mpnn_layers)):
            for part in fields(sums):
                fitted[f"plan_{number}_{part.name}"] = getattr(sums, part.name)
        return fitted

    def encode_drugs(self) -> torch.Tensor:
        """Vectors of the drug classes (D, d), means over their molecules."""
        tables = self.context.molecules
        assert tables is not None
        return tables.projection @ self.mpnn()

    def forward(self, batch: VisitBatch, drugs: torch.Tensor) -> Prediction:
        """Predict all visits in one causal pass; drugs of visits are not an input."""
        n_patients, n_visits = batch.shape
        states = self.history(batch)
        query = self.query_norm(self.query(states[batch.mask]))
        tables = self.context.molecules
        assert tables is not None
        match = torch.sigmoid(self.match_scale * query @ drugs.T)
        whole = self.norm(match + self.mix(match))
        local = torch.sigmoid(self.parts(query)) @ (self.bipartite * tables.fragment_mask.T)
        scores = whole * local
        logits = scores.new_zeros(n_patients, n_visits, self.context.n_drugs)
        logits[batch.mask] = scores
        return self.decide(logits)
