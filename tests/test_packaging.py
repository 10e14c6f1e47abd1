"""The files that say what is installed agree with each other, and the repository holds what a newcomer needs.

Leaves to tests/notebooks: whether the notebooks run.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on Python 3.10

from utils.install import normalised
from utils.ui import link_command

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("template.ipynb", "training.ipynb")
ROOT_ENTRIES = {
    *(".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "docs", "benchmarks"),
    *("pyproject.toml", "requirements-colab.txt", "requirements-training.txt", "requirements.txt", "tests", "utils"),
    *NOTEBOOKS,
}
DISTRIBUTIONS = {  # import name → the distribution that holds it, where the names differ; "" where none is needed
    "lightning_fabric": "pytorch-lightning",  # its lower half, in the same wheel
    "onnx_ir": "onnxscript",  # its data structures, a dependency of it
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "markupsafe": "jinja2",  # its escaped strings, a dependency of it
    "google": "",  # Colab's own
    "benchmarks": "",  # ours
    "tomli": "",  # pytest brings it on Python 3.10
}
ON_PURPOSE = {  # installed without being imported by name: package → why
    "ruff": "`make check` runs it",
    "mypy": "`make check` runs it",
    "pandas-stubs": "mypy reads it",
    "ipykernel": "the kernelspec of tests/notebooks starts it",
    "sentencepiece": "tests/tokenization asks for it with importorskip",
    "accelerate": "transformers.Trainer asks for it",
    "pytest-xdist": "the Makefile's -n option",
    "onnxscript": "torch.onnx.export(dynamo=True) imports it",
    "torchmetrics": "Lightning imports it",
    "ipywidgets": "the wizard asks for it through `require`, by name",
}
FLOORS = [  # releases that must stay out, and why
    ("torch", "2.9.1", "CVE-2026-24747"),
    ("pytorch-lightning", "2.6.2", "malicious"),
    ("pytorch-lightning", "2.6.3", "malicious"),
    ("pytorch-lightning", "2.6.5", "CVE-2026-58659"),
    ("transformers", "5.4", "below the floor"),
    ("onnx", "1.20.1", "CVE-2026-27489"),
    ("jinja2", "3.1.5", "CVE-2025-27516"),
]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared(*extras: str) -> dict[str, SpecifierSet]:
    """Name → versions of the base dependencies and of `extras`."""
    table = project()["project"]
    lines = table["dependencies"] + [line for extra in extras for line in table["optional-dependencies"][extra]]
    return {normalised(item.name): item.specifier for item in map(Requirement, lines)}


def all_extras() -> list[str]:
    return list(project()["project"]["optional-dependencies"])


def lines_of(name: str) -> list[Requirement]:
    """The requirements of a requirements file."""
    lines = ((ROOT / name).read_text(encoding="utf-8")).splitlines()
    return [Requirement(line.split(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]


def pins_of(name: str) -> dict[str, list[str]]:
    """Name → pinned versions (one for each marker)."""
    pins: dict[str, list[str]] = {}
    for item in lines_of(name):
        (only,) = item.specifier
        assert only.operator == "==", f"{name}: {item} is no exact pin"
        pins.setdefault(normalised(item.name), []).append(only.version)
    return pins


@pytest.mark.parametrize(("package", "version", "why"), FLOORS)
def test_floors_exclude_known_bad_releases(package: str, version: str, why: str) -> None:
    places = {"pyproject.toml": declared(*all_extras()).get(package)}
    in_colab = {normalised(item.name): item.specifier for item in lines_of("requirements-training.txt")}
    if package in in_colab:
        places["requirements-training.txt"] = in_colab[package]
    assert places["pyproject.toml"] is not None
    for place, allowed in places.items():
        assert version not in allowed, f"{place} allows {package} {version}: {why}"


def test_local_pins_satisfy_what_the_project_declares() -> None:
    pins = pins_of("requirements.txt")
    for package, allowed in declared(*all_extras()).items():
        assert package in pins, f"requirements.txt lacks {package}: run `make lock`"
        assert all(version in allowed for version in pins[package]), (
            f"{package}{allowed} excludes the pin {pins[package]}"
        )


def test_local_pins_hold_one_torch_and_leave_its_cuda_packages_to_it() -> None:
    pins = pins_of("requirements.txt")
    assert pins["torch"] == ["2.13.0"]
    assert not [name for name in pins if re.match(r"(nvidia|cuda|triton)\b", name)]


def test_every_declared_dependency_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = [f'"{item}' for item in (*declared(*all_extras()),)]
    for line in text.splitlines():
        if any(line.strip().startswith(name) for name in named):
            assert re.search(r"# \S+ \S+", line), f"no reason: {line}"
    for line in (ROOT / "requirements-training.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or "  # " in line, f"no reason: {line}"


def test_colab_ships_everything_that_the_validation_path_needs() -> None:
    colab = pins_of("requirements-colab.txt")
    for package, allowed in declared().items():
        assert package in colab, f"template.ipynb would need {package}, which Colab does not ship"
        assert colab[package][0] in allowed, f"Colab's {package} {colab[package][0]} is outside {allowed}"


def test_colab_and_the_training_requirements_make_up_the_training_search_and_export_extras() -> None:
    colab, added = (
        pins_of("requirements-colab.txt"),
        {normalised(i.name): i for i in lines_of("requirements-training.txt")},
    )
    for package, allowed in declared("training", "search", "export").items():
        if package in added:
            assert _within(added[package].specifier, allowed), (
                f"{package}: {added[package].specifier} against {allowed}"
            )
        else:
            assert package in colab and colab[package][0] in allowed, f"Colab lacks {package}{allowed}"


def test_training_requirements_name_nothing_that_colab_ships() -> None:
    assert not {normalised(i.name) for i in lines_of("requirements-training.txt")} & set(
        pins_of("requirements-colab.txt")
    )


@pytest.mark.parametrize(
    ("package", "ranges"),
    [  # the ranges for which pip's resolver was shown to change nothing in Colab's images since August 2025
        ("pytorch-lightning", ">=2.6.6,<2.7"),
        ("torchmetrics", ">=1.8.2,<1.10"),
        ("optuna", ">=5.0,<6"),
        ("onnx", ">=1.21,<1.22"),
        ("onnxruntime", ">=1.23.0,<1.32"),
        ("onnxscript", ">=0.6.0,<0.8"),
    ],
)
def test_training_requirements_keep_the_proven_ranges(package: str, ranges: str) -> None:
    found = {item.name: item.specifier for item in lines_of("requirements-training.txt")}
    assert found[package] == SpecifierSet(ranges)


def test_imports_and_declarations_agree() -> None:
    declared_names, imported = set(declared(*all_extras())), {}
    for file in _python_files():
        for module in _imported_modules(file):
            name = DISTRIBUTIONS.get(module, normalised(module))
            if name:
                imported.setdefault(name, file.relative_to(ROOT))
    missing = {
        name: str(file) for name, file in imported.items() if name not in declared_names | {"ipython", "traitlets"}
    }
    assert not missing, f"imported, but not in pyproject.toml: {missing}"
    unused = declared_names - set(imported) - set(ON_PURPOSE)
    assert not unused, f"in pyproject.toml, but nothing imports it: {unused}"


def test_one_address_of_the_repository() -> None:
    address = project()["project"]["urls"]["Repository"]
    for name in NOTEBOOKS:
        fields = re.findall(r'REPOSITORY = "([^"]+)"', "\n".join(_cells(name, "code")))
        assert fields == [address], f"{name} names {fields}"
    assert address == link_command.REPOSITORY


def test_root_holds_only_known_entries() -> None:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listing.stdout.splitlines()} <= ROOT_ENTRIES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_clean_forms(name: str) -> None:
    notebook = json.loads((ROOT / name).read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "colab"}
    previous = "none"
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"outputs left in: {source}"
            assert source.startswith("#@title "), f"no form: {source}"
            assert len(source.splitlines()) <= 10, f"logic belongs into the package: {source}"
            assert "globals()" not in source
            assert not re.search(r"(?m)^\s*(\w+\s*=\s*)?[!%]", source), f"shell magic: {source}"
            assert previous == "markdown", f"no heading before: {source}"
        previous = cell["cell_type"]


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{name}.md" for name in ("API", "TROUBLESHOOTING", "PLATFORM_RECOMMENDATIONS")),
    ],
)
def test_documents_point_at_files_that_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / file).parent.joinpath(target).exists(), f"{file} links to {target}"


def test_nothing_names_a_package_index_or_a_folder_of_one_machine() -> None:
    forbidden = re.compile(r"pypi\.org/simple|download\.pytorch\.org|/" + r"work/|/" + r"opt/|/" + r"root/")
    for file in _text_files():
        found = forbidden.search(file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(ROOT)} names {found[0] if found else ''}"


def test_package_holds_its_data_files(tmp_path: Path) -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]["*"]
    for file in (ROOT / "utils").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".py":
            assert any(file.match(pattern) for pattern in patterns), f"{file.relative_to(ROOT)} would not be installed"
    for folder in {file.parent for file in (ROOT / "utils").rglob("*.py") if "__pycache__" not in file.parts}:
        is_example = folder.parent == ROOT / "utils" / "examples"
        assert is_example or (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} would not be installed"


def environment_script() -> ModuleType:
    """.ci/environment.py, which the Makefile runs."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / ".ci" / "environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("requires", "count"),
    [
        (["filelock", "sympy>=1.13", 'optree>=0.13; extra == "optree"'], 0),
        (
            [
                'nvidia-cudnn-cu13==9.2; platform_system == "Linux"',
                "triton==3.7",
                "cuda-toolkit[cublas]==13.0",
                "jinja2",
            ],
            3,
        ),
    ],
)
def test_a_needless_cuda_build_is_noticed(requires: list[str], count: int) -> None:
    report = {"install": [{"metadata": {"name": "torch", "requires_dist": requires}}]}
    assert environment_script().count_cuda_packages(report) == count


def test_a_half_made_environment_does_not_work(tmp_path: Path) -> None:
    script = environment_script()
    assert not script.works(tmp_path / "absent")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(tmp_path / "gone")
    assert not script.works(tmp_path)


def test_makefile_marks_the_environment_last_and_names_the_needed_python() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "(3, 10)" in makefile and project()["project"]["requires-python"] == ">=3.10"
    script = (ROOT / ".ci" / "environment.py").read_text(encoding="utf-8")
    assert script.index("install(folder, requirements)") < script.index("mark.write_text")


def _within(inner: SpecifierSet, outer: SpecifierSet) -> bool:
    """Whether the lowest version that `inner` names lies within `outer`."""
    floor = next(item.version for item in inner if item.operator == ">=")
    return floor in outer


def _python_files() -> Iterator[Path]:
    for folder in ("utils", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            if "__pycache__" not in file.parts and "generated" not in file.parts:
                yield file


def _imported_modules(file: Path) -> set[str]:
    """Top-level names of third-party modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "require":
            found |= {arg.value.split(".")[0] for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    own = {"utils", "tests", "model"} | {
        path.stem for path in (ROOT / "tests").rglob("*") if path.is_dir() or path.suffix == ".py"
    }
    return {name for name in found if name not in sys.stdlib_module_names and name not in own}


def _text_files() -> Iterator[Path]:
    suffixes = {".py", ".md", ".txt", ".toml", ".ipynb", ".html", ".css", ".json", ".j2", ""}
    for entry in sorted(ROOT_ENTRIES):
        path = ROOT / entry
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and file.suffix in suffixes and "__pycache__" not in file.parts:
                yield file


def _cells(name: str, kind: str) -> list[str]:
    notebook = json.loads((ROOT / name).read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]
