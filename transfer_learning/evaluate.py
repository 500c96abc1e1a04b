"""Evaluate a finished run again: ``python -m transfer_learning.evaluate RUN_DIR --split val|test``."""

import sys
from collections.abc import Sequence

from transfer_learning.command_line import Parser, quiet_start, run_main
from transfer_learning.errors import UserError
from transfer_learning.files import read_json, write_json
from transfer_learning.run_dir import evaluated_run_dir


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m transfer_learning.evaluate", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a directory that `run` made")
    parser.add_argument("--split", default="test", metavar="SPLIT", help="val or test (default: test)")
    flags = parser.parse_args(arguments)
    if flags.split not in ("val", "test"):
        raise UserError(f"--split {flags.split} is unknown; val or test was expected.")
    run_dir = evaluated_run_dir(flags.run_dir)
    config = run_dir.read_config()
    environment, recorded = read_json(run_dir.environment), read_json(run_dir.evaluation)

    with quiet_start():
        from transfer_learning.datasets.data import load_data
        from transfer_learning.datasets.manifest import fingerprint
        from transfer_learning.devices import set_up_devices
        from transfer_learning.evaluation import metrics
        from transfer_learning.experiment import evaluate_split
        from transfer_learning.models.classifier import load_model

    set_up_devices(config.precision, config.seed, say=lambda sentence: None, begun_with=environment["device"])
    classifier = load_model(config, run_dir.model, recorded["weights_sha256"])
    data = load_data(config)
    if fingerprint(data.manifest) != environment["dataset"]["fingerprint"]:
        raise UserError(
            f"The images, labels or splits of {config.dataset} are not those that {run_dir.path} was trained on; "
            "restore them, or use predict on the new ones."
        )
    if not len(data.split(flags.split)):
        raise UserError(f"{config.dataset} has no {flags.split} images; evaluate another --split.")
    with run_dir.locked():
        evaluation = evaluate_split(classifier, data, flags.split, run_dir)
        write_json(run_dir.evaluation_of(flags.split), evaluation | {"weights_sha256": classifier.weights_sha256})
    print(
        f"{metrics.in_words(evaluation)}\n"
        f"Results: {run_dir.evaluation_of(flags.split)} and {run_dir.predictions(flags.split)}"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
