"""What a phase came to: its best epoch, and where its time went."""

import errno
from contextlib import suppress

import pandas as pd
import pytest

from tests.support.fault_injection import around_calls
from transfer_learning.training.history import add_timing, describe_phase, phase_results


def history(*val_losses, phase="frozen", start=1):
    figures = {"loss": 1.0, "accuracy": 0.5, "val_accuracy": 0.5}
    return [
        {"phase": phase, "epoch": number, **figures, "val_loss": value}
        for number, value in enumerate(val_losses, start)
    ]


def test_the_average_time_of_an_epoch_is_apart_from_what_is_computed_once(tmp_path):
    rows = [*history(3.0, 1.0, 2.0), *history(0.5, phase="fine_tune", start=4)]
    for epoch, (phase, seconds) in enumerate(
        [("frozen", 2.0), ("frozen", 1.0), ("frozen", 3.0), ("fine_tune", 9.0)], 1
    ):
        timing = {"seconds": seconds, "images_per_second": 10.0, "checkpoint_seconds": 0.25}
        add_timing(tmp_path / "timings.csv", {"phase": phase, "epoch": epoch, **timing})
        if epoch == 2:  # repeated after a kill: only the last row counts
            add_timing(tmp_path / "timings.csv", {"phase": phase, "epoch": epoch, **timing, "seconds": 4.0})
    results = phase_results(
        rows, tmp_path / "timings.csv", "val_loss", {"decode": 1.0, "frozen": 70.0, "fine_tune": 8.0}
    )
    frozen, fine_tune = results["frozen"], results["fine_tune"]
    assert (frozen["epochs"], frozen["best_epoch"], frozen["val_loss"]) == (3, 2, 1.0)
    assert (frozen["seconds"], frozen["epoch_seconds"], frozen["preparation_seconds"]) == (9.0, 3.0, 61.0)
    assert fine_tune["preparation_seconds"] == 0.0, "a killed session records no time"
    assert describe_phase("frozen", frozen) == (
        "Phase frozen: 3 epochs of 3.0 s on average, after 1:01 min of preparation (cached activations, compiling)."
    )
    assert describe_phase("fine_tune", fine_tune).startswith(
        "Phase fine_tune: 1 epoch of 9.0 s, after 0.0 s of preparation"
    )


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_row_that_cannot_be_written_takes_no_other_with_it(num_before, tmp_path):
    """From each call on that changes a file, all fail, as on a full disk; the next epoch still adds its row."""
    timing = {"phase": "frozen", "seconds": 2.0, "images_per_second": 1.0, "checkpoint_seconds": 0.0}
    for at in range(1, 100):
        path = tmp_path / f"{at}.csv"
        for epoch in range(num_before):
            add_timing(path, {"epoch": epoch, **timing})

        def fail(call, is_done, at=at):
            if call >= at and not is_done:
                raise OSError(errno.ENOSPC, "No space left on device")

        with around_calls(fail) as names, suppress(OSError):
            add_timing(path, {"epoch": 1, **timing})
        add_timing(path, {"epoch": 2, **timing})
        epochs = pd.read_csv(path)["epoch"].tolist()
        assert [epoch for epoch in epochs if epoch != 1] == [*range(num_before), 2], names[-1]
        if len(names) < at:
            break
    assert at > 1


@pytest.mark.parametrize("seconds", [{}, {"frozen": None}])
def test_times_that_nobody_wrote_down_are_left_out(seconds, tmp_path):
    (result,) = phase_results(history(1.0), tmp_path / "timings.csv", "val_loss", seconds).values()
    assert "seconds" not in result and describe_phase("frozen", result) == "Phase frozen: 1 epoch."
    timing = {"phase": "frozen", "epoch": 1, "seconds": 2.0, "images_per_second": 1.0, "checkpoint_seconds": 0.0}
    pd.DataFrame([timing]).to_csv(tmp_path / "timings.csv", index=False)
    (result,) = phase_results(history(1.0), tmp_path / "timings.csv", "val_loss", seconds).values()
    assert result["preparation_seconds"] == 0.0
