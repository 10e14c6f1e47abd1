"""What can be imported, what importing costs, and what it needs.

The statements of people's notebooks are listed once. The last part holds the floors: nothing imports from above.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import utils
import utils.errors

DOCUMENTED = {  # module → names that people's notebooks import from it
    "utils": """UniversalModelAdapter ModelSignatureInspector ComputationalGraphExecutor AdaptiveTokenizer FastBPETrainer
        CharacterLevelTokenizer TokenizerValidator AdaptiveTokenizerDataModule DatasetLoader DatasetUploader
        CheckpointManager TrainingCoordinator ONNXExporter TorchScriptExporter ModelCardGenerator SetupWizard""",
    "utils.adapters.model_adapter": """UniversalModelAdapter ModelSignatureInspector ComputationalGraphExecutor
        FlashAttentionWrapper""",
    "utils.tokenization.data_module": "UniversalDataModule AdaptiveTokenizerDataModule",
    "utils.training.engine.trainer": "Trainer TrainingHooks DefaultHooks",
    "utils.training.engine.loop": "TrainingLoop ValidationLoop EpochResult",
    "utils.training.engine.checkpoint": "CheckpointManager CheckpointMetadata",
    "utils.training.engine.loss": "LossStrategy LossStrategyRegistry",
    "utils.training.engine.gradient_monitor": "GradientMonitor GradientHealth",
    "utils.training.engine.gradient_accumulator": "GradientAccumulator AccumulationStats",
    "utils.training.engine.data": "DataLoaderFactory UniversalDataModule",
    "utils.training.engine.metrics": "MetricsEngine DriftMetrics",
    "utils.training.training_config": "TrainingConfig TrainingConfigBuilder compare_configs",
    "utils.training.task_spec": "TaskSpec",
    "utils.training.seed_manager": "set_random_seed",
    "utils.training.metrics_tracker": "MetricsTracker",
    "utils.training.drift_metrics": "compute_dataset_profile compare_profiles",
    "utils.training.dashboard": "Dashboard",
    "utils.training.dataset_utilities": "DatasetLoader DatasetUploader",
    "utils.training.checkpoint_manager": "CheckpointManager",
    "utils.training.training_core": "TrainingCoordinator",
    "utils.training.export_utilities": "ONNXExporter TorchScriptExporter ModelCardGenerator create_export_bundle",
    "utils.ui.setup_wizard": "SetupWizard",
    "utils.test_functions": """test_shape_robustness test_gradient_flow test_output_stability test_parameter_initialization
        test_memory_footprint test_inference_speed run_all_tier1_tests test_attention_patterns test_attribution_analysis
        test_robustness test_fine_tuning test_hyperparameter_search test_benchmark_comparison""",
}
FLOORS = (  # from the ground up; a file may import from its own floor and from those below it
    (
        "utils.errors",
        "utils.decoding",
        "utils._extras",
        "utils._files",
        "utils._random",
        "utils._tables",
        "utils._pages",
        "utils.progress",
        "utils.colab_links",
    ),
    ("utils.loading", "utils.examples", "utils.testing"),
    ("utils.adapters",),
    (
        "utils.checks",
        "utils.tier1_critical_validation",
        "utils.tier2_advanced_analysis",
        "utils.tokenization",
    ),
    ("utils.training", "utils.tier3_training_utilities", "utils.test_functions"),
    ("utils.export",),
    ("utils.ui", "utils.notebook", "utils.install", "utils.__main__"),
)
HANDED_OVER = {  # documented exceptions: (file, what it imports from above)
    ("utils.loading.model_loader", "utils.adapters.model_adapter"),  # LoadedModel.completion asks the room above
    ("utils.tier1_critical_validation", "utils.export.dry_run"),  # tier 1 tries the exporters before the training
}
ABSENT_FROM_COLAB = (
    "pytorch_lightning",
    "lightning",
    "torchmetrics",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "wandb",
)
VALIDATION_PATH = (  # modules and packages that template.ipynb reaches
    *("utils.errors", "utils._extras", "utils._tables", "utils.examples", "utils.notebook", "utils.install"),
    *("utils.loading", "utils.adapters.model_adapter", "utils.adapters", "utils.checks"),
    *("utils.tier1_critical_validation", "utils.tier2_advanced_analysis", "utils.test_functions"),
)
NEEDS_LIGHTNING = {"utils.adapters.lightning_adapter"}  # reached only through the name UniversalModelAdapter
BLOCKER = """
import importlib.util, sys
blocked, find_spec = {blocked!r}, importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in blocked else find_spec(name, package)
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError("No module named " + repr(name) + " (blocked by the test)", name=name)
sys.meta_path.insert(0, Block())
"""


def documented() -> list[tuple[str, str]]:
    return [(module, name) for module, names in DOCUMENTED.items() for name in names.split()]


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter."""
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)


def test_import_utils_is_light() -> None:
    done = run("import utils", "-X", "importtime")
    assert done.returncode == 0, done.stderr
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "utils" in loaded
    assert not loaded & {"torch", "pandas", "numpy", "rich", "pytorch_lightning", "transformers"}


def test_exports_are_those_that_are_offered() -> None:
    done = run(
        "import utils; print(*[n for n in utils.__all__ if getattr(utils, n, None) is None]); print(*dir(utils))"
    )
    assert done.returncode == 0, done.stderr
    broken, visible = done.stdout.splitlines()
    assert not broken.split()
    assert set(utils.__all__) <= set(visible.split())
    assert len(utils.__all__) == len(set(utils.__all__))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'load_modle'; it offers .*load_model"):
        _ = utils.load_modle


@pytest.mark.parametrize(("module", "name"), documented())
def test_documented_imports_work(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


def test_one_name_is_one_object() -> None:
    homes: dict[str, object] = {}
    for module, name in documented():
        found = getattr(importlib.import_module(module), name)
        assert homes.setdefault(name, found) is found, f"{name} means two things"


def test_validation_path_needs_only_what_colab_ships() -> None:
    names = sorted({name for root in VALIDATION_PATH for name in _modules_below(root)} - NEEDS_LIGHTNING)
    lines = [BLOCKER.format(blocked=set(ABSENT_FROM_COLAB)), "import importlib", f"for name in {names!r}:"]
    done = run("\n".join([*lines, "    importlib.import_module(name)"]))
    assert done.returncode == 0, done.stderr
    assert len(names) > 15, "the walk through the packages found too little"


def test_the_blocker_blocks() -> None:
    done = run(BLOCKER.format(blocked={"json"}) + "import json")
    assert "blocked by the test" in done.stderr


@pytest.mark.slow
def test_validation_runs_without_the_training_packages() -> None:
    code = BLOCKER.format(blocked=set(ABSENT_FROM_COLAB)) + (
        "import utils, utils.examples\n"
        "report = utils.validate(utils.adapt(utils.load_model(utils.examples.path())), tier=1)\n"
        "print(report.verdict)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "checks passed" in done.stdout, done.stdout


def test_the_lightning_adapter_says_which_package_it_lacks() -> None:
    code = BLOCKER.format(blocked={"pytorch_lightning"}) + "from utils import UniversalModelAdapter"
    assert "pytorch_lightning" in run(code).stderr


def test_every_file_stands_on_a_floor() -> None:
    homeless = [name for name in _own_files() if name != "utils" and _floor(name) is None]
    assert not homeless, f"FLOORS does not say where these belong: {homeless}"


def test_nothing_imports_from_above() -> None:
    upwards = {
        (name, target)
        for name, file in _own_files().items()
        for target in _imports_of(file)
        if name != "utils" and (_floor(target) or 0) > (_floor(name) or 0)
    }
    assert upwards == HANDED_OVER, f"upwards: {sorted(upwards - HANDED_OVER)}; no longer: {HANDED_OVER - upwards}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import utils.ui.demo", {"utils.ui.demo"}),
        ("def f():\n    from utils.training import seed_manager", {"utils.training.seed_manager"}),
        ("from utils import export", {"utils.export"}),
        ("from utils import train", {"utils.training.training_core"}),
        ("from utils.errors import ConfigError", {"utils.errors"}),
        ("if TYPE_CHECKING:\n    from utils.ui.demo import Walk", set()),
        ("import utils\nutils.train(x)", {"utils.training.training_core"}),
    ],
)
def test_the_imports_of_a_file_are_seen(tmp_path: Path, code: str, expected: set[str]) -> None:
    (tmp_path / "file.py").write_text(code, "utf-8")
    assert _imports_of(tmp_path / "file.py") == expected


@functools.cache
def _own_files() -> dict[str, Path]:
    """Module name → file, for every file of the package that we wrote; bundled models are not ours."""
    root = Path(utils.__file__).parent
    files = (path for path in root.rglob("*.py") if path.parent.parent != root / "examples")
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in files
    }


def _floor(module: str) -> int | None:
    """Number of the floor on which a module stands; None for `utils` itself, which hands on and stands nowhere."""
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return number
    return None


def _imports_of(file: Path) -> set[str]:
    """Our modules that a file imports, inside functions too. What only a type checker imports binds nothing."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {_meant(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "utils":
            found.add(_meant("utils", node.attr))
    return {name for name in found if name.startswith("utils.")}


def _meant(module: str, name: str) -> str:
    """The module behind `from module import name`."""
    if module == "utils" and name in utils._HOMES:
        return utils._HOMES[name]
    below = f"{module}.{name}"
    return below if module.split(".")[0] == "utils" and below in _own_files() else module


def _modules_below(root: str) -> list[str]:
    """`root` and, where it is a package, every module below it; bundled models and generated code are not ours."""
    module = importlib.import_module(root)
    found = [root]
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), prefix=f"{root}."):
        if not info.name.startswith(("utils.examples.", "utils.loading.generated.")):
            found.append(info.name)
    return found
