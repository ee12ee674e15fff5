from __future__ import annotations

import gzip

import polars as pl
import pytest

from medrec.config import CohortConfig, DrugMapsConfig
from medrec.data.codes import (
    CodeMaps,
    icd_label,
    map_prescriptions,
    name_candidates,
    ndc_problems,
    normalise_gsn,
    normalise_name,
    normalise_ndc,
)
from medrec.data.drug_codes import find_ndc, ndc_candidates, place_of_route
from medrec.data.drug_maps import DrugMaps, map_files
from medrec.data.drug_maps import user_maps as read_user_maps
from medrec.data.schema import Vocabulary, data_root
from medrec.loading import validate_config
from quantum.base import ConfigError, DataError, InputError

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


@pytest.mark.parametrize(
    ("raw", "readings"),
    [
        ("00006-4943-00", ("00006494300",)),
        ("0006-4943-00", ("00006494300",)),
        ("00006-943-00", ("00006094300",)),
        ("00006-4943-0", ("00006494300",)),
        ("1234567890", ("01234567890", "12345067890", "12345678900")),
        ("6494300.0", ("00006494300",)),
        ("0006-943-0", ()),
        ("0006-4943-00-1", ()),
        ("0006-49x3-00", ()),
        ("123456789012", ()),
        ("²²²²²²²²²²²", ()),
    ],
)
def test_spellings_of_an_ndc(raw, readings):
    assert ndc_candidates(raw) == readings


def test_ten_digits_are_read_as_the_map_knows_them():
    one = {"12345067890": ("A02BC01",)}
    assert find_ndc("1234567890", one) == ("A02BC01",)
    agree = one | {"12345678900": ("A02BC01",)}
    assert find_ndc("1234567890", agree) == ("A02BC01",)
    differ = one | {"12345678900": ("C03CA01",)}
    assert find_ndc("1234567890", differ) is None
    assert find_ndc("1234567890", {}) is None


def test_unusual_ndc_are_counted(tmp_path):
    maps = small_maps(tmp_path)
    ndcs = ("00000000012", "0000-0000-12", "00000-000-12", "12", "0", None, "A-1", "0000000012",
            "9999999999", "123456789012")  # fmt: skip
    rows = prescriptions(*((1, 1, None, ndc, "x") for ndc in ndcs))
    found = {item["problem"]: item["rows"] for item in ndc_problems(rows, maps, ROUTES)}
    assert found == {
        "NDC with dashes (4-4-2)": 1,
        "NDC with dashes (5-3-2)": 1,
        "NDC of fewer than 10 digits": 1,
        "NDC of 10 digits without dashes, one reading known": 1,
        "NDC of 10 digits without dashes, no reading known": 1,
        "NDC in no known form": 2,
        "no NDC (empty or 0)": 2,
    }
    assert ndc_problems(rows, maps, ("name",)) == []
    coverage = map_prescriptions(rows, maps, ("ndc",), "all", 3).coverage
    assert coverage["rows"].to_list() == [5, 5]


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


def user_maps(folder, dictionary: str, table: str) -> DrugMaps:
    (folder / "ndc.txt").write_text(dictionary)
    (folder / "RXCUI2atc4.csv").write_text(table)
    return DrugMaps(folder / "RXCUI2atc4.csv", folder / "ndc.txt")


PUBLISHED = "YEAR,MONTH,NDC,RXCUI,ATC4\n2016,1,x,7,C03CA\n2016,1,y,7,A02BC\n2016,2,x,7,C03CA\n"


@pytest.mark.parametrize(
    "dictionary",
    ["{'00000000012': '7', '00000000013': ''}", '{"00000000012": 7}', "NDC,RXCUI\n12,7.0\n13,\n"],
)
def test_route_by_the_users_maps(tmp_path, dictionary):
    shipped = small_maps(tmp_path)
    maps = CodeMaps(shipped.folder, user_maps(tmp_path, dictionary, PUBLISHED))
    rows = ROWS[:2]
    every = map_prescriptions(rows, maps, ("rxcui", "name"), "all", 3)
    assert every.coverage["rows"].to_list() == [2, 0, 0]
    assert sorted(every.classes["atc"].unique()) == ["A02B", "C03C"]
    first = map_prescriptions(rows, maps, ("rxcui",), "first", 3)
    assert first.classes["atc"].unique().to_list() == [
        "C03C"
    ]  # first of the file, not of the alphabet
    deep = map_prescriptions(rows, maps, ("rxcui",), "all", 5)
    assert deep.coverage["rows"].to_list() == [0, 2]


@pytest.mark.parametrize(
    ("dictionary", "table", "message"),
    [
        ("{'1': ", PUBLISHED, "does not parse"),
        ("NDC,CUI\n1,2\n", PUBLISHED, "lacks column rxcui"),
        ("{'1': '7'}", "RXCUI,CODE\n7,A02BC\n", "expected a column atc5 or atc4"),
        ("{'x': '7'}", PUBLISHED, "no pair of an NDC and an RxNorm concept"),
        ("{'1': '7'}", "RXCUI,ATC4\n7,\n", "no row has an RXCUI and an ATC code"),
    ],
)
def test_maps_that_are_something_else(tmp_path, dictionary, table, message):
    with pytest.raises(DataError, match=message):
        _ = user_maps(tmp_path, dictionary, table).by_ndc


def write_rxnorm(folder, *, sat=("100|x|x|x|x|x|x|x|NDC|RXNORM|00000000012|",)):
    """Brand 100 of product 200, two components; 300 → ingredient 1, 301 → precise 5 → 2."""

    def concept(rxcui, source, kind, code=""):
        return "|".join([rxcui, *[""] * 10, source, kind, code, "name", "", "", "", ""])

    def relation(one, other, rela):
        return "|".join([one, "", "CUI", "RN", other, "", "CUI", rela, *[""] * 8])

    kinds = {"100": "SBD", "200": "SCD", "300": "SCDC", "301": "SCDC", "5": "PIN", "1": "IN",
             "2": "IN", "9": "IN"}  # fmt: skip
    conso = [concept(rxcui, "RXNORM", kind) for rxcui, kind in kinds.items()]
    conso += [concept("1", "ATC", "IN", "C03CA01"), concept("2", "ATC", "IN", "A02BC01"),
              concept("2", "ATC", "IN", "A02B"), concept("9", "ATC", "IN", "N02BE01")]  # fmt: skip
    rel = [relation("200", "100", "tradename_of"), relation("100", "200", "has_tradename"),
           relation("300", "200", "consists_of"), relation("301", "200", "consists_of"),
           relation("1", "300", "has_ingredient"), relation("5", "301", "has_precise_ingredient"),
           relation("2", "5", "form_of"), relation("9", "300", "isa")]  # fmt: skip
    for name, lines in (("RXNCONSO", conso), ("RXNREL", rel), ("RXNSAT", sat)):
        (folder / f"{name}.RRF").write_text("\n".join(lines) + "\n")
    return DrugMapsConfig.model_validate({"rxnorm": str(folder)})


def test_rxnorm_leads_from_a_product_to_its_ingredients(tmp_path):
    config = write_rxnorm(tmp_path)
    assert set(map_files(config)) == {"RXNCONSO.RRF", "RXNREL.RRF", "RXNSAT.RRF"}
    maps = CodeMaps(small_maps(tmp_path).folder, read_user_maps(config))
    mapped = map_prescriptions(ROWS[:2], maps, ("rxcui",), "all", 5)
    assert sorted(mapped.classes["atc"].unique()) == ["A02BC01", "C03CA01"]
    assert mapped.coverage["rows"].to_list() == [2, 0]


@pytest.mark.parametrize(
    ("sat", "message"),
    [(("9|x",), "fields in a row"), (("7|x|x|x|x|x|x|x|NDC|R|00000000012|",), "none of 1 NDCs")],
)
def test_rxnorm_that_does_not_fit(tmp_path, sat, message):
    maps = read_user_maps(write_rxnorm(tmp_path, sat=sat))
    with pytest.raises(DataError, match=message):
        _ = maps.by_ndc


def test_rxnorm_file_that_is_missing(tmp_path):
    maps = read_user_maps(write_rxnorm(tmp_path))
    (tmp_path / "RXNREL.RRF").unlink()
    with pytest.raises(DataError, match=r"RXNREL\.RRF: not found"):
        _ = maps.by_ndc


@pytest.mark.parametrize("keys", [(), ("rxnorm", "rxcui_to_atc"), ("rxnorm", "ndc_to_rxcui")])
def test_maps_of_one_kind(keys):
    with pytest.raises(ConfigError, match="two kinds or none"):
        validate_config(dict.fromkeys(keys, "x"), DrugMapsConfig, "here")


def test_the_route_needs_maps_and_maps_need_the_route(tmp_path):
    with pytest.raises(InputError, match=r"drug_maps\.rxcui_to_atc"):
        small_maps(tmp_path).look_up("rxcui", None, "1", None)
    source = {"format": "synthetic"}
    for wrong in ({"drug_routes": ["rxcui"]}, {"drug_maps": {"rxcui_to_atc": "x.csv"}}):
        with pytest.raises(ConfigError, match="need each other"):
            validate_config({"name": "x", "source": source, **wrong}, CohortConfig, "here")


@pytest.mark.parametrize(
    ("route", "expected"),
    [("IV", ["H02A"]), ("PO/NG", ["H02A"]), ("TP", ["D07A"]), ("BOTH EYES", ["D07A", "H02A"]),
     (None, ["D07A", "H02A"]), ("VIA SOMETHING", ["D07A", "H02A"])],
)  # fmt: skip
def test_class_that_fits_the_route_of_the_order(tmp_path, route, expected):
    row = ROWS[4:5].with_columns(route=pl.lit(route, dtype=pl.String))
    mapped = map_prescriptions(row, small_maps(tmp_path), ROUTES, "systemic_first", 3)
    assert sorted(mapped.classes["atc"]) == expected


def test_without_routes_all_classes_stay(tmp_path):
    mapped = map_prescriptions(ROWS[4:5], small_maps(tmp_path), ROUTES, "systemic_first", 3)
    assert mapped.classes["atc"].to_list() == ["D07A", "H02A"]


@pytest.mark.parametrize(
    ("route", "place"),
    [("OPHTHALMIC", "eye"), ("IH", "lung"), ("NEBULIZATION", "lung"), ("NU", "nose"),
     ("TRANSDERMAL", "systemic"), ("Topical", "skin"), ("SUBCUT", "systemic"), ("SUBQ", "systemic"),
     ("PO (oral)", "systemic"), ("IV Push", "systemic"), ("PR", "systemic"), ("LEFT EAR", "ear"),
     ("VG", "vagina"), ("", None), ("DEVICE", None)],
)  # fmt: skip
def test_place_of_a_route(route, place):
    assert place_of_route(route) == place


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
    assert icd_label("renal|dialysis", 0, True) == "path:renal|dialysis"


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
