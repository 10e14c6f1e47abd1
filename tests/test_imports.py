"""What can be imported, what importing costs, and what it needs.

The statements of people's notebooks are listed once. Those of later issues are listed again with their number, and must
not exist yet: whoever builds one takes it off the list.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys

import pytest

import utils

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
LATER = {  # (module, names) → the issue that brings them
    ("utils", "FastBPETrainer TokenizerValidator"): 4,
    ("utils", "AdaptiveTokenizer CharacterLevelTokenizer AdaptiveTokenizerDataModule DatasetLoader DatasetUploader"): 4,
    ("utils", "CheckpointManager TrainingCoordinator"): 5,
    ("utils", "TorchScriptExporter ModelCardGenerator"): 6,
    ("utils", "SetupWizard"): 8,
    ("utils.adapters.model_adapter", "FlashAttentionWrapper"): 3,
    ("utils.tokenization.data_module", "UniversalDataModule AdaptiveTokenizerDataModule"): 4,
    ("utils.training.engine.trainer", "TrainingHooks DefaultHooks"): 5,
    ("utils.training.engine.checkpoint", "CheckpointManager"): 5,
    ("utils.training.engine.loss", "LossStrategy LossStrategyRegistry"): 5,
    ("utils.training.engine.gradient_monitor", "GradientMonitor GradientHealth"): 5,
    ("utils.training.engine.gradient_accumulator", "GradientAccumulator AccumulationStats"): 5,
    ("utils.training.engine.data", "UniversalDataModule"): 4,
    ("utils.training.engine.metrics", "MetricsEngine DriftMetrics"): 5,
    ("utils.training.training_config", "TrainingConfigBuilder compare_configs"): 5,
    ("utils.training.task_spec", "TaskSpec"): 5,
    ("utils.training.metrics_tracker", "MetricsTracker"): 5,
    ("utils.training.drift_metrics", "compute_dataset_profile compare_profiles"): 5,
    ("utils.training.dashboard", "Dashboard"): 5,
    ("utils.training.dataset_utilities", "DatasetLoader DatasetUploader"): 4,
    ("utils.training.checkpoint_manager", "CheckpointManager"): 5,
    ("utils.training.training_core", "TrainingCoordinator"): 5,
    ("utils.training.export_utilities", "ONNXExporter TorchScriptExporter ModelCardGenerator create_export_bundle"): 6,
    ("utils.ui.setup_wizard", "SetupWizard"): 8,
    ("utils.test_functions", "test_attention_patterns test_attribution_analysis test_robustness"): 7,
    ("utils.test_functions", "test_fine_tuning test_hyperparameter_search test_benchmark_comparison"): 9,
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
    *("utils.tier1_critical_validation", "utils.test_functions"),
)
NEEDS_LIGHTNING = {"utils.adapters.lightning_adapter"}  # reached only through the name UniversalModelAdapter
BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name) + " (blocked by the test)", name=name)
sys.meta_path.insert(0, Block())
"""


def later() -> dict[tuple[str, str], int]:
    """(module, name) → issue."""
    return {(module, name): issue for (module, names), issue in LATER.items() for name in names.split()}


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


@pytest.mark.parametrize(("module", "name"), [pair for pair in documented() if pair not in later()])
def test_documented_imports_work(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize(("module", "name", "issue"), [(*pair, issue) for pair, issue in later().items()])
def test_later_imports_are_not_there_yet(module: str, name: str, issue: int) -> None:
    assert (module, name) in documented()
    found = _offered(module, name)
    assert found is None, f"{module}.{name} exists: take it off LATER (it was planned for issue {issue})"


def test_one_name_is_one_object() -> None:
    pairs = [pair for pair in documented() if pair not in later()]
    homes: dict[str, object] = {}
    for module, name in pairs:
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


def _modules_below(root: str) -> list[str]:
    """`root` and, where it is a package, every module below it; bundled models and generated code are not ours."""
    module = importlib.import_module(root)
    found = [root]
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), prefix=f"{root}."):
        if not info.name.startswith(("utils.examples.", "utils.loading.generated.")):
            found.append(info.name)
    return found


def _offered(module: str, name: str) -> object:
    """`module.name`, or None where the module or the name is not there."""
    if not all(_exists(".".join(module.split(".")[:depth])) for depth in range(1, module.count(".") + 2)):
        return None
    return getattr(importlib.import_module(module), name, None)


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
