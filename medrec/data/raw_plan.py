"""Plan of a made-up hospital's admissions: which are kept, which are dropped, and why.

Letters: a admissions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medrec.data.planted import Bool, Int
from medrec.data.synthetic import Hospital, admission_times

COMPLETE, NO_PROCEDURE, NO_DIAGNOSIS, UNMAPPED, NO_MOLECULE, NO_PRESCRIPTION = range(6)


@dataclass(frozen=True)
class Census:
    """Numbers of a hospital at scale 1, beside its kept cohort.

    Parameters
    ----------
    single : int
        Patients with exactly one complete admission.
    extra : tuple of int
        Further admissions that lack something, in the order of the constants above from
        ``NO_PROCEDURE`` on; some belong to patients of the cohort, others to patients of their own.
    rows_per_class : float
        Mean number of prescription rows of a drug class in an admission.
    unmapped_rows, no_molecule_rows : float
        Mean number per admission with prescriptions.
    """

    single: int
    extra: tuple[int, int, int, int, int]
    rows_per_class: float
    unmapped_rows: float
    no_molecule_rows: float


CENSUS: dict[str, Census] = {
    # 58,976 admissions and 4.16 million prescription rows, as in the full MIMIC-III
    "mimic3": Census(24_000, (6_500, 400, 2_500, 1_800, 8_744), 3.8, 15.0, 3.0),
    # 431,231 admissions and 16 million rows, as in the full MIMIC-IV
    "mimic4": Census(70_000, (130_000, 1_000, 15_000, 8_000, 50_421), 1.8, 7.5, 1.5),
}


@dataclass(frozen=True)
class Admissions:
    """The plan of every admission; sorted by patient.

    Parameters
    ----------
    subject, number : numpy.ndarray
        SUBJECT_ID and HADM_ID, shape (a,).
    kind : numpy.ndarray
        One of the constants above, shape (a,).
    template : numpy.ndarray
        Visit of the simulated hospital whose codes and drugs it has, shape (a,).
    mapped, no_molecule, unmapped : numpy.ndarray
        Prescription rows of each sort, shape (a,).
    own : numpy.ndarray
        Bool, shape (a,): the admission *is* its template, a visit of the cohort.
    time : numpy.ndarray
        Admission time in seconds, shape (a,).
    """

    subject: Int
    number: Int
    kind: Int
    template: Int
    mapped: Int
    no_molecule: Int
    unmapped: Int
    own: Bool
    time: NDArray[np.datetime64]

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def rows(self) -> Int:
        """Prescription rows of each admission."""
        return self.mapped + self.no_molecule + self.unmapped


def plan_admissions(
    hospital: Hospital, census: Census, scale: float, rng: np.random.Generator
) -> Admissions:
    """Every admission with its patient, reason to be dropped, template and rows."""
    n_kept = int(hospital.patient[-1]) + 1
    n_single = round(scale * census.single)
    extra = np.repeat(
        np.arange(NO_PROCEDURE, NO_PRESCRIPTION + 1),
        [round(scale * number) for number in census.extra],
    )
    kind = np.concatenate([np.zeros(len(hospital.patient) + n_single, dtype=np.int64), extra])
    # an extra admission: one half goes to patients who have complete ones, one half to others
    others = max(1, len(extra) // 3)
    owner = np.where(
        rng.random(len(extra)) < 0.5,
        rng.integers(0, n_kept + n_single, len(extra)),
        n_kept + n_single + rng.integers(0, others, len(extra)),
    )
    person = np.concatenate([hospital.patient, n_kept + np.arange(n_single), owner])
    template = np.concatenate(
        [
            np.arange(len(hospital.patient)),
            rng.integers(0, len(hospital.patient), n_single + len(extra)),
        ]
    )
    # a patient's visits keep their order in time; the others fall anywhere
    place = np.concatenate([hospital.visit, rng.integers(0, 30, n_single + len(extra))])
    order = np.lexsort((place, person))
    person, kind, template = person[order], kind[order], template[order]
    names = 10_000_000 + np.sort(rng.permutation(8_000_000)[: person[-1] + 1])
    n = len(person)
    _, dense = np.unique(person, return_inverse=True)
    return Admissions(
        subject=names[person],
        number=20_000_000 + rng.permutation(n),
        kind=kind,
        template=template,
        own=(order < len(hospital.patient)),
        time=admission_times(dense, rng),
        **_rows(hospital, census, kind, template, rng),
    )


def _rows(
    hospital: Hospital, census: Census, kind: Int, template: Int, rng: np.random.Generator
) -> dict[str, Int]:
    n, n_drugs = len(kind), hospital.given.sum(axis=1)[template]
    has_any = kind != NO_PRESCRIPTION
    has_drugs = has_any & (kind != UNMAPPED) & (kind != NO_MOLECULE)
    mapped = n_drugs + rng.poisson(n_drugs * (census.rows_per_class - 1))
    no_molecule = rng.poisson(census.no_molecule_rows, n)
    unmapped = rng.poisson(census.unmapped_rows, n)
    return {
        "mapped": np.where(has_drugs, mapped, 0),
        "no_molecule": np.where(
            has_drugs, no_molecule, np.where(kind == NO_MOLECULE, 1 + no_molecule, 0)
        ),
        "unmapped": np.where(has_any, unmapped + (kind == UNMAPPED), 0),
    }


def expected_funnel(plan: Admissions) -> list[dict[str, int | str]]:
    """Rows, visits and patients after every filter of the ``strict`` preset, by arithmetic."""
    steps: list[dict[str, int | str]] = []

    def add(step: str, kept: NDArray[np.bool_], rows: Int) -> None:
        steps.append(
            {
                "step": step,
                "rows": int(rows[kept].sum()),
                "visits": int(kept.sum()),
                "patients": len(np.unique(plan.subject[kept])),
            }
        )

    kept = plan.rows > 0
    add("prescription rows read", kept, plan.rows)
    add("drug type MAIN/BASE/ADDITIVE", kept, plan.rows)
    with_code = plan.mapped + plan.no_molecule
    kept = with_code > 0
    add("drug has an ATC code", kept, with_code)
    kept = plan.mapped > 0
    add("drug class has a molecule", kept, plan.mapped)
    add("admission has an admission time", kept, plan.mapped)
    kept = kept & (plan.kind != NO_DIAGNOSIS)
    add("admission has a diagnosis", kept, plan.mapped)
    kept = kept & (plan.kind != NO_PROCEDURE)
    add("admission has a procedure", kept, plan.mapped)
    _, person, visits = np.unique(plan.subject[kept], return_inverse=True, return_counts=True)
    enough = kept.copy()
    enough[kept] = visits[person] >= 2
    add("at least 2 visits left", enough, plan.mapped)
    return steps
