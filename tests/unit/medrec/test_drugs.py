from __future__ import annotations

import gzip

import numpy as np
import polars as pl
import pytest

from medrec.config import CohortConfig, DdiConfig
from medrec.data.cohort import prepare_cohort
from medrec.data.ddi import class_interactions, density, rarest_types, read_ansm, read_twosides
from medrec.data.molecule_table import class_molecules
from medrec.data.schema import Vocabulary, data_root
from medrec.molecules.drugs import (
    build_drug_molecules,
    ddi_matrix,
    pool_molecules,
    severity_matrix,
)
from medrec.runs import Home
from quantum.base import ConfigError, DataError

SYNTHETIC = {"format": "synthetic", "n_patients": 30}

# CIDs 1 and 2 are in two and one classes, 3 in one, 4 has no ATC code.
CIDS = "CID000000001,A02BC01,C03CA01\nCID000000002,N02BE01\nCID000000003,J01CA04\n"
HEADING = "STITCH 1,STITCH 2,Polypharmacy Side Effect,Side Effect Name\n"
COMMON, RARE_A, RARE_B, RARE_C = "C9,nausea", "C2,b", "C1,a", "C3,c"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    config = CohortConfig.model_validate({"name": "s", "source": SYNTHETIC})
    return prepare_cohort(config, Home(tmp_path_factory.mktemp("home")))


def twosides(folder, *rows):
    (folder / "drug-DDI.csv").write_text(HEADING + "".join(f"{row}\n" for row in rows))
    (folder / "stitch_cid_to_atc.csv").write_text(CIDS)
    return folder / "drug-DDI.csv"


def cid(a, b) -> str:
    return f"CID00000000{a},CID00000000{b}"


# --------------------------------------------------------------------------- interactions


def test_rarest_types_break_ties_by_code_then_name():
    table = pl.DataFrame(
        [("C9", "z")] * 3 + [("C2", "b"), ("C1", "a"), ("C1", "A")], schema=["code", "name"],
        orient="row")  # fmt: skip
    assert rarest_types(table, 3) == ["A", "a", "b"]
    assert rarest_types(table.sample(fraction=1, shuffle=True, seed=1), 2) == ["A", "a"]


def test_twosides_builder(tmp_path):
    path = twosides(
        tmp_path,
        f"{cid(1, 2)},{COMMON}", f"{cid(1, 3)},{COMMON}", f"{cid(2, 3)},{COMMON}",
        f"{cid(1, 2)},{RARE_A}", f"{cid(2, 1)},{RARE_B}",  # one pair, written both ways
        f"{cid(3, 4)},{RARE_C}",  # 4 has no ATC code
    )  # fmt: skip
    config = DdiConfig(source="twosides", path=str(path), n_rarest_types=3)
    classes = ["A02B", "C03C", "N02B", "J01C"]
    table = class_interactions(config, classes, 3, tmp_path, path)
    # compound 1 stands for two classes, both interact with compound 2's class
    assert table.rows() == [("A02B", "N02B", 0, 1), ("C03C", "N02B", 0, 1)]
    assert density(table, len(classes), config.min_severity) == pytest.approx(2 / 6)
    everything = config.model_copy(update={"n_rarest_types": 4})
    assert len(class_interactions(everything, classes, 3, tmp_path, path)) == 5


def test_twosides_cohort(tmp_path):
    shipped = (data_root() / "ddi" / "stitch_cid_to_atc.csv").read_text().splitlines()
    a05, b05 = (next(row for row in shipped if code in row) for code in ("A10BA02", "C03CA01"))
    path = twosides(tmp_path, f"{a05.split(',')[0]},{b05.split(',')[0]},C1,rash")
    ddi = {"source": "twosides", "path": str(path)}
    source = SYNTHETIC | {"n_drugs": 80}
    config = CohortConfig.model_validate({"name": "t", "source": source, "ddi": ddi})
    cohort = prepare_cohort(config, Home(tmp_path / "home"))
    assert ["A10B", "C03C"] in cohort.ddi_pairs[["atc_a", "atc_b"]].to_numpy().tolist()
    drugs = Vocabulary(("A10B", "C03C"))
    assert ddi_matrix(cohort, drugs).tolist() == [[0, 1], [1, 0]]
    assert severity_matrix(cohort, drugs).tolist() == [[0, 0], [0, 0]]
    assert cohort.ddi["min_severity"] is None


def test_twosides_without_known_compound(tmp_path):
    path = twosides(tmp_path, "CID7,CID8,C1,rash")
    with pytest.raises(DataError, match="none of the 1 rows has two compounds with an ATC code"):
        read_twosides(path, tmp_path / "stitch_cid_to_atc.csv", 40)


def test_twosides_with_wrong_columns(tmp_path):
    path = twosides(tmp_path)
    path.write_text("drug1,drug2\n")
    with pytest.raises(DataError, match="table drug-DDI lacks column STITCH 1"):
        read_twosides(path, tmp_path / "stitch_cid_to_atc.csv", 40)


def ansm(folder, *rows) -> None:
    heading = "substance_a,substance_b,atc_a,atc_b,severity\n"
    text = heading + "".join(f"{row}\n" for row in rows)
    (folder / "ansm_pairs.csv.gz").write_bytes(gzip.compress(text.encode()))


def test_ansm_classes_take_the_highest_severity(tmp_path):
    ansm(
        tmp_path,
        "a,b,A02BC01,C03CA01,2", "c,d,A02BX01|N02BE01,C03CA02,4", "e,f,A02BC01,A02BX05,4",
        "g,h,,C03CA01,4",
    )  # fmt: skip
    assert len(read_ansm(tmp_path / "ansm_pairs.csv.gz")) == 3
    table = class_interactions(DdiConfig(), ["A02B", "C03C", "N02B"], 3, tmp_path, None)
    assert table.rows() == [("A02B", "C03C", 4, 2), ("C03C", "N02B", 4, 1)]
    assert density(table, 3, 3) == pytest.approx(2 / 3)
    fewer = class_interactions(DdiConfig(), ["A02B", "C03C"], 3, tmp_path, None)
    assert fewer.rows() == [("A02B", "C03C", 4, 2)]


def test_density_counts_only_severe_pairs():
    table = pl.DataFrame({"severity": [1, 2, 3, 4]})
    assert [density(table, 4, least) for least in (1, 2, 3, 4)] == [4 / 6, 3 / 6, 2 / 6, 1 / 6]


def test_shipped_thesaurus_knows_well_known_pairs():
    table = read_ansm(data_root() / "ddi" / "ansm_pairs.csv.gz").explode("atcs_a").explode("atcs_b")
    pairs = {(min(a, b), max(a, b)): s for a, b, s in table.rows()}
    # sacubitril with an ACE inhibitor; clarithromycin with simvastatin; colchicine with a macrolide
    assert pairs[("C09AA01", "C09DX04")] == 4
    assert pairs[("C10AA01", "J01FA09")] == 4
    assert pairs[("J01FA09", "M04AC01")] == 4
    assert ("A02BC01", "N02BE01") not in pairs  # omeprazole with paracetamol


def test_matrices(cohort):
    drugs = Vocabulary(tuple(cohort.drugs["atc"]))  # all classes, as in the recorded density
    severity, interacts = severity_matrix(cohort, drugs), ddi_matrix(cohort, drugs)
    assert severity.shape == interacts.shape == (len(drugs), len(drugs))
    assert severity.dtype == interacts.dtype == np.uint8
    assert (severity == severity.T).all()
    assert not severity.diagonal().any()
    assert (interacts == (severity >= 3)).all()
    assert set(np.unique(severity)) <= {0, 1, 2, 3, 4}
    upper = interacts[np.triu_indices(len(drugs), 1)]
    assert upper.mean() == pytest.approx(cohort.ddi["density"])


def test_matrix_follows_the_order_of_the_vocabulary(cohort):
    drugs = cohort.vocabularies(0).drugs
    turned = Vocabulary(tuple(reversed(drugs.codes)))
    assert (ddi_matrix(cohort, turned) == ddi_matrix(cohort, drugs)[::-1, ::-1]).all()


# --------------------------------------------------------------------------- molecules

ETHANOL, ETHANOL_TOO, BENZENE = "CCO", "OCC", "c1ccccc1"


def test_projection_is_a_mean_over_unique_molecules():
    drugs = Vocabulary(("A", "B", "C"))
    pooled = pool_molecules(
        [("A", ETHANOL), ("A", ETHANOL_TOO), ("A", BENZENE), ("B", BENZENE), ("X", "C")], drugs
    )
    assert pooled.smiles == tuple(sorted(pooled.smiles))
    assert len(pooled) == len(pooled.species) == 2
    benzene = pooled.smiles.index(BENZENE)
    assert pooled.projection[0].tolist() == [0.5, 0.5]
    assert pooled.projection[1, benzene] == 1.0
    assert pooled.projection[2].tolist() == [0.0, 0.0]
    assert pooled.projection.dtype == np.float32


def test_counterions_do_not_make_another_molecule():
    pooled = pool_molecules([("A", "CN(C)C"), ("A", "CN(C)C.Cl")], Vocabulary(("A",)))
    assert len(pooled) == 1


def test_structure_that_does_not_parse_is_recorded():
    pooled = pool_molecules([("A", "C1CC"), ("A", ETHANOL)], Vocabulary(("A",)))
    ((atc, smiles, reason),) = pooled.dropped
    assert (atc, smiles) == ("A", "C1CC")
    assert reason
    assert pooled.projection.tolist() == [[1.0]]


def test_every_class_of_the_demo_has_a_usable_molecule(cohort):
    molecules = build_drug_molecules(cohort, cohort.vocabularies(0).drugs)
    assert molecules.projection.sum(axis=1) == pytest.approx(1.0)


def test_formulary_keeps_prescribed_substances_or_the_whole_class():
    folder = data_root() / "molecules"
    whole = class_molecules(folder, "class", 3, ())
    some = class_molecules(folder, "formulary", 3, ["C03CA01"])
    loop = pl.col("atc") == "C03C"
    assert len(some.filter(loop)) < len(whole.filter(loop))
    assert some.filter(~loop).equals(whole.filter(~loop))
    assert class_molecules(folder, "formulary", 3, []).equals(whole)


def test_published_molecule_table():
    table = class_molecules(data_root() / "molecules", "molerec", 3, ())
    assert table["atc"].n_unique() == 131
    with pytest.raises(ConfigError, match="level 3"):
        class_molecules(data_root() / "molecules", "molerec", 4, ())
