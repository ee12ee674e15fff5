"""An encoder with a head that predicts properties of molecules, in the units of their library.

Letters: B molecules, T targets, Z = 119 atomic numbers.

A regression target is learned as ``(y - sum of atomic references - mean) / SD``; mean and SD are
those of the training part after the references are subtracted. Energies in meV have eight digits
before the point, so this arithmetic is float64 and the head is float32 also under autocast.

The paper states neither the loss of fine-tuning nor the width of the head's hidden layer. Here it
is the mean absolute error of standardised targets, the metric that is reported, and the encoder's
d. Classification targets have binary cross-entropy. Missing labels count nowhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils.smiles import x_map

from medrec.library.arrays import MoleculeLibrary
from medrec.library.batches import MoleculeBatch
from medrec.library.loader import stream
from medrec.library.records import Target
from medrec.pretrain.encoder import MoleculeEncoder
from medrec.pretrain.problem import LossModel, State
from medrec.pretrain.steps import cut, pairs_that_fit
from medrec.properties.targets import atom_reference

Float = npt.NDArray[np.float64]
N_ELEMENTS = len(x_map["atomic_num"])
_ELEMENT, _HYDROGENS = (list(x_map).index(name) for name in ("atomic_num", "num_hs"))


class TargetScale(NamedTuple):
    """How targets are standardised; 0, 1 and 0 for classification.

    Attributes
    ----------
    mean, sd : float64 array (T,)
        Of the training part, after the references are subtracted.
    reference : float64 array (T, Z)
        What an atom of each element contributes.
    """

    mean: Float
    sd: Float
    reference: Float


def reference_table(targets: Sequence[Target]) -> Float:
    """Atomic references (T, Z) in the units of the library; 0 for targets and elements without."""
    table = np.zeros((len(targets), N_ELEMENTS))
    for row, target in zip(table, targets, strict=True):
        for element, value in (atom_reference(target.name, target.unit) or {}).items():
            row[element] = value
    return table


def reference_sums(library: MoleculeLibrary, rows: npt.NDArray[np.int64], table: Float) -> Float:
    """Sum of atomic references of molecules (M, T), hydrogens that are no atoms included."""
    if not table.any():
        return np.zeros((len(rows), len(table)))
    atoms, counts = library.rows_of("atom", rows)
    x = np.asarray(library.arrays["x"][atoms])
    elements, which = np.unique(x[:, _ELEMENT], return_inverse=True)
    owner = np.repeat(np.arange(len(rows)), counts)
    flat = np.bincount(owner * len(elements) + which, minlength=len(rows) * len(elements))
    hydrogens = np.bincount(owner, weights=x[:, _HYDROGENS], minlength=len(rows))
    heavy: Float = flat.reshape(len(rows), -1) @ table[:, elements].T
    return heavy + np.outer(hydrogens, table[:, 1])


def target_values(
    library: MoleculeLibrary, rows: npt.NDArray[np.int64], columns: Sequence[int]
) -> Float:
    """Labels of some molecules (M, T), NaN where missing."""
    values: Float = library.targets[rows[:, None], np.asarray(columns, dtype=np.int64)]
    return values


def target_scale(
    library: MoleculeLibrary, rows: npt.NDArray[np.int64], columns: Sequence[int]
) -> TargetScale:
    """Statistics of some targets over some molecules; NaN for a target without a label."""
    targets = [library.targets_info[column] for column in columns]
    table = reference_table(targets)
    values = target_values(library, rows, columns) - reference_sums(library, rows, table)
    numeric = np.array([target.kind == "regression" for target in targets])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN has NaN for a mean
        mean, sd = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return TargetScale(np.where(numeric, mean, 0.0), np.where(numeric, sd, 1.0), table)


class PropertyModel(LossModel):
    """Encoder, mean over the atoms, two-layer head with one output per target.

    Parameters
    ----------
    targets : sequence of Target
        T targets of a library.
    columns : sequence of int
        Their columns in the library.
    scale : TargetScale
    freeze_encoder : bool
        The encoder is neither trained nor subject to dropout.
    notes : sequence of str
        What a user should know about the choice of targets and molecules.
    """

    columns: Tensor
    numeric: Tensor
    mean: Tensor
    sd: Tensor
    reference: Tensor

    def __init__(
        self,
        encoder: MoleculeEncoder,
        targets: Sequence[Target],
        columns: Sequence[int],
        scale: TargetScale,
        *,
        head_dropout: float = 0.0,
        freeze_encoder: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.encoder, self.targets, self.notes = encoder, tuple(targets), tuple(notes)
        self.frozen = freeze_encoder
        self.terms = tuple(sorted({target.kind for target in targets}, reverse=True))
        d = encoder.config.d_model
        self.head = nn.Sequential(
            nn.Linear(encoder.d_pooled, d),
            nn.SiLU(),
            nn.Dropout(head_dropout),
            nn.Linear(d, len(self.targets)),
        )
        numeric = torch.tensor([target.kind == "regression" for target in targets])
        self.register_buffer("numeric", numeric)
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long))
        for name, values in scale._asdict().items():
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64))
        if freeze_encoder:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> PropertyModel:
        """Switch dropout on or off; a frozen encoder has none."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def counts(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Labels that are present, per kind of target (K,)."""
        return self._per_term(~torch.isnan(self._labels(batch)))

    def forward(self, batch: MoleculeBatch, epoch: int) -> Tensor:
        """Sums of absolute errors and of cross-entropies over the labels that are present (K,)."""
        outputs, labels = self.outputs(batch), self._labels(batch)
        present = ~torch.isnan(labels)
        standard = ((labels - self._reference_sums(batch) - self.mean) / self.sd).float()
        # a missing label is replaced before the loss: NaN times 0 would spoil the gradients
        standard = torch.where(present, standard, 0.0)
        losses = torch.where(
            self.numeric,
            (outputs - standard).abs(),
            F.binary_cross_entropy_with_logits(outputs, standard, reduction="none"),
        )
        return self._per_term(torch.where(present, losses, 0.0))

    def outputs(self, batch: MoleculeBatch) -> Tensor:
        """Standardised values, or logits, float32 (B, T)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled = self.encoder.pooled(self.encoder(batch), batch)
        with torch.autocast(pooled.device.type, enabled=False):
            values: Tensor = self.head(pooled.float())
        return values

    def predict(self, batch: MoleculeBatch) -> Tensor:
        """Values in the units of the library, or probabilities, float64 (B, T)."""
        outputs = self.outputs(batch).double()
        values = self._reference_sums(batch) + self.mean + self.sd * outputs
        return torch.where(self.numeric, values, torch.sigmoid(outputs))

    def export(self) -> State:
        """The encoder's export, and under ``property`` targets, head and statistics."""
        weights = {
            name: value.detach().cpu()
            for name, value in self.state_dict().items()
            if not name.startswith("encoder.")
        }
        targets = [list(target) for target in self.targets]
        own = {"modality": self.encoder.modality, "targets": targets, "weights": weights}
        return {**self.encoder.export(), "property": own}

    def _labels(self, batch: MoleculeBatch) -> Tensor:
        return batch.targets.index_select(1, self.columns).double()

    def _reference_sums(self, batch: MoleculeBatch) -> Tensor:
        """As `reference_sums`, of a batch (B, T)."""
        elements = batch.x[..., _ELEMENT]
        real = batch.mask.to(torch.float64)
        counts = torch.zeros(len(elements), N_ELEMENTS, dtype=torch.float64, device=real.device)
        counts.scatter_add_(1, elements, real)
        counts[:, 1] += (batch.x[..., _HYDROGENS] * real).sum(dim=1)
        return counts @ self.reference.T

    def _per_term(self, values: Tensor) -> Tensor:
        """Sum over the molecules and over the targets of each kind."""
        of_target = values.float().sum(dim=0)
        kinds = {"regression": self.numeric, "classification": ~self.numeric}
        return torch.stack([of_target[kinds[term]].sum() for term in self.terms])


# --------------------------------------------------------------------------- many molecules


def map_molecules(
    library: MoleculeLibrary,
    rows: npt.NDArray[np.int64],
    function: Callable[[MoleculeBatch], Tensor],
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> npt.NDArray[Any]:
    """Apply a function of molecules (B, k) to many of them (M, k), in the order of ``rows``.

    Molecules of similar size share a batch, and large ones come in smaller batches.
    """
    order = np.argsort(library.n_atoms[rows], kind="stable")
    n_batches = -(-len(rows) // batch_size)
    batches = cut(library, rows[order], n_batches, pairs_that_fit(torch.device(device)))
    with torch.no_grad(), stream(library, batches, device) as items:
        values = np.concatenate([function(batch).cpu().numpy() for batch in items])
    result = np.empty_like(values)
    result[order] = values
    return result
