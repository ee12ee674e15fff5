"""The driver of a soak test, as a process that may be killed: features of many molecules.

``python benchmarks/soak_jobs.py REQUEST``, with a `Request` as a JSON file. The cluster is the one
that ``MEDREC_RAY_ADDRESS`` names. Prints the folder of the export, if there is one.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rdkit import Chem, RDLogger
from rdkit.Chem import BRICS

from quantum.base import MedrecError
from quantum.molecule import Species, species_from_smiles
from quantum.pipeline import Task
from quantum.schema import CalculationSpec, ConformerSpec, GridSpec, PipelineSpec, Resources

ROOT = Path(__file__).parent.parent
# cheap on purpose: what is tested is that nothing gets lost
SPEC = PipelineSpec(
    conformer=ConformerSpec(n_conformers=1),
    calculation=CalculationSpec(method="hf", basis="sto-3g", grid_level=0),
    grid=GridSpec(spacing_bohr=0.9, margin_bohr=3.0),
)
LARGEST_CUT_ONCE = 20  # heavy atoms
LIMITS = Resources(threads=1, memory_mb=2000, time_limit_s=600)


@dataclass(frozen=True)
class Request:
    """What one driver is to do.

    Parameters
    ----------
    species : str
        File with real molecules, see `write_species`.
    toys : int
        Toy tasks in place of molecules.
    first : int
        Number of the first toy task.
    """

    home: str
    species: str = ""
    toys: int = 0
    first: int = 0

    def save(self, path: Path) -> Path:
        """Write for `load`."""
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: Path) -> Request:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def tasks(self) -> list[Task]:
        """Everything that is wanted."""
        if self.toys:
            return toy_tasks(self.first, self.toys)
        listed = json.loads(Path(self.species).read_text())
        return [Task(species=Species.model_validate(item), spec=SPEC) for item in listed]


def write_species(species: Sequence[Species], path: Path) -> None:
    """Write molecules for drivers, which need not make them again."""
    path.write_text(json.dumps([item.model_dump(mode="json") for item in species]))


def toy_tasks(first: int, count: int) -> list[Task]:
    """Tasks of one stage; they differ in a seed, so each has a key of its own."""
    water = species_from_smiles("O")
    return [
        Task(
            species=water,
            spec=SPEC.model_copy(update={"conformer": ConformerSpec(seed=number)}),
            stages=("conformer",),
        )
        for number in range(first, first + count)
    ]


def smallest(count: int) -> list[Species]:
    """Different molecules, those of the fewest atoms: the shipped ones and their fragments.

    Fragments are what is left of a molecule when its BRICS bonds (Degen et al., ChemMedChem 3,
    1503, 2008) are cut and hydrogen takes their place; of a small one, also when any one single
    bond outside rings is cut.

    Raises
    ------
    SystemExit
        If there are fewer than that.
    """
    data, tests = ROOT / "data" / "molecules", ROOT / "tests" / "data" / "molecules"
    tables = [
        pd.read_parquet(data / "chembl_approved_drugs.parquet"),
        pd.read_parquet(tests / "qm9.parquet"),
        *(pd.read_csv(tests / name) for name in ("bbbp.csv", "tox21.csv", "qm8.csv.gz")),
    ]
    texts: set[str] = set()
    RDLogger.DisableLog("rdApp.*")  # fragments that are no molecules are left out
    for text in pd.concat([table["smiles"] for table in tables]).dropna().unique():
        texts.update(fragments(text))
    # atoms that a SMILES names are a first measure of size, so that not all need be standardised
    found: set[Species] = set()
    for text in sorted(texts, key=lambda text: (len(text), text))[: 3 * count]:
        try:
            found.add(species_from_smiles(text))
        except MedrecError:
            continue
    if len(found) < count:
        raise SystemExit(f"{count} molecules are wanted, the shipped tables have {len(found)}")
    return sorted(found, key=lambda item: (item.n_atoms, item.smiles))[:count]


def fragments(smiles: str) -> list[str]:
    """SMILES of a molecule's parts; of two heavy atoms at least, so that few are single atoms."""
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return []
    every = [bond.GetIdx() for bond in molecule.GetBonds() if _may_be_cut(bond)]
    cuts = [[index] for index in every] if molecule.GetNumHeavyAtoms() <= LARGEST_CUT_ONCE else []
    brics = [
        molecule.GetBondBetweenAtoms(*pair).GetIdx() for pair, _ in BRICS.FindBRICSBonds(molecule)
    ]
    texts = {smiles}
    for cut in [*cuts, brics]:
        if cut:
            broken = Chem.FragmentOnBonds(molecule, cut)
            texts.update(
                re.sub(r"\[\d*\*\]|\*", "[H]", t) for t in Chem.MolToSmiles(broken).split(".")
            )
    parts = (Chem.MolFromSmiles(text) for text in texts)
    return [Chem.MolToSmiles(part) for part in parts if part and part.GetNumHeavyAtoms() > 1]


def _may_be_cut(bond: Chem.Bond) -> bool:
    return bond.GetBondType() == Chem.BondType.SINGLE and not bond.IsInRing()


def drive(request: Request) -> None:
    """Compute what is missing, then export."""
    from medrec.config import FeatureRunConfig
    from medrec.runs import Home
    from orchestration.console import Terminal
    from orchestration.features import compute
    from quantum.export import Atlas, export_features

    home, tasks = Home(Path(request.home)), request.tasks()
    config = FeatureRunConfig(
        name="soak", pipeline=SPEC, atlas="none", resources=LIMITS, interrupt_grace_s=0
    )
    compute(config, ([], tasks), home, Terminal())
    if not request.toys:
        species = [task.species for task in tasks]
        folder = export_features(
            species, SPEC, home.open_store(), home.features, "soak", Atlas.empty()
        )
        print(folder, flush=True)


if __name__ == "__main__":
    drive(Request.load(Path(sys.argv[1])))
