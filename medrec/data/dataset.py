"""Visits as tensors: flat code storage, batches of patients with masks.

All codes of a kind lie in one array, visit after visit, with the place where each visit begins; a
batch is cut out of it with array operations only, so that making a batch costs microseconds.

What a model may see stands in the batch as inputs; the drugs of the visit itself are ``target`` and
belong to the loss and the metrics alone. ``drugs_before`` holds the *previous* visit's drugs.

Letters: B patients, V visits (padded), D drugs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from medrec.data.schema import Vocabularies, Vocabulary

Codes = npt.NDArray[np.int64]


class HasVisits(Protocol):
    """What encoding reads of a cohort."""

    @property
    def visits(self) -> pd.DataFrame:
        """Columns patient, visit, diagnoses, procedures, drugs; sorted by patient and visit."""


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

    diagnoses: tuple[Codes, ...]
    procedures: tuple[Codes, ...]
    drugs: tuple[Codes, ...]
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

    def known(vocabulary: Vocabulary, visits: Sequence[Sequence[str]]) -> tuple[Codes, ...]:
        return tuple(vocabulary.encode(codes)[0] for codes in visits)

    return PatientVisits(
        known(vocabularies.diagnoses, diagnoses),
        known(vocabularies.procedures, procedures),
        known(vocabularies.drugs, drugs),
        tuple(vocabularies.drugs.encode(codes)[1] for codes in drugs),
    )


@dataclass(frozen=True)
class CodeRows:
    """Code sets of many visits in compressed rows.

    Attributes
    ----------
    codes : ndarray (n,) of int64
        Codes of all visits, one visit after the other.
    starts : ndarray (n_visits + 1,) of int64
        Where each visit begins.
    """

    codes: Codes
    starts: Codes

    @classmethod
    def of(cls, visits: Sequence[Codes]) -> CodeRows:
        """Stack visits."""
        lengths = np.fromiter((len(codes) for codes in visits), np.int64, len(visits))
        flat = np.concatenate(visits) if len(visits) else np.zeros(0, np.int64)
        return cls(flat.astype(np.int64, copy=False), _starts(lengths))

    def __getitem__(self, visit: int) -> Codes:
        return self.codes[self.starts[visit] : self.starts[visit + 1]]

    def gather(self, visits: Codes) -> tuple[Codes, Codes]:
        """Codes of some visits, and for each code the position of its visit in ``visits``."""
        lengths = self.starts[visits + 1] - self.starts[visits]
        owner = np.repeat(np.arange(len(visits)), lengths)
        within = np.arange(len(owner)) - _starts(lengths)[owner]
        return self.codes[self.starts[visits][owner] + within], owner


class VisitDataset(Mapping[int, PatientVisits]):
    """Encoded patients of a cohort.

    Looks like a mapping from a patient's position in the cohort to its visits; inside, codes are
    flat arrays.

    Parameters
    ----------
    patients : ndarray (U,) of int64
        Positions in the cohort, ascending.
    first_visit : ndarray (U + 1,) of int64
        Where each patient's visits begin.
    diagnoses, procedures, drugs : CodeRows
        Codes of all visits.
    n_unseen : ndarray (n_visits,) of int64
        True drugs outside the vocabulary.
    """

    def __init__(
        self,
        vocabularies: Vocabularies,
        patients: Codes,
        first_visit: Codes,
        diagnoses: CodeRows,
        procedures: CodeRows,
        drugs: CodeRows,
        n_unseen: Codes,
    ) -> None:
        self.vocabularies = vocabularies
        self.diagnoses, self.procedures, self.drugs = diagnoses, procedures, drugs
        self.n_unseen = n_unseen
        self.positions, self._first = patients, first_visit
        self._row = {int(patient): row for row, patient in enumerate(patients)}

    @classmethod
    def of(cls, vocabularies: Vocabularies, patients: Mapping[int, PatientVisits]) -> VisitDataset:
        """Stack encoded patients."""
        order = sorted(patients)
        rows = [patients[patient] for patient in order]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        diagnoses, procedures, drugs = (
            CodeRows.of([codes for row in rows for codes in getattr(row, kind)])
            for kind in ("diagnoses", "procedures", "drugs")
        )
        unseen = np.array([n for row in rows for n in row.n_unseen], dtype=np.int64)
        return cls(
            vocabularies,
            np.array(order, np.int64),
            _starts(lengths),
            diagnoses,
            procedures,
            drugs,
            unseen,
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self._row)

    def __getitem__(self, patient: int) -> PatientVisits:
        visits = range(*self._first[[self._row[int(patient)], self._row[int(patient)] + 1]])
        return PatientVisits(
            tuple(self.diagnoses[v] for v in visits),
            tuple(self.procedures[v] for v in visits),
            tuple(self.drugs[v] for v in visits),
            tuple(int(self.n_unseen[v]) for v in visits),
        )

    @property
    def patients(self) -> Mapping[int, PatientVisits]:
        """Position in the cohort to encoded visits."""
        return self

    @property
    def n_drugs(self) -> int:
        """Size D of the drug vocabulary."""
        return len(self.vocabularies.drugs)

    def _rows(self, patients: Sequence[int] | Codes) -> Codes:
        return np.array([self._row[int(patient)] for patient in patients], dtype=np.int64)

    def _lengths(self, rows: Codes) -> Codes:
        return self._first[rows + 1] - self._first[rows]

    def n_visits(self, patients: Sequence[int] | Codes) -> int:
        """Number of visits of some patients."""
        return int(self._lengths(self._rows(patients)).sum())

    def visit_numbers(self, patients: Sequence[int] | Codes) -> Codes:
        """Rows of the flat arrays that hold the visits of some patients, in order."""
        rows = self._rows(patients)
        return _ranges(self._first[rows], self._lengths(rows))

    def batches(
        self,
        patients: Sequence[int] | Codes,
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
        order = order[np.argsort(self._lengths(self._rows(order)), kind="stable")]
        starts = np.arange(0, len(order), batch_size)
        if rng is not None:
            rng.shuffle(starts)
        for start in starts:
            yield self.collate(order[start : start + batch_size])

    def collate(self, patients: Sequence[int] | Codes) -> VisitBatch:
        """One batch of the given patients, in order, padded to the longest."""
        rows = self._rows(patients)
        lengths = self._lengths(rows)
        n_patients, n_visits = len(rows), int(lengths.max(initial=0))
        visits = _ranges(self._first[rows], lengths)
        # place of each visit in the flattened (B, V) grid
        owner = np.repeat(np.arange(n_patients), lengths)
        places = owner * n_visits + (np.arange(len(visits)) - _starts(lengths)[owner])
        shape = (n_patients, n_visits)
        target = torch.zeros(n_patients * n_visits, self.n_drugs)
        codes, row = self.drugs.gather(visits)
        target[torch.from_numpy(places[row]), torch.from_numpy(codes)] = 1.0
        target = target.reshape(*shape, self.n_drugs)
        mask = torch.zeros(n_patients * n_visits, dtype=torch.bool)
        unseen = torch.zeros(n_patients * n_visits, dtype=torch.long)
        mask[places] = True
        unseen[places] = torch.from_numpy(self.n_unseen[visits])
        mask = mask.reshape(shape)
        before = torch.zeros_like(target)
        before[:, 1:] = target[:, :-1]
        before[~mask] = 0.0
        return VisitBatch(
            _bag(self.diagnoses, visits, places),
            _bag(self.procedures, visits, places),
            before,
            target,
            unseen.reshape(shape),
            mask,
            torch.from_numpy(self.positions[rows]),
        )


def _starts(lengths: Codes) -> Codes:
    """0 and the running sum."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: Codes, lengths: Codes) -> Codes:
    """``start, start + 1, ...`` of every row, one row after the other."""
    owner = np.repeat(np.arange(len(starts)), lengths)
    return starts[owner] + np.arange(len(owner)) - _starts(lengths)[owner]


def _bag(rows: CodeRows, visits: Codes, places: Codes) -> CodeBag:
    codes, owner = rows.gather(visits)
    return CodeBag(torch.from_numpy(codes), torch.from_numpy(places[owner]))


def collate(visits: Sequence[PatientVisits], patients: Sequence[int], n_drugs: int) -> VisitBatch:
    """Pad patients from anywhere to the longest and stack them."""
    nameless = Vocabulary(tuple(str(drug) for drug in range(n_drugs)))
    empty = Vocabulary(())
    numbered = dict(enumerate(visits))
    dataset = VisitDataset.of(Vocabularies(empty, empty, nameless), numbered)
    batch = dataset.collate(list(numbered))
    batch.patient = torch.tensor(list(patients), dtype=torch.long)
    return batch


def build_dataset(cohort: HasVisits, vocabularies: Vocabularies) -> VisitDataset:
    """Encode all patients of a cohort."""
    visits = cohort.visits
    numbers = visits["patient"].to_numpy(np.int64)
    patients, first = np.unique(numbers, return_index=True)  # the table is sorted by patient
    rows, unknown = {}, np.zeros(len(visits), np.int64)
    for kind in ("diagnoses", "procedures", "drugs"):
        rows[kind], unknown = _encode(visits[kind], getattr(vocabularies, kind))
    starts = np.concatenate([first, [len(visits)]]).astype(np.int64)
    return VisitDataset(vocabularies, patients, starts, **rows, n_unseen=unknown)


def _encode(code_lists: pd.Series, vocabulary: Vocabulary) -> tuple[CodeRows, Codes]:
    """Known codes of every visit, and how many others it has."""
    lengths = code_lists.str.len().to_numpy(np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    flat = [code for codes in code_lists for code in codes]
    positions = (
        pd.Index(vocabulary.codes).get_indexer(pd.Index(flat, dtype=object))
        if len(vocabulary)
        else -1
    )
    positions = np.broadcast_to(positions, owner.shape).astype(np.int64)
    known = positions >= 0
    n_known = np.bincount(owner[known], minlength=len(lengths)).astype(np.int64)
    return CodeRows(positions[known], _starts(n_known)), lengths - n_known
