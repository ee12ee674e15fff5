"""eICU tables to events.

eICU was collected in many intensive care units and says less than MIMIC; how it is read:

- A visit is a hospital stay (``patienthealthsystemstayid``): its unit stays are joined. A patient
  is a ``uniquepid``; patients are numbered in the order of that text.
- Stays have a year of discharge and no date. Visits are in the order of that year, then of the
  stay's number, which says nothing about time.
- A diagnosis names its codes as ``401.9, I10``: which are ICD-9 and which ICD-10 is told by their
  form (`split_icd`), and ``diagnosis_codes`` says which are taken.
- There are no ICD procedures. The path of a treatment, cut at ``treatment_depth``, stands for one.
  Half of the treatments say which drug was given; ``treatments: procedures`` leaves them out.
- Drugs have a name or nothing: there is no NDC and no GSN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from medrec.config import EicuSource
from medrec.data import checks
from medrec.data.checks import Problems
from medrec.data.codes import CodeMaps
from medrec.data.drug_names import name_candidates
from medrec.data.mimic import find_table
from medrec.data.schema import Events, data_root, resolve_path
from medrec.data.tables import read_columns, read_table
from quantum.base import DataError

_UNIT = {"patientunitstayid": "unit"}
_STAYS = {
    "patienthealthsystemstayid": "admission",
    "uniquepid": "person",
    "hospitaldischargeyear": "year",
}
# V and E codes: ICD-10 has a letter and two characters before the dot; all of V is taken as ICD-9,
# whose V codes (factors of health) are common, while ICD-10's (transport accidents) are not
_ICD9 = re.compile(r"\d{3}(\.\d{1,2})?|V\d{2}(\.\d{1,2})?|E\d{3}(\.\d)?")
_ICD10 = re.compile(r"[A-UW-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?")
_DRUG_WORDS = re.compile(
    r"medication|antibacterial|antibiotic|antifungal|antiviral|antiplatelet|anticoag|antiarrhyt"
    r"|antihyper|anticonvuls|antiemetic|antidepress|antipsych|antidot|antacid|antihist|antitub"
    r"|analges|narcotic|opioid|sedat|anesth|paralytic|neuromuscular block|nmb|benzodiaz|barbitur"
    r"|neurolept|vasopress|vasodilat|inotrop|diuretic|blocker|inhibitor|nitrate|nitrogly|statin"
    r"|bronchodilat|steroid|glucocort|mineralocort|insulin|hypoglyc|hormon|thyroid hormone|laxative"
    r"|stool softener|prophylaxis|stress ulcer|heparin|aspirin|warfarin|thrombolytic|fibrinolytic"
    r"|electrolyte|potassium|magnesium|calcium|phosph|bicarbonate|glucose$|dextrose|saline|ringer"
    r"|fluid|colloid|albumin|vitamin|iron|erythropoi|epoetin|immunosupp|chemother|vaccin|agonist"
    r"|antagonist|mannitol|nicotine|agent|hypertensive drug|patch|ssri|folate|pyretic|cephalosp"
    r"|lactulose|theophyl|digoxin|clonidine"
    r"|administration of|reversal|replacement|octreotide|immunoglobulin|therapy \(for varices\)",
    re.IGNORECASE,
)
_NO_DRUG = re.compile(
    r"blood product|transfus|consultation|drug levels|dialysis|plasmapheresis|filtration|oxygen"
    r"|compression|fluid restriction",
    re.IGNORECASE,
)
_PACKAGE = re.compile(
    r"^\s*[\d.,]+ *(ML|GM?|MG|EA)\b[^:]{0,24}(:| - )|(:| - )\s*[\d.,]+ *ML\b.*$"
    r"|\b(IN|W/) *(D5W?|NS|NACL|DEXTROSE|SODIUM CHLORIDE|WATER)\b.*$"
    r"|\b(BAG|LVP|SOLP|MBP|PB|SSO|ADV|UDPWD|LIQD|EMUL|SYRG|TBCR|TBEC|CRYS|SOLR|BOLUS|IJ|UD"
    r"|PIGGY BACK|FLEX CONT|FLEXPEN|SDV|MDV)\b",
    re.IGNORECASE,
)
_SHORT = {"nacl": "sodium chloride", "nss": "sodium chloride", "dext": "dextrose"}
TRADE_NAMES = "trade_names.csv"
ORDER_NOTE = (
    "eICU gives the year of a stay and no date: visits are in order of the year of discharge, then "
    "of the stay's number, which says nothing about time; {tied} of {several} patients with "
    "several stays have two in one year, so their order is arbitrary there."
)


def source_files(source: EicuSource) -> dict[str, Path]:
    """Find the tables that will be read: table name to file.

    Raises
    ------
    InputError
        If the folder does not exist, or names a variable that is not set.
    DataError
        If a table is missing.
    """
    folder = resolve_path(source.path)
    if not folder.is_dir():
        raise DataError(f"{source.path}: is a file; expected the folder of the eICU tables")
    tables = ["patient", "medication", "diagnosis", "treatment"]
    if source.with_admission_drugs:
        tables.append("admissiondrug")
    files = {table: find_table([folder], table, "eICU") for table in tables}
    return files | {"trade_names": data_root() / "codes" / TRADE_NAMES}


def read_eicu(source: EicuSource, files: dict[str, Path]) -> Events:
    """Read the tables found by `source_files`.

    Raises
    ------
    DataError
        Unreadable file, missing column, number that is not whole, stay without a year.
    """
    problems = Problems()
    units, stays, note = _stays(files["patient"], problems)
    trade = dict(read_table(files["trade_names"], ("trade", "name")).iter_rows())
    orders = [_medication(source, files["medication"], units, trade, problems)]
    if source.with_admission_drugs:
        orders.append(_admission_drugs(files["admissiondrug"], units, trade, problems))
    return Events(
        prescriptions=pl.concat(orders),
        diagnoses=_diagnoses(source, files["diagnosis"], units, problems),
        procedures=_treatments(source, files["treatment"], units, problems),
        admissions=stays,
        where=source.path,
        problems=problems.found,
        notes=(note, *_notes(source)),
    )


def _notes(source: EicuSource) -> tuple[str, ...]:
    notes = [
        "Procedures are paths of eICU's treatments, not ICD codes; the units chose which to write.",
        "Drugs were found by their names: orders without one cannot count.",
    ]
    if source.treatments == "all":
        notes.append(
            "Treatments that name the drug or drug class given are among the procedures: part of "
            "the answer is in the input."
        )
    return tuple(notes)


def _stays(path: Path, problems: Problems) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Unit stays with their hospital stay and patient; hospital stays; the note on their order."""
    integers = ("patientunitstayid", "patienthealthsystemstayid", "hospitaldischargeyear")
    frame = read_columns(path, "patient", _UNIT | _STAYS, integers=integers)
    checks.check_empty(frame, "patient", problems)
    frame = frame.with_columns(
        subject=pl.col("person").str.strip_chars().rank("dense").cast(pl.Int64)
    )
    frame = checks.drop_rows_of_nobody(frame, "patient", problems)
    frame = checks.drop_shared_stays({"patient": frame}, problems)["patient"]
    year = pl.col("year").cast(pl.Int32)
    # visits of one year share their time, so that the stay's number orders them
    stays = (
        frame.with_columns(admit_time=pl.datetime(year, 1, 1, time_unit="us"))
        .group_by(checks.PERSON)
        .agg(pl.col("admit_time").min())
        .sort(checks.PERSON)
    )
    missing = stays["admit_time"].null_count()
    problems.add("patient", "stay without a year of discharge", missing, "cannot be put in order")
    per_patient = stays.group_by("subject").agg(n=pl.len(), years=pl.col("admit_time").n_unique())
    several = per_patient.filter(pl.col("n") > 1)
    tied = several.filter(pl.col("years") < pl.col("n"))
    units = frame.drop_nulls("unit").unique("unit", keep="first", maintain_order=True)
    problems.add("patient", "unit stay listed again", len(frame) - len(units), "first row kept")
    note = ORDER_NOTE.format(tied=len(tied), several=len(several))
    return units.select("unit", *checks.PERSON), stays, note


def _of_stays(
    path: Path,
    table: str,
    columns: dict[str, str],
    units: pl.DataFrame,
    problems: Problems,
    optional: tuple[str, ...] = (),
) -> pl.DataFrame:
    """Rows of a table with the hospital stay and patient of their unit stay."""
    integers = ("patientunitstayid",)
    frame = read_columns(path, table, _UNIT | columns, integers=integers, optional=optional)
    checks.check_empty(frame, table, problems)
    joined = frame.join(units, on="unit", how="inner", maintain_order="left")
    problems.add(table, "row of no stay in table patient", len(frame) - len(joined), "left out")
    return joined.drop("unit")


# --------------------------------------------------------------------------- drugs


def _medication(
    source: EicuSource,
    path: Path,
    units: pl.DataFrame,
    trade: Mapping[str, str],
    problems: Problems,
) -> pl.DataFrame:
    columns = {
        "drugname": "drug",
        "drughiclseqno": "hicl",
        "routeadmin": "route",
        "drugordercancelled": "cancelled",
    }
    frame = _of_stays(path, "medication", columns, units, problems, ("routeadmin",))
    cancelled = pl.col("cancelled").fill_null("").str.strip_chars().str.to_lowercase() == "yes"
    kept = frame.filter(~cancelled)
    problems.add("medication", "order was cancelled", len(frame) - len(kept), "left out")
    if source.names_from_hicl:
        kept = _name_by_ingredients(kept, problems)
    if "route" not in kept.columns:
        kept = kept.with_columns(route=pl.lit(None, dtype=pl.String))
    return _orders(kept, "medication", trade, problems)


def _name_by_ingredients(frame: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    """Commonest name of the same HICL number, ties in the order of names."""
    names = (
        frame.drop_nulls(["hicl", "drug"])
        .group_by("hicl", "drug")
        .len()
        .sort("hicl", "len", "drug", descending=[False, True, False])
        .unique("hicl", keep="first", maintain_order=True)
        .select("hicl", name="drug")
    )
    joined = frame.join(names, on="hicl", how="left", maintain_order="left")
    filled = joined.with_columns(drug=pl.coalesce("drug", "name"))
    problems.add(
        "medication",
        "order without a name, ingredient number known",
        frame["drug"].null_count() - filled["drug"].null_count(),
        "given the commonest name of that number",
    )
    return filled


def _admission_drugs(
    path: Path, units: pl.DataFrame, trade: Mapping[str, str], problems: Problems
) -> pl.DataFrame:
    frame = _of_stays(path, "admissiondrug", {"drugname": "drug"}, units, problems)
    frame = frame.with_columns(route=pl.lit(None, dtype=pl.String))
    return _orders(frame, "admissiondrug", trade, problems)


def plain_drug(text: str, trade: Mapping[str, str]) -> str | None:
    """Drug name without package and form, trade names as substances; None if nothing is left.

    >>> plain_drug("5 ML VIAL : DILTIAZEM HCL 25 MG/5ML IV SOLN", {})
    'DILTIAZEM HCL 25 MG/5ML IV SOLN'
    >>> plain_drug("Lasix 20 mg", {"lasix": "furosemide"})
    'furosemide'
    """
    name = " ".join(_PACKAGE.sub(" ", text).split())
    words = re.findall(r"[a-z0-9-]+", name.lower())
    for n in (2, 1):
        if " ".join(words[:n]) in trade:
            return trade[" ".join(words[:n])]
    if words and words[0] in _SHORT:
        return _SHORT[words[0]]
    return name or None


def _orders(
    frame: pl.DataFrame, table: str, trade: Mapping[str, str], problems: Problems
) -> pl.DataFrame:
    texts = frame["drug"].drop_nulls().unique().to_list()
    names = [plain_drug(text, trade) for text in texts]
    frame = frame.with_columns(
        pl.col("drug").replace_strict(texts, names, default=None, return_dtype=pl.String)
    )
    problems.add(
        table,
        "order without a name",
        frame["drug"].null_count(),
        "kept as a row that has no drug class",
    )
    nothing = pl.lit(None, dtype=pl.String)
    return frame.select(
        *checks.PERSON,
        drug_type=pl.lit("MAIN"),
        gsn=nothing,
        ndc=nothing,
        drug="drug",
        route="route",
    )


# --------------------------------------------------------------------------- codes


def split_icd(text: str, choice: str) -> tuple[list[tuple[str, int]], int]:
    """Codes of one diagnosis with their versions, and how many parts are no ICD code.

    Parameters
    ----------
    text : str
        For example ``"401.9, I10"``.
    choice : {"icd9_first", "icd10_first", "both"}
        Take the codes of one version, of the other where there is none, or of both.

    Examples
    --------
    >>> split_icd("401.9, I10", "icd9_first")
    ([('4019', 9)], 0)
    >>> split_icd("E980.2, T40.60, 31.1", "both")
    ([('E9802', 9), ('T4060', 10)], 1)
    """
    parts = [part.strip().upper() for part in text.split(",") if part.strip()]
    codes: dict[tuple[str, int], None] = {}
    for part in parts:
        version = 9 if _ICD9.fullmatch(part) else 10 if _ICD10.fullmatch(part) else 0
        codes[part.replace(".", ""), version] = None
    wrong = sum(version == 0 for _, version in codes)
    by_version = {n: [code for code in codes if code[1] == n] for n in (9, 10)}
    if choice == "both":
        return by_version[9] + by_version[10], wrong
    first, second = (9, 10) if choice == "icd9_first" else (10, 9)
    return by_version[first] or by_version[second], wrong


def _diagnoses(
    source: EicuSource, path: Path, units: pl.DataFrame, problems: Problems
) -> pl.DataFrame:
    frame = _of_stays(path, "diagnosis", {"icd9code": "text"}, units, problems)
    problems.add("diagnosis", "row without a code", frame["text"].null_count(), "left out")
    texts = frame.drop_nulls("text").group_by("text").len("n")
    codes, wrong, other = [], 0, 0
    for text, n in texts.iter_rows():
        found, bad = split_icd(text, source.diagnosis_codes)
        wrong += bad * n
        other += n if source.diagnosis_codes != "both" and found and _other(found, source) else 0
        codes += [(text, code, version) for code, version in found]
    problems.add("diagnosis", "code has the form of no ICD version", wrong, "code left out")
    problems.add(
        "diagnosis",
        f"no code of the version asked for ({source.diagnosis_codes})",
        other,
        "code of the other version taken",
    )
    table = pl.DataFrame(
        codes,
        schema={"text": pl.String, "code": pl.String, "version": pl.Int64},
        orient="row",
    )
    joined = frame.join(table, on="text", how="inner", maintain_order="left")
    return joined.select(*checks.PERSON, "code", "version")


def _other(found: list[tuple[str, int]], source: EicuSource) -> bool:
    return found[0][1] != (9 if source.diagnosis_codes == "icd9_first" else 10)


def _treatments(
    source: EicuSource, path: Path, units: pl.DataFrame, problems: Problems
) -> pl.DataFrame:
    frame = _of_stays(path, "treatment", {"treatmentstring": "text"}, units, problems)
    problems.add("treatment", "row without a path", frame["text"].null_count(), "left out")
    frame = frame.drop_nulls("text")
    texts = frame["text"].unique().sort()
    if source.treatments == "procedures":
        names_drug = drug_treatments(texts.to_list())
        kept = frame.filter(~pl.col("text").is_in(names_drug))
        problems.add(
            "treatment",
            "treatment says which drug was given",
            len(frame) - len(kept),
            "left out: it is part of what is to be predicted",
        )
        frame, texts = kept, kept["text"].unique().sort()
    parts = [re.split(r"\s*\|\s*", text.strip()) for text in texts]
    paths = ["|".join(part[: source.treatment_depth]) for part in parts]
    return frame.select(
        *checks.PERSON,
        code=pl.col("text").replace_strict(texts.to_list(), paths, return_dtype=pl.String),
        version=pl.lit(0, dtype=pl.Int64),
    )


def drug_treatments(paths: list[str]) -> list[str]:
    """Those paths of treatments that say which drug or drug class was given.

    A path does if one of its parts has a word for drugs ("antibacterials", "diuretic",
    "medications") or is the name of a substance in the ATC index. Blood products, consultations,
    drug levels and dialysis are no drugs.
    """
    names = CodeMaps(data_root() / "codes").by_name

    def drug(part: str) -> bool:
        if _DRUG_WORDS.search(part):
            return True
        return any(item in names for item in name_candidates(part)[:2])

    return [
        path
        for path in paths
        if not _NO_DRUG.search(path) and any(drug(part) for part in path.split("|")[1:])
    ]
