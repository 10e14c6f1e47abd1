"""The walk of `train` for a run that is made again: it stops before the first step where anything differs from the old run."""

from __future__ import annotations

from utils.errors import TrainingError
from utils.training.engine.plan import Plan
from utils.training.engine.trainer import Trainer
from utils.training.fingerprint import model_identity
from utils.training.run_folder import RunFolder, differences, run_fingerprint
from utils.training.run_manifest import Recipe
from utils.training.training_core import TrainingCoordinator


class RecreatingTrainer(Trainer):
    """A trainer that holds what it is given against a recipe."""

    recipe: Recipe

    def _setup_run(self, plan: Plan) -> RunFolder:
        now = run_fingerprint(model_identity(self.adapted), plan.fingerprint, self.settings, plan.total_steps)
        changed = differences(self.recipe.fingerprint, now)
        if changed:
            listed = "\n".join(f"- {text}" for text in changed)
            raise TrainingError(
                f"The run {self.recipe.folder.name!r} cannot be re-created, since something is not as it was:\n{listed}\n"
                "Weights that were not fresh when the run began, or fresh ones of another seed, come with model= or seed=."
            )
        return super()._setup_run(plan)


class RecreatingCoordinator(TrainingCoordinator):
    """Finds data and tokenizer as `train` does, and trains with a `RecreatingTrainer`."""

    recipe: Recipe

    def _kind(self) -> type[Trainer]:
        recipe = self.recipe

        class Recreating(RecreatingTrainer):
            pass

        Recreating.recipe = recipe
        return Recreating
