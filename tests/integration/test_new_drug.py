"""`medrec features add` and `coverage`, as a person calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quantum.export import Atlas, export_features
from quantum.molecule import species_from_smiles
from quantum.pipeline import Task, compute_features, plan
from quantum.schema import CalculationSpec, FeatureSpec, GridSpec, PipelineSpec
from quantum.store import Store

MEDREC = Path(sys.executable).with_name("medrec")


def medrec(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(MEDREC), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_new_drug_from_a_smiles_and_from_its_geometry(tmp_path: Path):
    home = str(tmp_path / "home")
    done = medrec(
        "features", "add", "CO", "--level", "fast", "--home", home, "--cube", str(tmp_path),
        "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["status"] == "done"
    assert found["formula"] == "CH4O"
    assert found["gap_hartree"] > 0.1
    assert len(found["vector"]) == found["features"]
    cubes = sorted(path.name for path in tmp_path.glob("*.cube"))
    fields = ["elf.cube", "gradient.cube", "lol.cube", "rho.cube"]
    assert [name.split("_")[1] for name in cubes] == fields
    again = json.loads(
        medrec("features", "add", "OC", "--level", "fast", "--home", home, "--json").stdout
    )
    assert again["status"] == "present"
    assert again["vector"] == found["vector"]
    (tmp_path / "water.xyz").write_text(
        "3\nwater\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n"
    )
    water = json.loads(
        medrec(
            "features", "add", "--structure", str(tmp_path / "water.xyz"), "--level", "fast",
            "--home", home, "--json",
        ).stdout
    )  # fmt: skip
    assert water["species"] == "O"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "either a SMILES or --structure"),
        (("", "--level", "fast"), 2, "SMILES is empty"),
        (("C(", "--level", "fast"), 2, "does not parse"),
        (("CO", "--level", "best"), 2, "fast, standard, tight"),
        (("--structure", "absent.sdf"), 2, "file not found"),
        (("CC" * 15, "--level", "tight", "--time-limit-s", "1"), 4, "stopped after 1 s"),
        (("CC" * 80, "--level", "fast"), 4, "heavy atoms, limit 150"),
    ],
)
def test_what_cannot_be_computed_is_said_in_a_line(arguments, code, words, tmp_path: Path):
    done = medrec("features", "add", *arguments, "--home", str(tmp_path), code=code)
    assert words in done.stderr


def test_a_memory_limit_ends_one_molecule_and_says_so(tmp_path: Path):
    big = "CC(C)c1n(CC[C@@H](O)C[C@@H](O)CC(=O)O)c(-c2ccc(F)cc2)c(-c2ccccc2)c1C(=O)Nc1ccccc1"
    done = medrec(
        "features", "add", big, "--level", "standard", "--memory-mb", "500",
        "--home", str(tmp_path), code=4,
    )  # fmt: skip
    assert "resource" in done.stderr
    assert "memory" in done.stderr


def test_coverage_says_why_a_code_has_no_molecule(tmp_path: Path):
    done = medrec("features", "coverage", "--out", str(tmp_path / "c.csv"), "--json")
    counts = {row["state"]: row["drugs"] for row in json.loads(done.stdout)["counts"]}
    assert counts["defined"] > 2600
    table = pd.read_csv(tmp_path / "c.csv", keep_default_na=False).set_index("atc")
    assert table["defined"].groupby(level=0).any().sum() == 1764
    assert table.loc["A10AB01", "reason"] == "biologic"  # insulin
    assert table.loc["B01AB01", "reason"] == "polymer"  # heparin
    assert table.loc["N02BE01", "formula"] == "C8H9NO2"
    own = tmp_path / "own.csv"
    own.write_text(
        "atc,name,identifier,smiles\nX,thing,1,[Pt](Cl)(Cl)(N)N\nY,salt,2,CC(=O)[O-].[Na+]\n"
    )
    rows = json.loads(medrec("features", "coverage", "--table", str(own), "--json").stdout)["drugs"]
    assert [(row["atc"], row["defined"], row["reason"]) for row in rows] == [
        ("X", False, "element"),
        ("Y", True, ""),
    ]
    own.write_text("name\nx\n")
    assert "lacks the columns" in medrec("features", "coverage", "--table", str(own), code=2).stderr


SPEC = PipelineSpec(
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.9, margin_bohr=3.0, extra_fields=("gradient",)),
    features=FeatureSpec(volume_points=16),
)


def test_an_atlas_stands_in_for_the_same_request_only(tmp_path: Path):
    from medrec.molecules.encode import EncodeConfig, encode_table
    from medrec.molecules.features import FeatureTable
    from quantum.base import InputError

    water, methane = species_from_smiles("O"), species_from_smiles("C")
    first = Store(tmp_path / "first")
    for species in (water, methane):
        assert compute_features(Task(species=species, spec=SPEC), first).status == "done"
    atlas = Atlas.load(export_features([water, methane], SPEC, first, tmp_path, "atlas"))
    assert set(atlas.vectors) == {plan(s, SPEC)["features"] for s in (water, methane)}
    bare = FeatureTable.load(
        export_features([water], SPEC, Store(tmp_path / "none"), tmp_path, "bare", atlas)
    )
    assert bare.coverage()["with conformer"] == 1
    numbers, coords = bare.conformer(0)
    assert numbers.tolist() == [8, 1, 1]
    assert 0.9 < np.linalg.norm(coords[0] - coords[1]) < 1.05
    second = Store(tmp_path / "second")
    compute_features(Task(species=methane, spec=SPEC), second)
    table = FeatureTable.load(export_features([water, methane], SPEC, second, tmp_path, "x", atlas))
    assert table.species.set_index("smiles")["source"].to_dict() == {"O": "atlas", "C": "computed"}
    assert table.coverage()["of these from the atlas"] == 1
    reference = FeatureTable.load(tmp_path / next(p.name for p in tmp_path.glob("atlas-*")))
    np.testing.assert_array_equal(table.elf, reference.elf)
    volumes, mask = table.volumes([water, methane, species_from_smiles("CC")])
    assert mask.tolist() == [True, True, False]
    assert volumes.shape == (3, 3, 16, 16, 16)
    assert not volumes[2].any()
    # other settings are another request
    finer = SPEC.model_copy(update={"features": FeatureSpec(volume_points=16, n_bins=7)})
    other = export_features([water, methane], finer, second, tmp_path, "y", atlas)
    assert FeatureTable.load(other).coverage()["with ELF map"] == 0
    # image encoders make one set more
    encoding = EncodeConfig.model_validate(
        {"volume": {"dim": 6, "widths": [8, 8, 8], "cube": 4, "epochs": 2}}
    )
    encoded = FeatureTable.load(encode_table(table, encoding, tmp_path))
    assert encoded.manifest["feature_sets"]["volume_cnn"] == 6
    assert encoded.align([water, methane], ["volume_cnn"])[0].shape == (2, 6)
    assert np.abs(encoded.elf[:, -6:]).sum() > 0
    np.testing.assert_array_equal(encoded.elf[:, :-6], table.elf)
    assert encode_table(table, encoding, tmp_path) == encoded.folder
    with pytest.raises(InputError, match="already"):
        encode_table(encoded, encoding, tmp_path)
    with pytest.raises(InputError, match="weights"):
        encode_table(table, EncodeConfig(encoder="slices"), tmp_path)
    # sets are switched by name
    sets = table.manifest["feature_sets"]
    chosen, _ = table.align([water], ["bonds", "elf"])
    assert chosen.shape[1] == sets["elf"] + sets["bonds"]
    with pytest.raises(InputError, match="no sets"):
        table.align([water], ["colour"])
