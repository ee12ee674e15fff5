"""Made-up records with a known structure, in the same events as a hospital's.

Every patient has chronic conditions that come back at each visit, beside acute ones; codes are
drawn from conditions, drugs as `medrec.data.planted` says, with their probabilities kept. So the
best possible prediction is known, and each model's distance from it. Codes and drug names are real
ones (ICD, ATC substances with a molecule), so that titles, code maps, interactions and molecules
work as on real data. Admission numbers are shuffled: visits in order of their number are *not* in
order of time.

Letters: n visits, D drugs, K conditions, U patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from medrec.config import SyntheticSource
from medrec.data.planted import Bool, CodeSystem, Int, Plan, build_plan
from medrec.data.planted_drugs import Rules, build_rules, draw_drugs
from medrec.data.schema import Events

P_CHRONIC_CODED = 0.75
P_PROCEDURE_OF_DIAGNOSIS = 0.9
_CHRONIC_CONDITIONS, _ACUTE_CONDITIONS = 2.0, 1.3
_SPREAD_OF_VISITS = 1.3
_PASSES = 5
_START = np.datetime64("2100-01-01", "s")  # shifted calendar, as in MIMIC
_DAY = np.timedelta64(86_400, "s")


class Codes(NamedTuple):
    """Codes of visits, one pair per row: sorted by visit, then code, no repetition."""

    visit: Int
    code: Int


@dataclass(frozen=True)
class Hospital:
    """A simulated hospital; visits are sorted by patient, then time.

    Parameters
    ----------
    rules : Rules
        The planted structure with its calibrated numbers.
    patient, visit : numpy.ndarray
        Int, shape (n,): position of the patient, and of the visit in the patient's series.
    diagnoses, procedures : Codes
        Positions in the plan's code systems.
    given : numpy.ndarray
        Bool, shape (n, D).
    probability : numpy.ndarray
        Float32, shape (n, D): of each drug, given all that a model may see.
    """

    rules: Rules
    patient: Int
    visit: Int
    diagnoses: Codes
    procedures: Codes
    given: Bool
    probability: NDArray[np.float32]

    @property
    def plan(self) -> Plan:
        """The planted structure."""
        return self.rules.plan


def simulate(source: SyntheticSource) -> Hospital:
    """Draw a hospital; the same source gives the same one.

    Raises
    ------
    InputError
        If more codes are asked for than the shipped tables hold.
    """
    plan = build_plan(source)
    rng = np.random.default_rng(_seeds(source, 2))
    counts = visit_counts(source, rng)
    patient = np.repeat(np.arange(len(counts)), counts)
    visit = np.arange(len(patient)) - np.repeat(np.cumsum(counts) - counts, counts)
    diagnoses, procedures = _draw_codes(plan, patient, source, rng)
    active = np.zeros((len(patient), plan.n_conditions), dtype=bool)
    active[diagnoses.visit, plan.diagnoses.condition[diagnoses.code]] = True
    active[procedures.visit, plan.procedures.condition[procedures.code]] = True
    rules = build_rules(plan, source, patient, visit, active)
    given, probability = draw_drugs(rules, patient, visit, active, rng)
    return Hospital(rules, patient, visit, diagnoses, procedures, given, probability)


def _seeds(source: SyntheticSource, purpose: int) -> list[int]:
    """Seeds of the patients; those of the planted rules do not depend on the hospital."""
    return [source.seed, purpose] + ([source.hospital] if source.hospital else [])


# --------------------------------------------------------------------------- visits and codes


def visit_counts(source: SyntheticSource, rng: np.random.Generator) -> Int:
    """Visits of each patient, shape (U,): a long tail that ends at ``max_visits``.

    With ``n_visits`` every patient has at least two and they sum to it exactly.
    """
    n, most = source.n_patients, source.max_visits
    if source.n_visits is None:
        return np.minimum(1 + rng.poisson(source.mean_visits - 1, n), most)
    counts = np.full(n, 2)
    if source.n_visits - 2 * n >= 4 * most:
        counts[rng.integers(n)] = most  # one patient has the published maximum
    eagerness = rng.lognormal(sigma=_SPREAD_OF_VISITS, size=n)
    while (missing := source.n_visits - counts.sum()) > 0:
        room = counts < most
        share = np.where(room, eagerness, 0.0)
        counts = np.minimum(counts + rng.multinomial(missing, share / share.sum()), most)
    return counts


def expand(starts: Int, lengths: Int) -> tuple[Int, Int]:
    """Owner and position of every item of consecutive runs.

    >>> expand(np.array([5, 9]), np.array([2, 1]))
    (array([0, 0, 1]), array([5, 6, 9]))
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    before = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) + (starts - before)[owner]


def _pick(pool_size: Int, owner: Int, rng: np.random.Generator) -> Int:
    """For every owner a random position in the owner's run of a flat pool."""
    starts = np.cumsum(pool_size) - pool_size
    return starts[owner] + (rng.random(len(owner)) * pool_size[owner]).astype(np.int64)


def _codes_of(system: CodeSystem, conditions: Int, rng: np.random.Generator) -> Int:
    """One code of each condition, by popularity."""
    order = np.argsort(system.condition, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(system.weight[order])])
    sorted_conditions = system.condition[order]
    first = np.searchsorted(sorted_conditions, conditions)
    last = np.searchsorted(sorted_conditions, conditions, side="right")
    place = total[first] + rng.random(len(conditions)) * (total[last] - total[first])
    return order[np.clip(np.searchsorted(total, place, side="right") - 1, first, last - 1)]


def _unique(visit: Int, code: Int, n_codes: int) -> Codes:
    pairs = np.unique(visit * n_codes + code)
    return Codes(pairs // n_codes, pairs % n_codes)


def _draw_codes(
    plan: Plan, patient: Int, source: SyntheticSource, rng: np.random.Generator
) -> tuple[Codes, Codes]:
    n = len(patient)
    wanted = [source.mean_diagnoses, source.mean_procedures]
    aim = list(wanted)
    # a code drawn twice counts once: each pass aims higher by what the one before fell short
    for _ in range(_PASSES):
        diagnoses = _draw_diagnoses(plan.diagnoses, patient, aim[0], rng)
        procedures = _draw_procedures(plan, diagnoses, n, aim[1], rng)
        aim = [
            max(old * wish * n / len(codes.visit), 1.0)
            for old, wish, codes in zip(aim, wanted, (diagnoses, procedures), strict=True)
        ]
    kept = np.flatnonzero(np.bincount(patient)[patient] > 1)
    return (
        _with_every_code(diagnoses, len(plan.diagnoses.codes), kept, rng),
        _with_every_code(procedures, len(plan.procedures.codes), kept, rng),
    )


def _with_every_code(codes: Codes, n_codes: int, kept: Int, rng: np.random.Generator) -> Codes:
    """Give the codes that were never drawn to one visit each."""
    missing = np.setdiff1d(np.arange(n_codes), codes.code[np.isin(codes.visit, kept)])
    if not len(missing) or not len(kept):
        return codes
    visit = np.concatenate([codes.visit, rng.choice(kept, size=len(missing))])
    return _unique(visit, np.concatenate([codes.code, missing]), n_codes)


def _draw_diagnoses(
    system: CodeSystem, patient: Int, mean: float, rng: np.random.Generator
) -> Codes:
    """Half of the codes chronic, half acute."""
    n, n_patients, n_codes = len(patient), int(patient[-1]) + 1, len(system.codes)
    mass = np.bincount(system.condition, system.weight)
    k, half = len(mass), mean / 2
    chronic_size = 1 + rng.poisson(_CHRONIC_CONDITIONS - 1, n_patients)
    pool = rng.choice(k, size=chronic_size.sum(), p=mass)
    owner = np.repeat(
        np.arange(n_patients), 1 + rng.poisson(max(half / P_CHRONIC_CODED - 1, 0.0), n_patients)
    )
    chronic = _unique(owner, _codes_of(system, pool[_pick(chronic_size, owner, rng)], rng), n_codes)
    lengths = np.bincount(chronic.visit, minlength=n_patients)
    starts = np.cumsum(lengths) - lengths
    visit, place = expand(starts[patient], lengths[patient])
    coded = rng.random(len(visit)) < P_CHRONIC_CODED
    acute_size = 1 + rng.poisson(_ACUTE_CONDITIONS - 1, n)
    acute_pool = rng.choice(k, size=acute_size.sum(), p=mass)
    acute = np.repeat(np.arange(n), 1 + rng.poisson(max(half - 1, 0.0), n))
    acute_codes = _codes_of(system, acute_pool[_pick(acute_size, acute, rng)], rng)
    return _unique(
        np.concatenate([visit[coded], acute]),
        np.concatenate([chronic.code[place[coded]], acute_codes]),
        n_codes,
    )


def _draw_procedures(
    plan: Plan, diagnoses: Codes, n: int, mean: float, rng: np.random.Generator
) -> Codes:
    """Most procedures belong to a condition that is diagnosed, the others to any."""
    system = plan.procedures
    mass = np.bincount(system.condition, system.weight)
    visit = np.repeat(np.arange(n), 1 + rng.poisson(max(mean - 1, 0.0), n))
    picked = _pick(np.bincount(diagnoses.visit, minlength=n), visit, rng)
    condition = plan.diagnoses.condition[diagnoses.code[picked]]
    other = rng.random(len(visit)) >= P_PROCEDURE_OF_DIAGNOSIS
    condition[other] = rng.choice(len(mass), size=int(other.sum()), p=mass)
    return _unique(visit, _codes_of(system, condition, rng), len(system.codes))


# --------------------------------------------------------------------------- events


def admission_times(patient: Int, rng: np.random.Generator) -> NDArray[np.datetime64]:
    """Admission times, 10 to 400 days apart within a patient; shape (n,), seconds."""
    first = np.flatnonzero(np.diff(patient, prepend=-1))
    days = rng.integers(10, 400, len(patient))
    days[first] = 0
    total = np.cumsum(days)
    since_first = total - total[first][patient]
    begin = rng.integers(0, 20_000, len(first))
    minutes = rng.integers(0, 1_440, len(patient)) * np.timedelta64(60, "s")
    return np.asarray(_START + (begin[patient] + since_first) * _DAY + minutes)


def read_synthetic(source: SyntheticSource) -> Events:
    """Events of a synthetic hospital; the same source gives the same events.

    ``oracle`` holds the planted probabilities: ``subject``, ``admission`` and one column per
    substance, named by its ATC level-5 code.
    """
    hospital = simulate(source)
    plan = hospital.plan
    rng = np.random.default_rng(_seeds(source, 3))
    subject = hospital.patient + 10_000
    admission = rng.permutation(len(subject)) + 200_000
    times = admission_times(hospital.patient, rng)

    def coded(codes: Codes, system: CodeSystem) -> pl.DataFrame:
        names = pl.Series([item.code for item in system.codes], dtype=pl.String)
        versions = np.array([item.version for item in system.codes])
        return pl.DataFrame(
            {
                "subject": subject[codes.visit],
                "admission": admission[codes.visit],
                "code": names.gather(codes.code),
                "version": versions[codes.code],
            }
        )

    row, drug = np.nonzero(hospital.given)
    names = pl.Series([item.name for item in plan.drugs], dtype=pl.String)
    prescriptions = pl.DataFrame(
        {"subject": subject[row], "admission": admission[row], "drug": names.gather(drug)}
    ).select(
        "subject",
        "admission",
        pl.lit("MAIN").alias("drug_type"),
        pl.lit(None, pl.String).alias("gsn"),
        pl.lit(None, pl.String).alias("ndc"),
        "drug",
    )
    oracle = pl.DataFrame(hospital.probability, schema=[item.atc5 for item in plan.drugs])
    ids = {"subject": subject, "admission": admission}
    return Events(
        prescriptions,
        coded(hospital.diagnoses, plan.diagnoses),
        coded(hospital.procedures, plan.procedures),
        pl.DataFrame({**ids, "admit_time": times.astype("datetime64[us]")}),
        where="synthetic records",
        oracle=oracle.with_columns(
            pl.Series("subject", subject), pl.Series("admission", admission)
        ),
    )
