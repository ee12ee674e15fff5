"""Attribute masking: hide what some atoms are and predict their elements.

After Hu et al. (ICLR 2020). All categories of a hidden atom are set to 0. No atom of a library has
atomic number 0 (it is the dummy atom of fragments), so the row of the encoder's embedding for it,
with the constant rest, is a vector learned for "hidden", and the encoder needs no further
parameter. Bonds and positions stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medrec.config_molecules import MaskingTaskConfig
from medrec.library.batches import MoleculeBatch
from medrec.molecules.structure import ATOM_CARDINALITIES
from medrec.pretrain.draws import uniforms
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.problem import LossModel, State

MASK_STREAM = 2


class MaskingTask(LossModel):
    """An encoder of one view with a linear classifier of elements.

    A 3D encoder has nothing to say about molecules without positions: they give no items.

    Parameters
    ----------
    encoder : MoleculeEncoder
        With modality 2d or 3d.
    config : MaskingTaskConfig
    seed : int
        Of the choice of atoms.
    """

    terms = ("element",)

    def __init__(self, encoder: MoleculeEncoder, config: MaskingTaskConfig, seed: int) -> None:
        super().__init__()
        self.encoder, self.config, self.seed = encoder, config, seed
        self.head = nn.Linear(encoder.config.d_model, ATOM_CARDINALITIES[0])
        self._hits: tuple[Tensor, Tensor] | None = None

    def counts(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Hidden atoms, float32 (1,)."""
        return self._hidden(batch, epoch).sum().float().reshape(1)

    def forward(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Sum of the cross-entropies of the hidden atoms, float32 (1,)."""
        hidden = self._hidden(batch, epoch)
        states = self.encoder(replace(batch, x=batch.x.masked_fill(hidden.unsqueeze(2), 0)))
        side = states.flat if states.spatial is None else states.spatial
        assert side is not None
        logits = self.head(side).float().flatten(0, 1)
        element = torch.where(hidden, batch.x[:, :, 0].long(), -1).flatten()
        self._hits = (logits.detach().argmax(dim=1) == element).sum(), hidden.sum()
        return F.cross_entropy(logits, element, ignore_index=-1, reduction="sum").reshape(1)

    def facts(self, batch: MoleculeBatch, epoch: int) -> dict[str, tuple[float, float]]:
        """Share of hidden atoms whose element was found in the last `forward`."""
        if self._hits is None:
            return {}
        hits, n = torch.stack(self._hits).tolist()
        return {"element_accuracy": (float(hits), float(n))}

    def export(self) -> State:
        """Encoder without the classifier."""
        return self.encoder.export()

    def _hidden(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        hidden = hidden_atoms(batch, epoch, self.config.share, self.seed)
        if self.encoder.modality == "3d":
            hidden = hidden & batch.placed.unsqueeze(1)
        return hidden


def hidden_atoms(batch: MoleculeBatch, epoch: int, share: float, seed: int) -> Tensor:
    """Choose atoms, each with probability ``share``, and one where that chooses none.

    Returns
    -------
    BoolTensor (B, n)
        At least one real atom of every molecule.
    """
    drawn = uniforms(seed, epoch, batch.rows, batch.n_slots, MASK_STREAM)
    drawn = drawn.masked_fill(~batch.mask, 2.0)
    return (drawn < share) | (drawn == drawn.amin(dim=1, keepdim=True))
