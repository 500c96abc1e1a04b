"""The plan of a comparison on disk."""

import json

from transfer_learning.experiments.comparison.directory import ComparisonDir, Plan
from transfer_learning.recipes.known import RECIPES

PLAN = Plan(
    {"one": RECIPES["digits"]()}, (1e-3,), first_seed=4, num_seeds=2, target_accuracies=(0.5,), reasons=("why",)
)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    directory = ComparisonDir(tmp_path)
    directory.write_plan(PLAN)
    assert directory.read_plan() == PLAN


def test_a_plan_with_the_keys_of_version_0_1_is_read(tmp_path):
    directory = ComparisonDir(tmp_path)
    directory.write_plan(PLAN)
    values = json.loads(directory.plan.read_text())
    values["sides"], values["reach"] = values.pop("variants"), values.pop("target_accuracies")
    directory.plan.write_text(json.dumps(values))
    assert directory.read_plan() == PLAN
