"""Numbers printed in the MolInteract paper, beside which ours stand.

"Deep Interactions for Multimodal Molecular Property Prediction". The baselines are quoted there
from the works that they name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class PaperTable:
    """One printed table.

    Attributes
    ----------
    source : str
        Where it stands, and under which conditions.
    metric : str
        What the numbers are.
    lower_is_better : bool
    columns : tuple of str
        Targets or data sets, by the names that libraries use.
    units : tuple of str
        One for each column.
    rows : mapping of str to tuple of float
        Model to its numbers.
    spread : mapping of str to tuple of float
        Model to standard deviations, where printed.
    """

    source: str
    metric: str
    lower_is_better: bool
    columns: tuple[str, ...]
    units: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]
    spread: Mapping[str, tuple[float, ...]]

    def frame(self) -> pd.DataFrame:
        """Long form: model, column, unit, value, spread (NaN where not printed)."""
        items = [
            (model, column, unit, value, spread)
            for model, values in self.rows.items()
            for column, unit, value, spread in zip(
                self.columns,
                self.units,
                values,
                self.spread.get(model, (float("nan"),) * len(values)),
                strict=True,
            )
        ]
        return pd.DataFrame(items, columns=["model", "column", "unit", "value", "spread"])


def _with_spread(
    printed: Mapping[str, tuple[tuple[float, float], ...]],
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    return (
        {model: tuple(value for value, _ in items) for model, items in printed.items()},
        {model: tuple(spread for _, spread in items) for model, items in printed.items()},
    )


_QM9_UNITS = {
    "alpha": "a0^3", "gap": "meV", "homo": "meV", "lumo": "meV", "mu": "D", "cv": "cal/(mol K)",
    "g": "meV", "h": "meV", "r2": "a0^2", "u": "meV", "u0": "meV", "zpve": "meV",
}  # fmt: skip

# fmt: off
_TABLE_1 = {
    "SchNet, 8 layers":
        (0.076, 51.28, 33.17, 26.53, 0.032, 0.031, 17.86, 15.77, 0.146, 17.88, 18.24, 1.605),
    "Distance Prediction":
        (0.065, 45.87, 27.61, 23.34, 0.031, 0.033, 14.83, 15.81, 0.248, 15.07, 15.01, 1.837),
    "3D InfoGraph":
        (0.062, 45.96, 29.29, 24.60, 0.028, 0.030, 13.93, 13.97, 0.133, 13.55, 13.47, 1.644),
    "3D InfoMax":
        (0.057, 42.09, 25.90, 21.60, 0.028, 0.030, 13.73, 13.62, 0.141, 13.81, 13.30, 1.670),
    "GraphMVP":
        (0.056, 41.99, 25.75, 21.58, 0.027, 0.029, 13.43, 13.31, 0.136, 13.03, 13.07, 1.609),
    "MoleculeSDE":
        (0.054, 41.77, 25.74, 21.41, 0.026, 0.028, 13.07, 12.05, 0.151, 12.54, 12.04, 1.587),
    "MoleBlend":
        (0.060, 34.75, 21.47, 19.23, 0.037, 0.031, 12.44, 11.97, 0.417, 12.02, 11.82, 1.580),
    "MolInteract, no pre-training":
        (0.048, 37.66, 21.87, 19.45, 0.022, 0.026, 9.54, 8.84, 0.119, 8.77, 8.421, 1.396),
    "MolInteract, L_Simple":
        (0.047, 35.92, 21.54, 18.34, 0.021, 0.025, 9.13, 8.26, 0.097, 8.16, 8.17, 1.365),
    "MolInteract, L_All":
        (0.047, 35.58, 20.60, 17.88, 0.021, 0.025, 8.56, 8.24, 0.136, 7.92, 7.72, 1.327),
}
# fmt: on

QM9_TABLE_1 = PaperTable(
    source="MolInteract, Table 1: QM9, 110,000 training molecules at random, 2D and 3D input",
    metric="mean absolute error",
    lower_is_better=True,
    columns=tuple(_QM9_UNITS),
    units=tuple(_QM9_UNITS.values()),
    rows=_TABLE_1,
    spread={},
)

_TABLE_4_COLUMNS = ("alpha", "gap", "homo", "lumo", "mu", "cv", "r2", "zpve")

# fmt: off
_TABLE_4 = {
    "PNA": (0.3972, 123.08, 82.10, 85.72, 0.4133, 0.1670, 22.14, 15.08),
    "GraphCL": (0.3295, 120.08, 79.57, 80.81, 0.3937, 0.1422, 21.84, 12.39),
    "AttrMask": (0.3570, 116.21, 80.58, 84.93, 0.4626, 0.1587, 29.23, 25.91),
    "GPT-GNN": (0.3732, 131.99, 93.11, 99.84, 0.3975, 0.1795, 29.21, 11.17),
    "GraphMVP": (0.3227, 101.84, 68.62, 70.23, 0.3489, 0.1287, 17.03, 7.96),
    "3D InfoMax": (0.3268, 101.71, 68.96, 69.51, 0.3507, 0.1306, 17.39, 7.96),
    "3D-PGT": (0.3121, 101.53, 68.24, 69.73, 0.3409, 0.1217, 16.89, 7.92),
    "MolInteract, 2D": (0.2145, 86.49, 59.77, 57.55, 0.3055, 0.0830, 12.03, 5.11),
}
# fmt: on

QM9_TABLE_4 = PaperTable(
    source="MolInteract, Table 4: QM9, 2D input alone",
    metric="mean absolute error",
    lower_is_better=True,
    columns=_TABLE_4_COLUMNS,
    units=tuple(_QM9_UNITS[name] for name in _TABLE_4_COLUMNS),
    rows=_TABLE_4,
    spread={},
)

# fmt: off
_TABLE_3 = {
    "AttrMask": ((65.0, 2.3), (74.8, 0.2), (62.9, 0.1), (61.2, 0.1), (87.7, 1.1), (73.4, 2.0),
                 (76.8, 0.5), (79.7, 0.3)),
    "ContextPred": ((65.7, 0.6), (74.2, 0.0), (62.5, 0.3), (62.2, 0.5), (77.2, 0.8), (75.3, 1.5),
                    (77.1, 0.8), (76.0, 2.0)),
    "GraphCL": ((69.7, 0.6), (73.9, 0.6), (62.4, 0.5), (60.5, 0.8), (76.0, 2.6), (69.8, 2.6),
                (78.5, 1.2), (75.4, 1.4)),
    "InfoGraph": ((67.5, 0.1), (73.2, 0.4), (63.7, 0.5), (59.9, 0.3), (76.5, 1.0), (74.1, 0.7),
                  (75.1, 0.9), (77.8, 0.8)),
    "GROVER": ((70.0, 0.10), (74.3, 0.1), (65.4, 0.4), (64.8, 0.6), (81.2, 3.0), (67.3, 1.8),
               (62.5, 0.9), (82.6, 0.7)),
    "MolCLR": ((66.6, 1.8), (73.0, 0.1), (62.9, 0.3), (57.5, 1.7), (86.1, 0.9), (72.5, 2.3),
               (76.2, 1.5), (71.5, 3.1)),
    "GraphLoG": ((72.5, 0.8), (75.7, 0.5), (63.5, 0.7), (61.2, 1.1), (76.7, 3.3), (76.0, 1.1),
                 (77.8, 0.8), (83.5, 1.2)),
    "MGSSL": ((69.7, 0.9), (76.5, 0.3), (64.1, 0.7), (61.8, 0.8), (80.7, 2.1), (78.7, 1.5),
              (78.8, 1.2), (79.1, 0.9)),
    "GraphMAE": ((72.0, 0.6), (75.5, 0.6), (64.1, 0.3), (60.3, 1.1), (82.3, 1.2), (76.3, 2.4),
                 (77.2, 1.0), (83.1, 0.9)),
    "Mole-BERT": ((71.9, 1.6), (76.8, 0.5), (64.3, 0.2), (62.8, 1.1), (78.9, 3.0), (78.6, 1.8),
                  (78.2, 0.8), (80.8, 1.4)),
    "3D InfoMax": ((69.1, 1.0), (74.5, 0.7), (64.4, 0.8), (60.6, 0.7), (79.9, 3.4), (74.4, 2.4),
                   (76.1, 1.3), (79.7, 1.5)),
    "GraphMVP": ((68.5, 0.2), (74.5, 0.4), (62.7, 0.1), (62.3, 1.6), (79.0, 2.5), (75.0, 1.4),
                 (74.8, 1.4), (76.8, 1.1)),
    "MoleculeSDE": ((71.8, 0.7), (76.8, 0.3), (65.0, 0.2), (60.8, 0.3), (87.0, 0.5), (80.9, 0.3),
                    (78.8, 0.9), (79.5, 2.1)),
    "MoleBlend": ((73.0, 0.8), (77.8, 0.8), (66.1, 0.0), (64.9, 0.3), (87.6, 0.7), (77.2, 2.3),
                  (79.0, 0.8), (83.7, 1.4)),
    "MolInteract, L_Simple": ((67.2, 3.9), (76.4, 0.2), (64.5, 0.2), (62.5, 0.4), (86.1, 0.4),
                              (78.6, 0.4), (78.6, 0.8), (82.4, 1.7)),
    "MolInteract, L_All": ((68.5, 1.3), (77.3, 0.5), (65.4, 0.2), (62.9, 0.4), (88.4, 1.0),
                           (77.1, 3.1), (79.5, 0.4), (79.1, 0.03)),
}
# fmt: on
MOLECULENET_AVERAGES = {
    "AttrMask": 72.68,
    "ContextPred": 71.28,
    "GraphCL": 70.78,
    "InfoGraph": 70.98,
    "GROVER": 71.01,
    "MolCLR": 70.79,
    "GraphLoG": 73.40,
    "MGSSL": 73.70,
    "GraphMAE": 73.85,
    "Mole-BERT": 74.04,
    "3D InfoMax": 72.34,
    "GraphMVP": 71.69,
    "MoleculeSDE": 75.07,
    "MoleBlend": 76.16,
    "MolInteract, L_Simple": 74.52,
    "MolInteract, L_All": 74.77,
}  # fmt: skip
"""Table 3, last column, as printed."""

_MEANS, _SPREAD = _with_spread(_TABLE_3)

MOLECULENET_TABLE_3 = PaperTable(
    source="MolInteract, Table 3: MoleculeNet, Bemis-Murcko scaffold split, 2D input, 3 seeds",
    metric="ROC-AUC in percent, mean and standard deviation over seeds",
    lower_is_better=False,
    columns=("bbbp", "tox21", "toxcast", "sider", "clintox", "muv", "hiv", "bace"),
    units=("%",) * 8,
    rows=_MEANS,
    spread=_SPREAD,
)

_MEANS, _SPREAD = _with_spread(
    {
        "D-MPNN": ((0.0190, 0.0001),),
        "Attentive FP": ((0.0179, 0.001),),
        "N-Gram RF": ((0.0236, 0.0006),),
        "N-Gram XGB": ((0.0215, 0.0005),),
        "Pretrained GNN": ((0.0200, 0.0001),),
        "GROVER base": ((0.0218, 0.0004),),
        "GROVER large": ((0.0224, 0.0003),),
        "MolCLR": ((0.0178, 0.0003),),
        "ChemRL-GEM": ((0.0171, 0.0001),),
        "Uni-Mol": ((0.0156, 0.0001),),
        "MolInteract, no pre-training": ((0.0161, 0.0005),),
        "MolInteract, L_Simple": ((0.0158, 0.0002),),
        "MolInteract, L_All": ((0.0157, 0.0002),),
    }
)

QM8_TABLE_8 = PaperTable(
    source="MolInteract, Table 8: QM8, 80/10/10 scaffold split, 2D and 3D input, 3 seeds",
    metric="mean absolute error, averaged over the 12 targets",
    lower_is_better=True,
    columns=("qm8",),
    units=("mixed: Hartree and oscillator strengths",),
    rows=_MEANS,
    spread=_SPREAD,
)
