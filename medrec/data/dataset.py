"""Visits as tensors: flat code storage, batches of patients with masks.

What a model may see stands in the batch as inputs; the drugs of the visit itself are ``target`` and
belong to the loss and the metrics alone. ``drugs_before`` holds the *previous* visit's drugs.

Letters: B patients, V visits (padded), D drugs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from medrec.data.cohort import Cohort
from medrec.data.schema import Vocabularies, Vocabulary


@dataclass
class CodeBag:
    """Code sets of B x V visits in compressed rows.

    Attributes
    ----------
    index : LongTensor (n,)
        Codes of all visits, one after the other.
    visit : LongTensor (n,)
        Position of each code's visit in the flattened (B, V) batch.
    """

    index: torch.Tensor
    visit: torch.Tensor

    def to(self, device: torch.device | str) -> CodeBag:
        """Copy to a device."""
        return CodeBag(self.index.to(device), self.visit.to(device))


@dataclass
class VisitBatch:
    """All visits of some patients.

    Attributes
    ----------
    diagnoses, procedures : CodeBag
        Known codes of each visit; codes outside the vocabulary are left out.
    drugs_before : FloatTensor (B, V, D)
        Drugs of the previous visit, 0/1; zeros at a first visit.
    target : FloatTensor (B, V, D)
        Drugs of the visit, 0/1. Never an input.
    n_unseen : LongTensor (B, V)
        True drugs outside the vocabulary; they count as missed.
    mask : BoolTensor (B, V)
        True where there is a visit.
    patient : LongTensor (B,)
        Position of each patient in the cohort.
    """

    diagnoses: CodeBag
    procedures: CodeBag
    drugs_before: torch.Tensor
    target: torch.Tensor
    n_unseen: torch.Tensor
    mask: torch.Tensor
    patient: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Patients and padded visits."""
        return self.mask.shape[0], self.mask.shape[1]

    def to(self, device: torch.device | str) -> VisitBatch:
        """Copy to a device."""
        return VisitBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class PatientVisits:
    """Encoded visits of one patient, in order."""

    diagnoses: tuple[npt.NDArray[np.int64], ...]
    procedures: tuple[npt.NDArray[np.int64], ...]
    drugs: tuple[npt.NDArray[np.int64], ...]
    n_unseen: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.drugs)


def encode_patient(
    vocabularies: Vocabularies,
    diagnoses: Sequence[Sequence[str]],
    procedures: Sequence[Sequence[str]],
    drugs: Sequence[Sequence[str]],
) -> PatientVisits:
    """Turn code lists per visit into positions; unknown drugs are counted, other codes dropped."""

    def known(
        vocabulary: Vocabulary, visits: Sequence[Sequence[str]]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        return tuple(vocabulary.encode(codes)[0] for codes in visits)

    return PatientVisits(
        known(vocabularies.diagnoses, diagnoses),
        known(vocabularies.procedures, procedures),
        known(vocabularies.drugs, drugs),
        tuple(vocabularies.drugs.encode(codes)[1] for codes in drugs),
    )


class VisitDataset:
    """Encoded patients of a cohort.

    Parameters
    ----------
    patients : dict of int to PatientVisits
        By position in the cohort.
    """

    def __init__(self, vocabularies: Vocabularies, patients: dict[int, PatientVisits]) -> None:
        self.vocabularies, self.patients = vocabularies, patients

    @property
    def n_drugs(self) -> int:
        """Size D of the drug vocabulary."""
        return len(self.vocabularies.drugs)

    def n_visits(self, patients: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """Number of visits of some patients."""
        return sum(len(self.patients[int(p)]) for p in patients)

    def batches(
        self,
        patients: Sequence[int] | npt.NDArray[np.int64],
        batch_size: int,
        shuffle_seed: int | None = None,
    ) -> Iterator[VisitBatch]:
        """Batches of patients with similar numbers of visits, to waste little on padding.

        Parameters
        ----------
        shuffle_seed : int, optional
            Shuffles patients of equal length and the order of the batches; None keeps the order
            of the cohort within a length.
        """
        order = np.asarray(patients, dtype=np.int64)
        rng = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
        if rng is not None:
            order = rng.permutation(order)
        lengths = np.array([len(self.patients[int(p)]) for p in order])
        order = order[np.argsort(lengths, kind="stable")]
        starts = np.arange(0, len(order), batch_size)
        if rng is not None:
            rng.shuffle(starts)
        for start in starts:
            yield self.collate(order[start : start + batch_size].tolist())

    def collate(self, patients: Sequence[int]) -> VisitBatch:
        """One batch of the given patients, in order."""
        return collate([self.patients[p] for p in patients], patients, self.n_drugs)


def collate(visits: Sequence[PatientVisits], patients: Sequence[int], n_drugs: int) -> VisitBatch:
    """Pad patients to the longest and stack them."""
    n_visits = max(len(item) for item in visits)
    target = torch.zeros(len(visits), n_visits, n_drugs)
    mask = torch.zeros(len(visits), n_visits, dtype=torch.bool)
    unseen = torch.zeros(len(visits), n_visits, dtype=torch.long)
    for row, item in enumerate(visits):
        mask[row, : len(item)] = True
        unseen[row, : len(item)] = torch.tensor(item.n_unseen)
        for t, drugs in enumerate(item.drugs):
            target[row, t, torch.from_numpy(drugs)] = 1.0
    before = torch.zeros_like(target)
    before[:, 1:] = target[:, :-1]
    before[~mask] = 0.0
    return VisitBatch(
        _bag([item.diagnoses for item in visits], n_visits),
        _bag([item.procedures for item in visits], n_visits),
        before,
        target,
        unseen,
        mask,
        torch.tensor(list(patients), dtype=torch.long),
    )


def _bag(patients: Sequence[Sequence[npt.NDArray[np.int64]]], n_visits: int) -> CodeBag:
    rows = [
        (codes, np.full(len(codes), b * n_visits + t))
        for b, visits in enumerate(patients)
        for t, codes in enumerate(visits)
    ]
    index = np.concatenate([codes for codes, _ in rows] or [np.zeros(0, np.int64)])
    visit = np.concatenate([place for _, place in rows] or [np.zeros(0, np.int64)])
    return CodeBag(torch.from_numpy(index), torch.from_numpy(visit))


def build_dataset(cohort: Cohort, vocabularies: Vocabularies) -> VisitDataset:
    """Encode all patients of a cohort."""
    patients: dict[int, PatientVisits] = {}
    visits = cohort.visits
    numbers = visits["patient"].to_numpy()
    cuts = np.flatnonzero(np.diff(numbers)) + 1  # the table is sorted by patient
    for start, stop in zip([0, *cuts], [*cuts, len(numbers)], strict=True):
        kinds = ("diagnoses", "procedures", "drugs")
        codes = [visits[kind].iloc[start:stop].tolist() for kind in kinds]
        patients[int(numbers[start])] = encode_patient(vocabularies, *codes)
    return VisitDataset(vocabularies, patients)
