from __future__ import annotations

import gzip

import polars as pl
import pytest

from medrec.data.codes import (
    CodeMaps,
    icd_label,
    map_prescriptions,
    name_candidates,
    normalise_gsn,
    normalise_name,
    normalise_ndc,
)
from medrec.data.schema import Vocabulary, data_root
from quantum.base import DataError, InputError

ROUTES = ("gsn", "ndc", "name")


@pytest.fixture(scope="module")
def maps() -> CodeMaps:
    return CodeMaps(data_root() / "codes")


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("Metoprolol Tartrate 25 mg Tab (Lopressor)", "metoprolol tartrate"),
        ("Albuterol 0.083% Neb Soln", "albuterol"),
        ("*NF* Zoledronic Acid", "zoledronic acid"),
        ("Acide acétylsalicylique", "acide acetylsalicylique"),
        ("0.9% Sodium Chloride", "sodium chloride"),
    ],
)
def test_names_lose_strengths_forms_and_brackets(raw, plain):
    assert normalise_name(raw) == plain


def test_salts_are_tried_last():
    assert name_candidates("Metoprolol Tartrate") == ("metoprolol tartrate", "metoprolol")
    assert name_candidates("Sodium Chloride")[0] == "sodium chloride"


@pytest.mark.parametrize(
    ("raw", "ndc"),
    [("00006494300", "00006494300"), ("6494300", "00006494300"), ("0", None), ("", None)],
)
def test_ndc_keeps_or_regains_its_zeros(raw, ndc):
    assert normalise_ndc(raw) == ndc


def test_one_gsn_field_may_hold_several():
    assert normalise_gsn("048548 2947") == ("048548", "002947")
    assert normalise_gsn("0") == ()


@pytest.mark.parametrize(
    ("drug", "atc"),
    [
        ("Furosemide", {"C03CA01"}),
        ("Acetaminophen 500 mg Tab", {"N02BE01"}),
        ("Metoprolol Tartrate", {"C07AB02"}),
        ("Aspirin", {"B01AC06", "N02BA01"}),
        ("Bag", set()),
    ],
)
def test_name_route(maps, drug, atc):
    assert maps.look_up("name", None, None, drug) == atc


def test_gsn_and_ndc_routes_agree_on_a_pair_of_one_row(maps):
    gsn, atc = "000033", "D11AX26"
    assert maps.look_up("gsn", gsn, None, None) == {atc}
    assert atc in maps.look_up("ndc", None, "10135017510", None)


def small_maps(folder, synonyms=("name,atc",)) -> CodeMaps:
    """Two GSNs; NDC 11 stands there itself, NDC 12 shares its RxNorm concept; 13 has another."""

    def write(name, *lines):
        (folder / name).write_bytes(gzip.compress("\n".join(lines).encode()))

    write("gsn_atc_ndc_mapping.csv.gz", "gsn,atc,ndc", "000001,A02BC01,11", "000002,C03CA01,?")
    write("ndc11_to_rxcui.csv.gz", "ndc11,rxcui", "00000000011,7", "00000000012,7", "00000000013,8")
    write("atc_names.csv.gz", "atc_code,atc_name", "N02BE01,paracetamol", "H02AB02,dexamethasone",
          "D07AB19,dexamethasone", "A02B,drugs for ulcer")  # fmt: skip
    (folder / "drug_name_synonyms.csv").write_text("\n".join(synonyms))
    return CodeMaps(folder)


def prescriptions(*rows) -> pl.DataFrame:
    names = ("subject", "admission", "gsn", "ndc", "drug")
    return pl.DataFrame([dict(zip(names, row, strict=True)) for row in rows], schema_overrides={
        "gsn": pl.String, "ndc": pl.String, "drug": pl.String})  # fmt: skip


ROWS = prescriptions(
    (1, 10, "000001", "00000000012", "paracetamol"),  # every route
    (1, 10, None, "12", "x"),  # ndc only, through the RxNorm concept
    (1, 11, None, "00000000013", "Paracetamol 1 g"),  # name only: concept 8 has no ATC
    (2, 20, "000002", "0", "dexamethasone"),  # gsn and name
    (2, 20, None, None, "dexamethasone"),  # name: two classes
    (2, 21, None, "99", "unheard of"),  # none
)


def test_coverage_of_each_route_alone_and_in_order(tmp_path):
    mapped = map_prescriptions(ROWS, small_maps(tmp_path), ROUTES, "all", 3)
    assert mapped.coverage.to_dict("list") == {
        "route": ["gsn", "ndc", "name", "unmapped"],
        "rows": [2, 1, 2, 1],
        "share": [2 / 6, 1 / 6, 2 / 6, 1 / 6],
        "rows_alone": [2, 2, 4, 1],
        "share_alone": [2 / 6, 2 / 6, 4 / 6, 1 / 6],
    }


def test_order_of_routes_decides(tmp_path):
    maps = small_maps(tmp_path)
    first = map_prescriptions(ROWS[:1], maps, ("name", "gsn"), "all", 3)
    assert first.classes["atc"].to_list() == ["N02B"]
    assert first.coverage["rows"].to_list() == [1, 0, 0]
    assert map_prescriptions(ROWS[:1], maps, ROUTES, "all", 3).classes["atc"].to_list() == ["A02B"]


def test_several_classes_all_or_first(tmp_path):
    maps = small_maps(tmp_path)
    one = ROWS[4:5]
    both = map_prescriptions(one, maps, ROUTES, "all", 3)
    assert both.classes["atc"].to_list() == ["D07A", "H02A"]
    assert both.coverage["rows"].sum() == 1
    assert map_prescriptions(one, maps, ROUTES, "first", 3).classes["atc"].to_list() == ["D07A"]


@pytest.mark.parametrize(("level", "atc"), [(3, "A02B"), (4, "A02BC"), (5, "A02BC01")])
def test_atc_levels(tmp_path, level, atc):
    mapped = map_prescriptions(ROWS[:1], small_maps(tmp_path), ROUTES, "all", level)
    assert mapped.classes["atc"].to_list() == [atc]


def test_code_that_is_not_deep_enough_counts_as_unmapped(tmp_path):
    maps = small_maps(tmp_path, ("name,atc", "shallow,A02B"))
    row = prescriptions((1, 1, None, None, "shallow"))
    assert map_prescriptions(row, maps, ROUTES, "all", 3).coverage["rows"].to_list() == [0, 0, 1, 0]
    assert map_prescriptions(row, maps, ROUTES, "all", 4).coverage["rows"].to_list() == [0, 0, 0, 1]


def test_titles(maps):
    assert maps.title("diagnosis", "0010", 9) == "Cholera due to vibrio cholerae"
    assert maps.title("diagnosis", "I10", 10) == "Essential (primary) hypertension"
    assert maps.title("procedure", "9671", 9).startswith("Continuous invasive mechanical vent")
    # subdivided in 2023 (I47.10, I47.11, I47.19)
    assert maps.title("diagnosis", "I471", 10).endswith("[of I4710]")
    assert maps.title("diagnosis", "ZZZ", 10) == ""


def test_synonyms_point_at_codes_of_the_atc_index(maps):
    table = pl.read_csv(data_root() / "codes" / "drug_name_synonyms.csv")
    codes = {code for many in table["atc"] for code in many.split("|")}
    assert codes <= set(maps.atc_names)
    assert len(table["name"].unique()) == len(table)


def test_icd_label():
    assert icd_label("4019", 9, True) == "icd9:4019"
    assert icd_label("4019", 9, False) == "4019"


def test_missing_shipped_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"atc_names\.csv\.gz"):
        _ = CodeMaps(tmp_path).atc_names


def test_vocabulary():
    vocabulary = Vocabulary(("a", "b", "c"))
    positions, unknown = vocabulary.encode(["c", "x", "a"])
    assert positions.tolist() == [2, 0]
    assert unknown == 1
    assert vocabulary.unknown(["c", "x"]) == ["x"]
    assert (len(vocabulary), vocabulary.index("b"), vocabulary.index("x")) == (3, 1, None)
    with pytest.raises(InputError, match="repeats"):
        Vocabulary(("a", "a"))
