"""The planted structure of synthetic records: which drug is given why, as one formula.

Codes belong to *conditions* (neighbouring codes of the ICD belong together); a condition is active
at a visit when one of its diagnoses or procedures is there. Given what a model may see (codes of
visits up to this one, drugs of visits before it) drugs are independent, each with probability

``logistic(bias + w_indicated I + w_previous P + w_earlier E + w_past H - w_interaction X)``

with, per drug, I: one of its conditions is active and its contraindication is not; and with the
option ``history`` P: given at the previous visit, E: given before that but not at the previous
visit, H: indicated at an earlier visit but not now; and with the option ``interactions`` X: an
interacting drug was given at the previous visit. With the option ``structure`` a drug's conditions
follow from its molecule: similar molecules share them. Moreover each rare drug is the *second line*
of a common one with a similar molecule: it is given in place of that drug while the second-line
condition is active, with a weight of its own. It occurs too seldom to be learned one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medrec.config import DdiConfig, SyntheticSource
from medrec.data import ddi
from medrec.data.codes import CodeMaps
from medrec.data.molecule_table import read_substances
from medrec.data.schema import ATC_CHARACTERS, data_root
from quantum.base import InputError

W_INDICATED, W_SECOND_LINE = 4.0, 7.0
W_PREVIOUS, W_EARLIER, W_PAST, W_INTERACTION = 2.0, 1.0, 1.2, 3.0
SECOND_LINE_BIAS = -5.0
SECOND_LINE_CONDITION = 0
MAX_CONDITIONS, SECOND_LINE_SHARE = 60, 8
COMMONEST_DRUG = 0.7
CONTRAINDICATED = 0.25
_CODE_RANK_OFFSET = 2.0
_SYSTEMIC_GROUPS, _GROUPS = "ABCHJMNR", "ABCDGHJLMNPRSV"
_SMILES_LENGTHS = range(5, 101)
_SMALL = 61

Bool = NDArray[np.bool_]
Float = NDArray[np.float64]
Int = NDArray[np.int64]


class Substance(NamedTuple):
    """The one substance that stands for an ATC level-3 class."""

    atc5: str
    name: str
    smiles: str


class IcdCode(NamedTuple):
    """Code and version (9 or 10)."""

    code: str
    version: int


@dataclass(frozen=True)
class CodeSystem:
    """Codes of one system, their conditions and how often each is drawn.

    Parameters
    ----------
    codes : list of IcdCode
    condition : numpy.ndarray
        Int, shape (n_codes,).
    weight : numpy.ndarray
        Probability of each code, shape (n_codes,); long-tailed, sums to 1.
    """

    codes: list[IcdCode]
    condition: Int
    weight: Float


@dataclass(frozen=True)
class Plan:
    """The planted structure; see the formula above.

    Parameters
    ----------
    diagnoses, procedures : CodeSystem
    drugs : list of Substance
        One per ATC level-3 class.
    popularity : numpy.ndarray
        Wanted share of visits with each drug, shape (n_drugs,).
    affinity : numpy.ndarray
        Shape (n_drugs, n_conditions): the higher, the sooner a condition is an indication.
    first_line : numpy.ndarray
        Int, shape (n_drugs,): the drug that a second-line drug stands in for; -1 elsewhere.
    contraindication : numpy.ndarray
        Int, shape (n_drugs,): condition in which the drug is not given; -1 for most drugs.
    interacts : numpy.ndarray
        Bool, shape (n_drugs, n_drugs): ANSM's class matrix.
    """

    diagnoses: CodeSystem
    procedures: CodeSystem
    drugs: list[Substance]
    popularity: Float
    affinity: Float
    first_line: Int
    contraindication: Int
    interacts: Bool

    @property
    def n_conditions(self) -> int:
        """Number of conditions."""
        return self.affinity.shape[1]


def known_substances() -> dict[str, Substance]:
    """ATC level-3 class to its smallest molecule whose name leads to it and to nothing else."""
    root = data_root()
    maps = CodeMaps(root / "codes")
    best: dict[str, tuple[int, Substance]] = {}
    for atc5, smiles in read_substances(root / "molecules").select("atc5", "smiles").iter_rows():
        name, length = maps.atc_names.get(atc5, ""), len(smiles)
        known = best.get(atc5[:4], (len(_SMILES_LENGTHS) + 99, None))[0]
        if atc5[0] not in _GROUPS or length not in _SMILES_LENGTHS or length >= known:
            continue
        if "." not in smiles and maps.look_up("name", None, None, name) == {atc5}:
            best[atc5[:4]] = (length, Substance(atc5, name, smiles))
    return {atc: substance for atc, (_, substance) in sorted(best.items())}


def _spread(items: list[str], n: int, what: str) -> list[str]:
    """Return ``n`` items at equal distances."""
    if n > len(items):
        raise InputError(f"source.n_{what} is {n}; the code table has {len(items)} to choose from")
    return [items[index * len(items) // n] for index in range(n)]


def _choose_drugs(n: int) -> list[Substance]:
    """Systemic main groups first: their classes interact as in a hospital."""
    known = known_substances()
    systemic = [
        atc
        for atc, item in known.items()
        if atc[0] in _SYSTEMIC_GROUPS and len(item.smiles) < _SMALL
    ]
    classes = systemic if n <= len(systemic) else list(known)
    return [known[atc] for atc in _spread(classes, n, "drugs")]


def _code_system(
    maps: CodeMaps, system: str, sizes: dict[int, int], k: int, rng: np.random.Generator
) -> CodeSystem:
    """Codes at equal distances; neighbours share a condition; popularity falls off as 1/rank."""
    codes: list[IcdCode] = []
    conditions: list[Int] = []
    for version, n in sizes.items():
        what = {"diagnosis": "diagnoses", "procedure": "procedures"}[system]
        chosen = _spread(maps.icd_codes(system, version), n, what)
        codes += [IcdCode(code, version) for code in chosen]
        conditions.append(np.arange(n) * k // n)
    weight = 1.0 / (_CODE_RANK_OFFSET + rng.permutation(len(codes)))
    return CodeSystem(codes, np.concatenate(conditions), weight / weight.sum())


def _popularity(n_drugs: int, mean: float) -> Float:
    """Share of visits per rank, falling off exponentially from the commonest; sums to ``mean``."""
    low, high = 1e-6, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        total = (COMMONEST_DRUG * np.exp(-middle * np.arange(n_drugs) / n_drugs)).sum()
        low, high = (middle, high) if total > mean else (low, middle)
    return np.asarray(COMMONEST_DRUG * np.exp(-low * np.arange(n_drugs) / n_drugs))


def similarity(smiles: list[str]) -> Float:
    """Tanimoto similarity of Morgan fingerprints (radius 2, 2,048 bits), shape (n, n)."""
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(item)) for item in smiles]
    return np.array([DataStructs.BulkTanimotoSimilarity(item, prints) for item in prints])


def _second_lines(alike: Float, popularity: Float, n: int) -> Int:
    """Pair the ``n`` rarest drugs with the most similar of the common ones, each used once."""
    first = np.full(len(popularity), -1)
    order = np.argsort(-popularity, kind="stable")
    rare, common = order[len(order) - n :], list(order[: max(1, len(order) // 2)])
    for drug in rare:
        partner = max(common, key=lambda other: (alike[drug, other], -other))
        first[drug] = partner
        common.remove(partner)
    return first


def _interactions(drugs: list[Substance]) -> Bool:
    """ANSM's class matrix at the severity that cohorts use by default."""
    classes = [drug.atc5[: ATC_CHARACTERS[3]] for drug in drugs]
    config = DdiConfig()
    pairs = ddi.class_interactions(config, classes, 3, data_root() / "ddi", None)
    matrix = np.zeros((len(classes), len(classes)), dtype=bool)
    place = {atc: index for index, atc in enumerate(classes)}
    for a, b, severity in pairs.select("atc_a", "atc_b", "severity").iter_rows():
        if severity >= config.min_severity:
            matrix[place[a], place[b]] = matrix[place[b], place[a]] = True
    return matrix


def _versions(source: SyntheticSource, n: int) -> dict[int, int]:
    """Number of codes by ICD version: MIMIC-IV has both."""
    return {9: n - n * 9 // 20, 10: n * 9 // 20} if source.like == "mimic4" else {9: n}


def build_plan(source: SyntheticSource) -> Plan:
    """Draw who calls for what. Depends on the sizes, the options and the seed only.

    Raises
    ------
    InputError
        If more codes are asked for than the shipped tables hold.
    """
    maps = CodeMaps(data_root() / "codes")
    rng = np.random.default_rng([source.seed, 1])
    k = max(2, min(MAX_CONDITIONS, source.n_diagnoses // 3, source.n_procedures * 9 // 20))
    sizes = _versions(source, source.n_diagnoses), _versions(source, source.n_procedures)
    diagnoses = _code_system(maps, "diagnosis", sizes[0], k, rng)
    procedures = _code_system(maps, "procedure", sizes[1], k, rng)
    drugs = _choose_drugs(source.n_drugs)
    mean = source.n_drugs / 5 if source.mean_drugs is None else source.mean_drugs
    popularity = rng.permutation(_popularity(source.n_drugs, mean))
    affinity = rng.standard_normal((source.n_drugs, k))
    first_line = np.full(source.n_drugs, -1)
    if "structure" in source.planted:
        alike = similarity([drug.smiles for drug in drugs])
        # a random function of the molecule: covariance between two drugs = their similarity
        affinity = np.linalg.cholesky(alike + 1e-6 * np.eye(len(drugs))) @ affinity
        first_line = _second_lines(alike, popularity, source.n_drugs // SECOND_LINE_SHARE)
        affinity[first_line >= 0] = affinity[first_line[first_line >= 0]]
    contraindication = rng.integers(1, k, size=source.n_drugs)
    return Plan(
        diagnoses,
        procedures,
        drugs,
        popularity,
        affinity,
        first_line,
        np.where(rng.random(source.n_drugs) < CONTRAINDICATED, contraindication, -1),
        _interactions(drugs),
    )
