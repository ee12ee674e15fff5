"""One patient's visits in, ranked drugs and interacting pairs out.

Research use only. Nothing of the patient is stored or logged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from medrec.data.cohort import Cohort
from medrec.data.dataset import collate, encode_patient
from medrec.data.ddi import SEVERITY_NAMES
from medrec.data.schema import Vocabularies, Vocabulary
from medrec.evaluation.hard_mode import allowed_sets, forbidden_pairs
from medrec.molecules.drugs import severity_matrix
from medrec.runs import Home, Run
from medrec.training import LoadedRun, load_predictor
from quantum.base import Frozen, InputError

CAUTION = "Research use only, not for clinical decisions."
_PREFIXED = re.compile(r"icd(9|10):", re.IGNORECASE)


class Visit(Frozen):
    """Codes of one visit; drugs are those given during it."""

    diagnoses: tuple[str, ...] = ()
    procedures: tuple[str, ...] = ()
    drugs: tuple[str, ...] = ()


class Document(Frozen):
    """A patient: visits in order of time. The last one is the visit to recommend for."""

    visits: tuple[Visit, ...] = Field(min_length=1)


def parse_document(document: Any) -> Document:
    """Validate a patient document.

    Raises
    ------
    InputError
        Naming the place, and what was expected; never the values.
    """
    expected = (
        'expected {"visits": [{"diagnoses": [...], "procedures": [...], "drugs": [...]}, ...]} '
        "with codes as text"
    )
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        places = {".".join(map(str, item["loc"])) or "top level" for item in error.errors()}
        first = error.errors()[0]["msg"]
        raise InputError(
            f"patient document is not usable at {', '.join(sorted(places)[:5])} ({first}); "
            f"{expected}"
        ) from None


def match_code(code: str, vocabulary: Vocabulary) -> tuple[str | None, str]:
    """Find a code in a vocabulary: with or without dots, with or without the ICD version.

    Returns
    -------
    match : str or None
        The vocabulary's spelling.
    reason : str
        Why there is no match: ``unknown`` or ``ambiguous``.
    """
    plain = code.strip().replace(".", "")
    prefix = _PREFIXED.match(plain)
    bare = plain[prefix.end() :].upper() if prefix else plain.upper()
    if prefix:
        candidates = [f"icd{prefix.group(1)}:{bare}", bare]
    else:
        candidates = [bare, f"icd9:{bare}", f"icd10:{bare}"]
    found = [item for item in candidates if vocabulary.index(item) is not None]
    if len(found) == 1 or (prefix and found):
        return found[0], ""
    return None, "ambiguous" if found else "unknown"


def _match_drug(code: str, vocabulary: Vocabulary) -> tuple[str | None, str]:
    """Find an ATC code, or the class that a deeper code belongs to."""
    plain = code.strip().upper()
    for length in range(len(plain), 3, -1):
        if vocabulary.index(plain[:length]) is not None:
            return plain[:length], ""
    return None, "unknown"


def resolve_codes(document: Document, vocabularies: Vocabularies) -> tuple[list[Any], list[str]]:
    """Codes in the vocabularies' spelling per kind and visit, and warnings."""
    warnings: list[str] = []
    kinds: list[Any] = []
    for kind in ("diagnoses", "procedures", "drugs"):
        vocabulary = getattr(vocabularies, kind)
        visits = []
        for number, visit in enumerate(document.visits, start=1):
            matched = []
            for code in getattr(visit, kind):
                find = _match_drug if kind == "drugs" else match_code
                match, reason = find(code, vocabulary)
                if match is None:
                    warnings.append(f"visit {number}: {kind} code '{code}' is {reason}; left out")
                elif match not in matched:
                    matched.append(match)
            visits.append(matched)
        kinds.append(visits)
    return kinds, warnings


def recommend(
    run: Run,
    home: Home,
    document: Any,
    forbid: int | None = None,
    loaded: LoadedRun | None = None,
) -> dict[str, Any]:
    """Recommend drugs for the last visit of a patient.

    Parameters
    ----------
    document : dict
        ``{"visits": [{"diagnoses": [...], "procedures": [...], "drugs": [...]}, ...]}``, oldest
        first. The last visit's own drugs are not used.
    forbid : int, optional
        Grade of severity: no pair of this grade or worse is in the set (hard mode). A warning
        says which drugs were dropped for it.
    loaded : LoadedRun, optional
        The run's predictor, if it is loaded already.

    Returns
    -------
    dict
        ``drugs``: all classes, most probable first (``rank``, ``atc``, ``name``, ``probability``,
        ``selected``); ``interactions`` among the selected, worst first; ``warnings`` that name
        every code the model does not know; ``model``, ``caution``.

    Raises
    ------
    InputError
        If the document is not as expected or the run is not finished.
    """
    patient = parse_document(document)
    loaded = loaded or load_predictor(run, home)
    vocabulary = loaded.vocabularies.drugs
    (diagnoses, procedures, drugs), warnings = resolve_codes(patient, loaded.vocabularies)
    if not diagnoses[-1] and not procedures[-1]:
        warnings.append("the latest visit has no known diagnosis or procedure")
    drugs[-1] = []
    encoded = encode_patient(loaded.vocabularies, diagnoses, procedures, drugs)
    prediction = loaded.model.predict(collate([encoded], [0], len(vocabulary)))
    probs = prediction.probs[0, -1].double().numpy()
    chosen = prediction.selected[0, -1].numpy()
    names = dict(zip(loaded.cohort.drugs["atc"], loaded.cohort.drugs["name"], strict=True))
    if forbid is not None:
        forbidden = forbidden_pairs(severity_matrix(loaded.cohort, vocabulary), forbid)
        allowed = allowed_sets(probs[None], chosen[None], forbidden)[0][0]
        codes = [vocabulary.codes[i] for i in np.flatnonzero(chosen & ~allowed)]
        warnings += [
            f"{code} {names.get(code, '')} was dropped: it is in a forbidden pair" for code in codes
        ]
        chosen = allowed
    order = np.lexsort((np.arange(len(probs)), -probs))
    return {
        "drugs": [
            {
                "rank": rank,
                "atc": vocabulary.codes[i],
                "name": names.get(vocabulary.codes[i], ""),
                "probability": round(float(probs[i]), 4),
                "selected": bool(chosen[i]),
            }
            for rank, i in enumerate(order, start=1)
        ],
        "interactions": interacting_pairs(loaded.cohort, vocabulary, np.flatnonzero(chosen), names),
        "warnings": warnings,
        "model": {
            "run": run.name,
            "model": loaded.config.model.name,
            "cohort": loaded.cohort.name,
            "code": run.record()["provenance"]["code"],
        },
        "caution": CAUTION,
    }


def interacting_pairs(
    cohort: Cohort, vocabulary: Vocabulary, chosen: Iterable[int], names: dict[str, str]
) -> list[dict[str, Any]]:
    """Listed interactions between chosen drugs (positions in the vocabulary), worst first."""
    severity = severity_matrix(cohort, vocabulary)
    listed = set(zip(cohort.ddi_pairs["atc_a"], cohort.ddi_pairs["atc_b"], strict=True))
    members = sorted(int(i) for i in chosen)
    pairs = []
    for position, i in enumerate(members):
        for j in members[position + 1 :]:
            a, b = sorted((vocabulary.codes[i], vocabulary.codes[j]))
            if (a, b) in listed:
                grade = int(severity[i, j])
                pairs.append(
                    {
                        "atc_a": a,
                        "name_a": names.get(a, ""),
                        "atc_b": b,
                        "name_b": names.get(b, ""),
                        "severity": grade,
                        "severity_name": SEVERITY_NAMES[grade],
                    }
                )
    return sorted(pairs, key=lambda item: (-item["severity"], item["atc_a"], item["atc_b"]))
