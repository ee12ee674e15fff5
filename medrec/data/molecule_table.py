"""Shipped tables from drug classes to SMILES."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import polars as pl

from medrec.data.schema import ATC_CHARACTERS
from medrec.data.tables import read_table
from quantum.base import ConfigError, DataError

CHEMBL_FILE = "atc5_to_smiles.chembl.csv.gz"
CHEMBL_STRUCTURES_FILE = "chembl_approved_drugs.parquet"
SYNONYMS_FILE = "drug_name_synonyms.csv"
MOLEREC_FILE = "atc3_to_smiles.molerec.json"
ATC_NAMES_FILE = "atc_names.csv.gz"
# stems of international nonproprietary names and plain words, looked for in this order
_NAME_STEMS = {
    "combination": r"combination|various|comb\.| and ",
    "antibody": r"mab\b|mab ",
    "vaccine": r"vaccine|antigen|toxoid|purified|live attenuated|inactivated",
    "polymer": r"heparin|parin\b|dextran|starch|macrogol|cellulose|gelatin|polymer|povidone|"
    r"colestipol|colestyramine|sevelamer|hyaluron|pectin|polystyrene|carbomer|simeticone|inulin",
    "protein": r"insulin|globulin|albumin|serum|cept\b|interferon|grastim|poetin|leukin|kinra\b|"
    r"teplase|kinase|toxin|factor|fibrin|thrombin|gonadotrop|follitropin|somatropin|glucagon|"
    r"relin\b|tide\b|pressin\b|actide\b|aprotinin|hirudin|rudin\b|sermorelin|calcitonin",
    "enzyme": r"ase\b|ase |pancreatin",
    "oligonucleotide": r"rsen\b|siran\b|apirsen|cogene\b|vec\b|parvovec",
    "cell": r"cells\b|leucel\b|cel\b|blood|plasma|platelets|bacteri|lactobac|saccharomyces|extract",
}
_SCHEMA = {"atc": pl.String, "smiles": pl.String, "source": pl.String}


def read_substances(folder: Path) -> pl.DataFrame:
    """ChEMBL's approved drugs with an ATC level-5 code: ``atc5``, ``name``, ``smiles``.

    The shipped join knows substances whose ChEMBL and ATC names agree. Where they do not
    (acetaminophen is paracetamol in ATC), the hand-written synonyms lead to the code.
    """
    columns = ("atc5", "name", "smiles")
    table = read_table(folder / CHEMBL_FILE, columns).drop_nulls(["atc5", "smiles"])
    synonyms = folder.parent / "codes" / SYNONYMS_FILE
    structures = folder / CHEMBL_STRUCTURES_FILE
    if synonyms.exists() and structures.exists():
        named = read_table(synonyms, ("name", "atc")).select(
            pl.col("atc").str.split("|").alias("atc5"), pref_name=pl.col("name").str.to_uppercase()
        )
        drugs = pl.read_parquet(structures).select("pref_name", "smiles").drop_nulls()
        more = named.explode("atc5").join(drugs, on="pref_name")
        more = more.filter(pl.col("atc5").str.len_chars() == ATC_CHARACTERS[5])
        more = more.filter(~pl.col("atc5").is_in(table["atc5"].unique().to_list()))
        table = pl.concat(
            [table.select(columns), more.rename({"pref_name": "name"}).select(columns)]
        )
    return table.unique().sort("atc5", "smiles", "name")


def read_molerec(folder: Path) -> dict[str, list[str]]:
    """MoleRec's published table: 131 ATC level-3 classes, one to three SMILES each."""
    path = folder / MOLEREC_FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"shipped table not readable: {path} ({type(error).__name__})") from error
    return {atc: list(smiles) for atc, smiles in sorted(table.items())}


def read_drug_list(data: Path) -> pd.DataFrame:
    """Every ATC level-5 code with its structures, or none: the input of a coverage table.

    Parameters
    ----------
    data : Path
        Folder of the shipped tables.

    Returns
    -------
    pandas.DataFrame
        Columns ``atc``, ``name``, ``identifier``, ``smiles``, ``molecule_type``. The molecule type
        of a code without structure is read off its name (INN stems); it is a guess and says so.
    """
    names = read_table(data / "codes" / ATC_NAMES_FILE, ("atc_code", "atc_name"))
    names = names.filter(pl.col("atc_code").str.len_chars() == ATC_CHARACTERS[5]).unique("atc_code")
    known = read_substances(data / "molecules").select("atc5", "name", "smiles").unique()
    without = names.join(known, left_on="atc_code", right_on="atc5", how="anti").select(
        atc=pl.col("atc_code"), name=pl.col("atc_name"), smiles=pl.lit(None, pl.String)
    )
    table = pl.concat([known.rename({"atc5": "atc"}).select("atc", "name", "smiles"), without])
    frame = table.sort("atc", "name", "smiles").to_pandas()
    number = frame.groupby("atc").cumcount() + 1
    kinds = frame["name"].map(_type_by_name).where(frame["smiles"].isna(), None)
    return frame.assign(identifier=frame["atc"] + "/" + number.astype(str), molecule_type=kinds)


def _type_by_name(name: str) -> str | None:
    for kind, pattern in _NAME_STEMS.items():
        if re.search(pattern, name.lower()):
            return f"{kind}, by its name"
    return None


def class_molecules(
    folder: Path, source: str, level: int, prescribed: Iterable[str]
) -> pl.DataFrame:
    """SMILES of every drug class: ``atc``, ``smiles``, ``source``; sorted, no repetition.

    Parameters
    ----------
    source : {"formulary", "class", "molerec"}
        ``formulary``: the substances of a class that the hospital prescribed at all; where none of
        those has a structure, all of the class. ``class``: every approved substance of the class.
        ``molerec``: the published table (ATC level 3 only).
    prescribed : iterable of str
        ATC level-5 codes that occur in the prescriptions.
    """
    if source == "molerec":
        if level != 3:
            raise ConfigError(f"molecules 'molerec' are ATC level 3 classes, got atc_level {level}")
        pairs = [(atc, smiles) for atc, many in read_molerec(folder).items() for smiles in many]
        table = pl.DataFrame(pairs, schema={"atc": pl.String, "smiles": pl.String}, orient="row")
        return table.with_columns(source=pl.lit("molerec")).unique().sort("atc", "smiles")
    substances = read_substances(folder).with_columns(
        atc=pl.col("atc5").str.slice(0, ATC_CHARACTERS[level])
    )
    if source == "formulary":
        on_list = pl.col("atc5").is_in(sorted(set(prescribed)))
        substances = substances.filter(on_list | ~on_list.any().over("atc"))
    return (
        substances.select("atc", "smiles", pl.lit("chembl").alias("source"))
        .unique()
        .sort("atc", "smiles")
        .cast(_SCHEMA)  # type: ignore[arg-type]
    )
