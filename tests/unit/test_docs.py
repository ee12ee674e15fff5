"""The documentation's examples run, its generated pages say what their sources say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from pydantic import BaseModel, Field

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a file that belongs to no package."""
    monkeypatch.syspath_prepend(str(path.parent))
    name = f"docs_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hook(monkeypatch):
    return lambda name: load(DOCS / "_hooks" / f"{name}.py", monkeypatch)


@pytest.fixture
def example(monkeypatch):
    return lambda name: load(DOCS / "examples" / f"{name}.py", monkeypatch)


# --------------------------------------------------------------------------- examples


def sum_model(example, synthetic):
    """Configuration, data and untrained model of the how-to, without dropout."""
    import torch

    from medrec.fitting import build_learning_data

    module, (_, cohort) = example("add_model"), synthetic
    tree = yaml.safe_load((DOCS / "examples" / "sum.yaml").read_text())
    tree["model"]["dropout"] = 0.0
    config = module.SumTrainConfig.model_validate(tree)
    data = build_learning_data(cohort, 0, None, molecules=False)
    torch.manual_seed(0)
    return config, data, module.SumModel(config, data.context)


def test_the_example_model_learns(example, synthetic):
    from medrec.fitting import fit, validate

    config, data, model = sum_model(example, synthetic)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"epochs": 4})})
    before = validate(model, data)["val_jaccard"]
    result = fit(config, data, model, report=lambda row, state: None)
    assert result.history[-1]["train_loss"] < 0.96 * result.history[0]["train_loss"]
    assert result.best_score > before


def test_the_example_model_sees_no_future(example, synthetic):
    import torch

    _, data, model = sum_model(example, synthetic)
    patient = max(data.dataset.patients, key=lambda p: len(data.dataset.patients[p]))
    batch = data.dataset.collate([patient])
    probs = model.predict(batch).probs
    assert batch.shape[1] >= 2
    batch.target = 1.0 - batch.target
    assert torch.equal(model.predict(batch).probs, probs)
    batch.drugs_before[:, -1] = 1.0 - batch.drugs_before[:, -1]
    changed = model.predict(batch).probs
    assert torch.equal(changed[:, :-1], probs[:, :-1])
    assert not torch.equal(changed[:, -1], probs[:, -1])


def test_the_example_backend_agrees_with_pyscf(example):
    from quantum.backends import Problem, get_backend
    from quantum.schema import CalculationSpec, Resources

    water = np.array([[0.0, 0.0, 0.0], [0.0, 1.43, 1.11], [0.0, -1.43, 1.11]])
    problem = Problem((8, 1, 1), water, 0, 1)
    spec = CalculationSpec(method="hf", basis="6-31g", density_fitting=False)
    ours = example("add_backend").PlainHartreeFock().run_scf(problem, spec, Resources())
    theirs = get_backend("pyscf").run_scf(problem, spec, Resources())
    assert ours.energy_hartree == pytest.approx(theirs.energy_hartree, abs=1e-6)
    np.testing.assert_allclose(ours.dipole_au, theirs.dipole_au, atol=1e-4)


def test_the_example_backend_refuses_what_it_cannot_do(example):
    from quantum.backends import Problem
    from quantum.base import InputError
    from quantum.schema import CalculationSpec, Resources

    backend = example("add_backend").PlainHartreeFock()
    with pytest.raises(InputError, match="b3lyp"):
        backend.run_scf(Problem((2,), np.zeros((1, 3)), 0, 1), CalculationSpec(), Resources())


def test_the_example_dataset_becomes_a_cohort(example, tmp_path, monkeypatch):
    from medrec.config import CohortConfig
    from medrec.data.cohort import prepare_cohort
    from medrec.loading import load_config
    from medrec.runs import Home

    stays, diagnoses, drugs = ["patient,stay,admitted,discharged"], ["stay,icd10"], []
    for patient in range(12):
        for visit in range(2):
            stay = 100 * patient + visit
            day = f"20{20 + visit}-03-0{1 + patient % 9}"
            stays.append(f"{patient},{stay},{day}T08:00:00,{day}T20:00:00")
            diagnoses += [f"{stay},I10", f"{stay},e11.9"]
            drugs += [f"{stay},{day}T09:00:00,{name}" for name in ("Metformin", "Furosemide")]
    drugs.insert(0, "stay,started,name")
    for name, lines in (("stays", stays), ("diagnoses", diagnoses), ("drugs", drugs)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = [tmp_path / f"{name}.csv" for name in ("stays", "diagnoses", "drugs")]
    count = example("add_dataset").write_meds(*files, tmp_path / "meds")
    assert count == 24 * 6
    monkeypatch.setenv("MEDS_HOME", str(tmp_path / "meds"))
    config = load_config(DOCS / "examples" / "own_hospital.yaml", CohortConfig)
    cohort = prepare_cohort(config, Home(tmp_path / "home"))
    assert len(cohort.visits) == 24
    assert cohort.visits["patient"].nunique() == 12
    assert set(cohort.visits["diagnoses"].iloc[0]) == {"icd10:I10", "icd10:E119"}
    assert set(cohort.visits["drugs"].iloc[0]) == {"A10B", "C03C"}


# --------------------------------------------------------------------------- generated pages


RECORD: dict[str, Any] = {
    "benchmark": "toy",
    "command": "make bench NAME=toy",
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"cores": 2, "memory_gib": 4, "processor": "x", "platform": "y", "python": "3.11"},
    "code": {"commit": "0123456789abcdef", "dirty": True, "version": "0.1.0"},
    "figures": [
        {
            "name": "a <script>",
            "value": 2.0,
            "unit": "s",
            "peer": 8.0,
            "ratio": 4.0,
            "goal": 3,
            "met": True,
        },
        {
            "name": "slow",
            "value": 9.0,
            "unit": "1",
            "peer": 3.0,
            "ratio": 1 / 3,
            "goal": 1,
            "met": False,
        },
        {
            "name": "free",
            "value": 1e-6,
            "unit": "1",
            "peer": None,
            "ratio": None,
            "goal": None,
            "met": None,
        },
    ],
}


def test_results_are_counted_escaped_and_not_hidden(hook):
    page = hook("results_page").results([RECORD])
    assert "<strong>3</strong><span>figures of 1 benchmarks" in page
    assert "<strong>1</strong><span>of 2 goals met" in page
    assert "<strong>1</strong><span>goals not met" in page
    assert "<script>" not in page
    assert "a &lt;script&gt;" in page
    first, rest = page.split("## All figures")
    assert '<a href="#toy">toy</a></td><td>slow</td>' in first
    assert rest.count("<tr class=") == 3
    assert "1.00e-06" in rest
    assert "0123456789, with uncommitted changes" in rest
    assert "2026-01-02" in rest
    assert "make bench NAME=toy" in rest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a result file"),
        ("[]", "not a result file"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "date"}), "date"),
        (json.dumps({**RECORD, "figures": [{"name": "a", "value": 1.0}]}), "met"),
    ],
)
def test_a_result_file_that_cannot_be_read_ends_the_build(hook, tmp_path, text, message):
    from mkdocs.exceptions import PluginError

    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(PluginError, match=message):
        hook("results_page").read_results(tmp_path)


def test_no_results_end_the_build(hook, tmp_path):
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match="no result files"):
        hook("results_page").read_results(tmp_path)


def test_every_shipped_figure_is_on_the_page(hook):
    module = hook("results_page")
    records = module.read_results(ROOT / "benchmarks" / "results")
    rest = module.results(records).split("## All figures")[1]
    assert rest.count("<tr class=") == sum(len(record["figures"]) for record in records)


def test_bars_have_the_lengths_of_their_numbers(hook):
    charts = hook("charts")
    picture = charts.goal_bars([("a", 3, 1), ("b & c", 0, 2)], "goals")
    widths = [float(text) for text in re.findall(r'<rect[^>]* width="([\d.]+)"', picture)]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert widths[2] == pytest.approx(2 * widths[1], rel=0.01)
    assert "b &amp; c" in picture
    ratios = charts.ratio_bars([("a", 10.0, "met"), ("b", 0.1, "missed")], "ratios")
    starts = [float(text) for text in re.findall(r'<rect[^>]* x="([\d.]+)"', ratios)]
    widths = [float(text) for text in re.findall(r'<rect[^>]* width="([\d.]+)"', ratios)]
    assert widths[0] == pytest.approx(widths[1], rel=0.01)
    assert starts[1] + widths[1] == pytest.approx(starts[0], abs=0.2)


class Inner(BaseModel):
    """Inside."""

    size: int = Field(4, gt=0, le=9)


class Outer(BaseModel):
    """Outside."""

    kind: Literal["a", "b"] = Field("a", description="a | b, <i>")
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = (Inner(size=5),)
    name: str = Field(pattern="^x|y$")
    limit: float | None = None


def test_configuration_rows_state_type_limits_and_default(hook):
    module = hook("config_page")
    assert module.reachable(Outer) == [Outer, Inner]
    page = module.section(Outer)
    assert '| `kind` | `a` `b` | `"a"` | a \\| b, &lt;i&gt; |' in page
    assert "| `inner` | [Inner](#inner) | its defaults |" in page
    assert '| `parts` | list of [Inner](#inner) | `[{"size": 5}]` |' in page
    assert "| `name` | str, pattern `^x\\|y$` | required |" in page
    assert "| `limit` | float or `null` | `null` |" in page
    assert "| `size` | int, > `0`, <= `9` | `4` |" in module.section(Inner)


def test_every_kind_of_configuration_is_in_the_reference(hook):
    from orchestration.configs import KIND_OF_FOLDER

    page = hook("config_page").reference()
    for kind in KIND_OF_FOLDER.values():
        assert page.count(f"### {kind.__name__} {{") == 1
    assert "ForwardRef" not in page


def test_commands_are_listed_with_their_options(hook):
    import typer

    module = hook("cli_page")
    app, group = typer.Typer(), typer.Typer()

    @app.command()
    def cook(
        dish: str,
        minutes: int = typer.Option(5, help="How long | at <most>."),
        hot: bool = typer.Option(False, "--hot", envvar="HOT"),
    ) -> None:
        """Cook a dish."""

    @group.command()
    def wash() -> None:
        """Wash up."""

    app.add_typer(group, name="after")
    commands = dict(module.walk(typer.main.get_command(app), "toy"))
    assert list(commands) == ["toy cook", "toy after wash"]
    text = module.section("toy cook", commands["toy cook"])
    assert "Cook a dish." in text
    assert "| `DISH` | str | required |" in text
    assert "| `--minutes` | int | `5` | How long \\| at &lt;most&gt;. |" in text
    assert "| `--hot` |  |  |  Variable: `HOT`. |" in text


def test_all_modules_have_a_page(hook):
    module = hook("api_pages")
    pages = module.modules(ROOT)
    assert "quantum.elf" in pages["quantum"]
    assert pages["quantum.backends"][0] == "quantum.backends"
    listed = {name for names in pages.values() for name in names}
    assert "medrec.models.molerec" in listed
    assert not [name for name in listed if name.startswith("medrec.config")]
    assert module.summary(module.file_of(ROOT, "quantum.elf")).startswith("The electron")
    source = module.source_page(ROOT, "quantum", "quantum.units")
    assert '<a href="../api/quantum.html#quantum.units">' in source
    assert 'id="L-1"' in source or 'name="L-1"' in source


def test_links_of_moved_pages(hook):
    moved = hook("project_pages").moved
    assert moved("# A\n[x](docs/store.md#k) [y](data/z) [w](#v)", 2) == (
        "### A\n[x](../store.md#k) y [w](#v)"
    )


def test_citation_file_has_what_the_format_requires(hook):
    text = (ROOT / "CITATION.cff").read_text()
    data = yaml.safe_load(text)
    assert {"cff-version", "message", "title", "authors"} <= set(data)
    assert data["cff-version"] == "1.2.0"
    assert data["type"] == "software"
    assert re.fullmatch(r"\d+\.\d+\.\d+", str(data["version"]))
    for item in [data, *data["references"]]:
        for author in item["authors"]:
            assert {"name"} == set(author) or "family-names" in author
    for item in data["references"]:
        assert {"type", "title", "authors", "year"} <= set(item)
    page = hook("project_pages").citation(text)
    assert "@software{medrec," in page
    assert "MoleRec" in page


def test_every_folder_of_data_has_a_card(root):
    folders = {path.parent.name for path in (root / "data").glob("*/NOTICE.md")}
    assert folders
    for folder in folders:
        card = (DOCS / "cards" / "data" / f"{folder}.md").read_text()
        assert f"<!-- notice: {folder} -->" in card
        for heading in ("## Meant for", "## Not for", "## What was changed", "## Limits"):
            assert heading in card


# --------------------------------------------------------------------------- offline


def test_addresses_elsewhere_are_found(hook):
    loads = hook("offline_check").loads_from_elsewhere
    page = (
        '<script src="https://x.org/a.js"></script><a href="https://x.org">x</a>'
        '<link rel="stylesheet" href="//x.org/a.css"><link rel="canonical" href="https://x.org">'
        '<img src="a.png" srcset="http://x.org/b.png 2x"><style>@import url(http://x.org/c)</style>'
    )
    assert loads(page) == [
        "https://x.org/a.js",
        "//x.org/a.css",
        "http://x.org/b.png",
        "http://x.org/c",
    ]
    assert loads('<a href="https://x.org">x</a><img src="data:image/png;base64,AA">') == []


def test_figures_in_a_card_are_those_of_the_file(hook):
    from mkdocs.exceptions import PluginError

    module = hook("results_page")
    text = module.excerpt([RECORD], "toy", "slow")
    assert '<td>slow</td><td>9</td><td class="n">3</td>' in text
    assert "a &lt;script&gt;" not in text
    with pytest.raises(PluginError, match="fast"):
        module.excerpt([RECORD], "toy", "fast")
