"""Evaluate a finished run again: ``python -m transfer_learning.evaluate RUN_DIR --split val|test``."""

import json
import sys
from collections.abc import Sequence

from transfer_learning.command_line import Parser, quiet_start, run_main
from transfer_learning.config import RunConfig
from transfer_learning.errors import UserError
from transfer_learning.files import write_text
from transfer_learning.run_dir import existing_run_dir


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m transfer_learning.evaluate", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a directory that `run` made")
    parser.add_argument("--split", default="test", metavar="SPLIT", help="val or test (default: test)")
    flags = parser.parse_args(arguments)
    if flags.split not in ("val", "test"):
        raise UserError(f"--split {flags.split} is unknown; val or test was expected.")
    run_dir = existing_run_dir(flags.run_dir)
    config = RunConfig.from_json(run_dir.config.read_text(encoding="utf-8"), str(run_dir.config))

    with quiet_start():
        from transfer_learning.datasets.manifest import fingerprint
        from transfer_learning.devices import set_up_devices
        from transfer_learning.experiment import evaluate_split, load_data
        from transfer_learning.models.classifier import load_model

    set_up_devices(config.precision, config.seed, say=lambda sentence: None)
    classifier = load_model(config, run_dir.model)
    data = load_data(config)
    if fingerprint(data.manifest) != json.loads(run_dir.environment.read_text())["dataset"]["fingerprint"]:
        raise UserError(
            f"The images, labels or splits of {config.dataset} are not those that {run_dir.path} was trained on; "
            "restore them, or use predict on the new ones."
        )
    if not len(data.split(flags.split)):
        raise UserError(f"{config.dataset} has no {flags.split} images; evaluate another --split.")
    with run_dir.locked():
        evaluation = evaluate_split(config, classifier, data, flags.split, run_dir)
        evaluation["weights_sha256"] = classifier.weights_sha256
        write_text(run_dir.evaluation_of(flags.split), json.dumps(evaluation, indent=2) + "\n")
    low, high = evaluation["accuracy_interval"]
    print(
        f"{flags.split} accuracy {evaluation['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, "
        f"n = {evaluation['num_examples']:,}), macro F1 {evaluation['macro_f1']:.3f}\n"
        f"Results: {run_dir.evaluation_of(flags.split)} and {run_dir.predictions(flags.split)}"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
