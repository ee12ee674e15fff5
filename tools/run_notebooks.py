"""Run the notebooks of ``docs/notebooks`` and, with ``--store``, keep their small outputs.

    python tools/run_notebooks.py --out FOLDER [NOTEBOOK ...]
    python tools/run_notebooks.py --store

Kernels write into a temporary folder: configuration, history and results, nothing beside it. Stored
outputs are tables and small pictures; interactive figures, which hold megabytes, are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
LARGEST_OUTPUT = 60_000  # characters
_VARIABLES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")


def execute(path: Path, scratch: Path, timeout_s: int = 240) -> nbformat.NotebookNode:
    """Run every cell of a notebook; an error of a cell is raised."""
    for name in _VARIABLES:
        os.environ[name] = str(scratch / name.lower())
    os.environ["MEDREC_HOME"] = str(scratch / "home")
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=timeout_s, kernel_name="python3")
    manager = client.create_kernel_manager()
    manager.transport, manager.ip = "ipc", str(scratch / "kernel")  # no port for others to read
    client.execute(cwd=str(scratch))
    return notebook


def without_large_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what does not belong into a repository: large outputs, times of execution, kernels."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_for_people(item) for item in cell.outputs if _is_kept(item)]
            cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _for_people(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Of an output with a view, the view alone: texts of objects may name folders."""
    if "text/html" in output.get("data", {}):
        output.data = {"text/html": output.data["text/html"]}
    return output


def _is_kept(output: nbformat.NotebookNode) -> bool:
    warning = output.output_type == "stream" and output.name == "stderr"
    return not warning and len(str(_for_people(output))) <= LARGEST_OUTPUT


def main(arguments: list[str]) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the notebooks with all outputs")
    parser.add_argument("--store", action="store_true", help="keep small outputs in the files")
    options = parser.parse_args(arguments)
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as scratch:
            done = execute(path, Path(scratch))
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(done, options.out / path.name)
        if options.store:
            nbformat.write(without_large_outputs(done), path)


if __name__ == "__main__":
    main(sys.argv[1:])
