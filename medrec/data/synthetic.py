"""Made-up records with a known structure, in the same events as a hospital's.

Every patient has chronic conditions that come back at each visit, beside acute ones. A diagnosis
calls for procedures and for drugs; a drug that was given before tends to be given again. So a model
that reads diagnoses beats frequencies, one that also reads history beats both, and a model that has
learned nothing is found out. Codes and drug names are real ones (ICD-9-CM, ATC substances with a
small known molecule), so that titles, code maps, interactions and molecules work as on real data.
Admission numbers are shuffled: visits in order of their number are *not* in order of time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from medrec.config import SyntheticSource
from medrec.data.codes import CodeMaps
from medrec.data.molecule_table import read_substances
from medrec.data.schema import EVENT_COLUMNS, Events, data_root
from quantum.base import InputError

P_CHRONIC_CODED = 0.75
P_INDICATED, P_CONTINUED, P_OTHERWISE = 0.80, 0.35, 0.02
P_PROCEDURE = 0.6
MAX_VISITS = 29
_SYSTEMIC_GROUPS = "ABCHJMNR"
_SMILES_LENGTHS = range(10, 61)
_START = datetime(2100, 1, 1)  # noqa: DTZ001 - shifted calendar without a time zone, as in MIMIC


@dataclass(frozen=True)
class Plan:
    """The planted structure.

    Parameters
    ----------
    diagnoses, procedures : list of str
        ICD-9-CM codes.
    drugs : list of tuple of str
        ATC level-5 code and substance name; one substance per ATC level-3 class.
    indications : numpy.ndarray
        Bool, shape (n_drugs, n_diagnoses): which diagnosis calls for which drug.
    performs : numpy.ndarray
        Int, shape (n_diagnoses,): the procedure that a diagnosis calls for.
    """

    diagnoses: list[str]
    procedures: list[str]
    drugs: list[tuple[str, str]]
    indications: NDArray[np.bool_]
    performs: NDArray[np.int64]


def _spread(items: list[str], n: int, what: str) -> list[str]:
    """Return ``n`` items at equal distances."""
    if n > len(items):
        raise InputError(f"source.n_{what} is {n}; the code table has {len(items)} to choose from")
    return [items[index * len(items) // n] for index in range(n)]


def known_substances() -> dict[str, tuple[str, str]]:
    """ATC level-3 class to (level-5 code, name) of its smallest molecule with an unambiguous name.

    Only systemic main groups, so that the classes interact as in a hospital.
    """
    root = data_root()
    maps = CodeMaps(root / "codes")
    best: dict[str, tuple[int, str, str]] = {}
    for atc5, smiles in read_substances(root / "molecules").select("atc5", "smiles").iter_rows():
        name = maps.atc_names.get(atc5, "")
        unambiguous = maps.look_up("name", None, None, name) == {atc5}
        small = len(smiles) in _SMILES_LENGTHS and "." not in smiles
        if atc5[0] in _SYSTEMIC_GROUPS and unambiguous and small:
            best[atc5[:4]] = min(best.get(atc5[:4], (999, "", "")), (len(smiles), atc5, name))
    return {atc: (code, name) for atc, (_, code, name) in sorted(best.items())}


def build_plan(source: SyntheticSource) -> Plan:
    """Draw who calls for what. Depends on the sizes and the seed only.

    Raises
    ------
    InputError
        If more codes are asked for than the shipped tables hold.
    """
    maps = CodeMaps(data_root() / "codes")
    substances = known_substances()
    rng = np.random.default_rng([source.seed, 1])
    indications = np.zeros((source.n_drugs, source.n_diagnoses), dtype=bool)
    for row in indications:
        row[rng.choice(source.n_diagnoses, size=min(3, source.n_diagnoses), replace=False)] = True
    return Plan(
        diagnoses=_spread(maps.icd_codes("diagnosis", 9), source.n_diagnoses, "diagnoses"),
        procedures=_spread(maps.icd_codes("procedure", 9), source.n_procedures, "procedures"),
        drugs=[substances[atc] for atc in _spread(list(substances), source.n_drugs, "drugs")],
        indications=indications,
        performs=rng.integers(source.n_procedures, size=source.n_diagnoses),
    )


def drug_probability(
    plan: Plan, diagnoses: NDArray[np.int64], before: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the planted probability of each drug at a visit, shape (n_drugs,).

    The three causes (indicated, given at the previous visit, neither) act independently:
    ``p = 1 - (1 - P_OTHERWISE)(1 - P_INDICATED [indicated])(1 - P_CONTINUED [before])``.
    """
    indicated = plan.indications[:, diagnoses].any(axis=1)
    missed = (1 - P_OTHERWISE) * (1 - P_INDICATED * indicated) * (1 - P_CONTINUED * before)
    return np.asarray(1 - missed, dtype=np.float64)


def read_synthetic(source: SyntheticSource) -> Events:
    """Events of a synthetic hospital; the same source gives the same events."""
    plan = build_plan(source)
    rng = np.random.default_rng([source.seed, 2])
    n_visits = np.minimum(1 + rng.poisson(source.mean_visits - 1, source.n_patients), MAX_VISITS)
    admissions = iter(rng.permutation(int(n_visits.sum())) + 200_000)
    rows: dict[str, list[tuple[object, ...]]] = {table: [] for table in EVENT_COLUMNS}
    for position, count in enumerate(n_visits):
        _write_patient(10_000 + position, int(count), plan, rng, admissions, rows)
    frames = {
        table: pl.DataFrame(rows[table], schema=columns, orient="row")
        for table, columns in EVENT_COLUMNS.items()
    }
    return Events(**frames, where="synthetic records")


def _write_patient(
    subject: int,
    n_visits: int,
    plan: Plan,
    rng: np.random.Generator,
    admissions: Iterator[np.int64],
    rows: dict[str, list[tuple[object, ...]]],
) -> None:
    n_codes, n_drugs = len(plan.diagnoses), len(plan.drugs)
    chronic = rng.choice(n_codes, size=min(n_codes, 1 + rng.poisson(2)), replace=False)
    time = _START + timedelta(days=int(rng.integers(20_000)))
    before = np.zeros(n_drugs, dtype=bool)
    for _ in range(n_visits):
        acute = rng.choice(n_codes, size=min(n_codes, 1 + rng.poisson(1)), replace=False)
        kept = chronic[rng.random(chronic.size) < P_CHRONIC_CODED]
        diagnoses = np.union1d(acute, kept)
        performed = plan.performs[diagnoses]
        procedures = np.unique(performed[rng.random(performed.size) < P_PROCEDURE])
        if procedures.size == 0:
            procedures = performed[:1]
        given = rng.random(n_drugs) < drug_probability(plan, diagnoses, before)
        if not given.any():
            given[rng.integers(n_drugs)] = True
        admission = int(next(admissions))
        rows["admissions"].append((subject, admission, time))
        rows["diagnoses"] += [(subject, admission, plan.diagnoses[i], 9) for i in diagnoses]
        rows["procedures"] += [(subject, admission, plan.procedures[i], 9) for i in procedures]
        rows["prescriptions"] += [
            (subject, admission, "MAIN", None, None, plan.drugs[i][1])
            for i in np.flatnonzero(given)
        ]
        before = given
        time += timedelta(days=int(rng.integers(10, 400)))
