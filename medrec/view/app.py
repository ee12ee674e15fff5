"""The local web application: routes over a home folder, inside its guard.

Handlers are plain functions: they run in threads, so that loading PyTorch or RDKit for the first
time does not hold up other answers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from medrec.runs import Home
from medrec.view import structures
from medrec.view.compare import compare
from medrec.view.molecules import Molecules
from medrec.view.patients import (
    Predictors,
    Vocabularies,
    describe_codes,
    search_codes,
)
from medrec.view.replies import NotThereError, complaint, of_error, reply
from medrec.view.runs import (
    list_runs,
    open_run,
    report_file,
    run_curves,
    run_detail,
    run_metrics,
)
from medrec.view.security import DRAWING_POLICY, REPORT_POLICY, VIEWER_POLICY, Guard
from medrec.view.viewer import viewer_document
from quantum.base import Frozen, InputError, MedrecError, ProgramMissingError, read_json

ASSETS = Path(__file__).resolve().parent / "assets"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}


class CompareRequest(Frozen):
    """Runs to put side by side."""

    runs: tuple[str, ...] = Field(max_length=200)
    reference: str | None = None


class RunRequest(Frozen):
    """One run."""

    run: str


class SearchRequest(Frozen):
    """Codes of one kind by what was typed."""

    run: str
    kind: str
    text: str = Field(max_length=200)


class DescribeRequest(Frozen):
    """Codes to look up in a run's vocabulary."""

    run: str
    codes: dict[str, list[str]]


class RecommendRequest(Frozen):
    """A patient document, and the grade of pairs that are forbidden."""

    run: str
    document: dict[str, Any]
    forbid: int | None = Field(None, ge=1, le=4)


def create_app(home: Home, token: str, port: int = 0) -> Guard:
    """Build the application of one home folder.

    Parameters
    ----------
    token : str
        What every request must know; see `medrec.view.security`.
    port : int
        Of the server, for the name of its cookie.
    """
    app = FastAPI(title="medrec view", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(MedrecError, _medrec_error)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http_error)
    _add_pages(app, home)
    _add_runs(app, home)
    _add_molecules(app, home)
    _add_patients(app, home)
    return Guard(app, token, port)


def _medrec_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MedrecError)
    return of_error(error)


def _not_valid(request: Request, error: Exception) -> JSONResponse:
    """Name the places only: the values may be a patient's."""
    assert isinstance(error, RequestValidationError)
    places = sorted({".".join(str(part) for part in item["loc"][:2]) for item in error.errors()})
    return complaint(f"the request is not as expected at {', '.join(places)[:200]}", 422)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    text = "no such page" if error.status_code == 404 else str(error.detail)
    return complaint(text, error.status_code, "not_found" if error.status_code == 404 else "input")


# --------------------------------------------------------------------------- page and files


def _add_pages(app: FastAPI, home: Home) -> None:
    @app.get("/")
    def index() -> Response:
        return _file(ASSETS / "index.html")

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        return _file(_asset(name))

    @app.get("/libraries/plotly.min.js")
    def plotly() -> Response:
        found = importlib.util.find_spec("plotly")
        if found is None or found.origin is None:
            raise ProgramMissingError("plotly is not installed; expected pip install plotly")
        return _kept(Path(found.origin).parent / "package_data" / "plotly.min.js")

    @app.get("/reports/{name}")
    def report(name: str) -> Response:
        path = report_file(home, name)
        headers = {"content-security-policy": REPORT_POLICY}
        return FileResponse(path, media_type="text/html; charset=utf-8", headers=headers)


def _asset(name: str) -> Path:
    """A file of the page by its name, looked up among those that there are."""
    found = {item.name: item for item in ASSETS.iterdir() if item.is_file()}
    if name not in found:
        raise NotThereError("no file of that name")
    return found[name]


def _file(path: Path) -> Response:
    return Response(path.read_bytes(), media_type=_TYPES.get(path.suffix, "text/plain"))


def _kept(path: Path) -> Response:
    """A library, which the browser may keep for the day."""
    if not path.is_file():
        raise NotThereError("the library is not installed")
    headers = {"cache-control": "private, max-age=86400"}
    return FileResponse(path, media_type="text/javascript", headers=headers)


# --------------------------------------------------------------------------- runs


def _add_runs(app: FastAPI, home: Home) -> None:
    @app.get("/api/runs")
    def runs() -> JSONResponse:
        return reply({"home": home.root.resolve().name, "runs": list_runs(home)})

    @app.get("/api/runs/{name}")
    def run(name: str) -> JSONResponse:
        return reply(run_detail(home, name))

    @app.get("/api/runs/{name}/metrics")
    def metrics(name: str) -> JSONResponse:
        return reply(run_metrics(home, name))

    @app.get("/api/runs/{name}/curves")
    def curves(name: str) -> JSONResponse:
        return reply(run_curves(home, name))

    @app.post("/api/compare")
    def comparison(request: CompareRequest) -> JSONResponse:
        return reply(compare(home, list(request.runs), request.reference))


# --------------------------------------------------------------------------- molecules


def _add_molecules(app: FastAPI, home: Home) -> None:
    molecules = Molecules(home)

    @app.get("/api/molecules")
    def search(text: str = "", only: str = "") -> JSONResponse:
        index = molecules.index()
        return reply({**index.search(text[:500], only), "dropped": index.dropped})

    @app.get("/api/molecules/{key}")
    def molecule(key: str) -> JSONResponse:
        return reply(structures.molecule_detail(home, molecules, key))

    @app.get("/api/molecules/{key}/drawing.svg")
    def drawing(key: str) -> Response:
        headers = {"content-security-policy": DRAWING_POLICY}
        text = structures.drawing(molecules, key)
        return Response(text, media_type="image/svg+xml", headers=headers)

    @app.get("/api/molecules/{key}/conformer")
    def conformer(key: str) -> JSONResponse:
        return reply(structures.conformer(home, molecules, key))

    @app.get("/api/molecules/{key}/viewer.html")
    def viewer(key: str, theme: str = "light") -> Response:
        headers = {"content-security-policy": VIEWER_POLICY, "x-frame-options": "SAMEORIGIN"}
        text = viewer_document(home, molecules, key, theme)
        return Response(text, media_type="text/html", headers=headers)

    @app.get("/api/molecules/{key}/features/{table}")
    def features(key: str, table: str) -> JSONResponse:
        return reply(structures.molecule_features(home, molecules, key, table))


# --------------------------------------------------------------------------- patients


def _add_patients(app: FastAPI, home: Home) -> None:
    predictors, vocabularies = Predictors(home), Vocabularies(home)

    @app.get("/api/example")
    def example() -> JSONResponse:
        from medrec.data.schema import data_root

        return reply(read_json(data_root() / "example_patient.json"))

    @app.post("/api/predictor")
    def load(request: RunRequest) -> JSONResponse:
        loaded = predictors.get(open_run(home, request.run))
        sizes = {
            kind: len(getattr(loaded.vocabularies, kind))
            for kind in ("diagnoses", "procedures", "drugs")
        }
        return reply({"run": request.run, "model": loaded.config.model.name, "codes": sizes})

    @app.post("/api/codes")
    def codes(request: SearchRequest) -> JSONResponse:
        found = vocabularies.of(open_run(home, request.run))
        if request.kind not in found:
            raise InputError(f"kind of code is unknown; expected one of {', '.join(found)}")
        return reply(search_codes(found[request.kind], request.text))

    @app.post("/api/codes/describe")
    def describe(request: DescribeRequest) -> JSONResponse:
        run = open_run(home, request.run)
        pairs = vocabularies.of(run)
        return reply(describe_codes(predictors.get(run), pairs, request.codes))

    @app.post("/api/recommend")
    def recommend(request: RecommendRequest) -> JSONResponse:
        from medrec.recommend import recommend as answer

        run = open_run(home, request.run)
        loaded = predictors.get(run)
        return reply(answer(run, home, request.document, request.forbid, loaded))
