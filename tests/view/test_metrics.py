from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from purestate.errors import MetricError
from purestate.view import plot_lr_vs_loss, plot_metrics

ROOT = Path(__file__).parents[2]
HISTORY = {
    "epoch": [1, 2, 3, 4],
    "train_loss": [1.0, 0.8, 0.6, 0.5],
    "val_loss": [1.1, None, 0.7, 0.9],
    "train_accuracy": [0.2, 0.4, 0.6, 0.7],
    "val_accuracy": [0.1, None, 0.5, 0.6],
    "lr": [0.1, 0.1, 0.01, 0.01],
    "seconds": [1.0, 1.0, 1.0, 1.0],
    "op": [0, 0, 1, 1],
    "best": [True, False, False, True],
    "log": ["Epoch 1/4: ..."],
}


def lines(axes):
    """Return the labelled lines of a chart as ``{label: (xs, ys)}``."""
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    return {label: points for label, points in found.items() if not label.startswith("_")}


def boundaries(axes):
    return [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts() if text.get_text()]


def test_a_chart_a_metric_and_one_for_the_learning_rate():
    figure = plot_metrics([HISTORY])
    assert isinstance(figure, Figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "learning rate"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "epoch"]


def test_train_and_val_are_together_and_missing_values_left_out():
    loss, accuracy, _ = plot_metrics([HISTORY], ["adam"]).axes
    assert lines(loss) == {
        "adam train_loss": ([1, 2, 3, 4], [1.0, 0.8, 0.6, 0.5]),
        "adam val_loss": ([1, 3, 4], [1.1, 0.7, 0.9]),
        "adam best": ([1, 4], [1.1, 0.9]),
    }
    assert lines(accuracy)["adam val_accuracy"] == ([1, 3, 4], [0.1, 0.5, 0.6])


def test_training_is_dashed():
    train, val, *_ = plot_metrics([HISTORY]).axes[0].lines
    assert (train.get_linestyle(), val.get_linestyle()) == ("--", "-")


def test_a_thin_line_where_another_train_call_begins():
    assert [boundaries(axes) for axes in plot_metrics([HISTORY]).axes] == [[2.5], [2.5], [2.5]]
    without = {name: column for name, column in HISTORY.items() if name != "op"}
    assert [boundaries(axes) for axes in plot_metrics([without]).axes] == [[], [], []]


def test_the_evaluation_before_a_call_stands_at_the_end_of_the_one_before():
    history = {"epoch": [0, 1, 1, 2], "op": [0, 0, 1, 1], "train_loss": [None, 1.0, None, 0.5], "val_loss": [2.0, 1.1, 1.1, 0.9]}
    axes = plot_metrics([history]).axes[0]
    assert boundaries(axes) == [1.0]
    assert lines(axes)["0 train_loss"] == ([1, 2], [1.0, 0.5])
    assert lines(axes)["0 val_loss"] == ([0, 1, 1, 2], [2.0, 1.1, 1.1, 0.9])


def test_without_a_best_column_the_lowest_loss_is_marked_and_the_legend_says_so():
    figure = plot_metrics([{name: column for name, column in HISTORY.items() if name != "best"}])
    assert lines(figure.axes[0])["0 best"] == ([3], [0.7])
    assert lines(figure.axes[1])["0 best"] == ([3], [0.5])
    assert legend(figure) == ["training", "validation", "lowest val_loss: 3"]
    assert legend(plot_metrics([HISTORY])) == ["training", "validation", "best epoch: 1, 4"]


def test_without_validation_the_training_loss_is_marked():
    figure = plot_metrics([{"epoch": [1, 2, 3], "train_loss": [1.0, float("nan"), 0.5]}])
    assert legend(figure) == ["training", "lowest train_loss: 3"]
    assert lines(figure.axes[0])["0 best"] == ([3], [0.5])


def test_a_loss_that_is_nowhere_a_number_marks_nothing():
    assert legend(plot_metrics([{"epoch": [1], "val_loss": [float("nan")]}])) == ["validation"]


def test_several_histories_have_a_colour_each():
    figure = plot_metrics([HISTORY, {**HISTORY, "epoch": [1, 2, 3, 5]}], ["adam", "sgd"])
    colours = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert colours["adam train_loss"] == colours["adam val_loss"] != colours["sgd train_loss"] == colours["sgd val_loss"]
    assert sorted(legend(figure)) == ["adam", "best epoch", "sgd", "training", "validation"]
    assert lines(figure.axes[0])["sgd best"] == ([1, 5], [1.1, 0.9])


def test_a_metric_that_only_one_history_has():
    other = {"epoch": [1, 2], "val_loss": [1.0, 2.0], "val_top_5": [0.1, 0.2]}
    figure = plot_metrics([HISTORY, other])
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "top 5", "learning rate"]
    assert list(lines(figure.axes[2])) == ["1 val_top_5", "1 best"]


def test_learning_rates_of_several_groups_are_a_line_each():
    history = {"epoch": [1, 2], "val_loss": [1.0, 0.9], "lr": [[0.1, 0.01], [0.05, 0.005]]}
    axes = plot_metrics([history]).axes[-1]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.05], [0.01, 0.005]]
    assert axes.get_yscale() == "log"


def test_a_learning_rate_that_hardly_changes_is_on_a_linear_axis():
    axes = plot_metrics([{"epoch": [1, 2], "val_loss": [1.0, 0.9], "lr": [0.0005, 0.0004]}]).axes[-1]
    assert axes.get_yscale() == "linear"
    assert axes.yaxis.get_major_formatter()(0.0005) == "0.0005"


def test_a_single_epoch_can_be_seen():
    (line,) = [line for line in plot_metrics([{"epoch": [1], "train_loss": [0.5]}]).axes[0].lines if "train" in line.get_label()]
    assert line.get_marker() == "o"


@pytest.mark.parametrize(
    ("histories", "labels", "message"),
    [
        ([], None, r"^plot_metrics expects a sequence of histories, got list of 0\."),
        (HISTORY, None, r"^plot_metrics expects a sequence of histories, got dict of 10\.\nplot_metrics\(\[history\]\)$"),
        ([HISTORY], ["a", "b"], r"^plot_metrics expects a label for each history, got 2 labels for 1\.$"),
        ([{"val_loss": [1.0]}], None, r"^history 0 has no column 'epoch', only \['val_loss'\]\.$"),
        ([HISTORY, {"epoch": [2, 1], "val_loss": [1.0, 2.0]}], None, r"^history 1: column 'epoch' goes from 2 to 1"),
        ([{"epoch": [1, 2], "val_loss": [1.0]}], None, r"^history 0: column 'val_loss' has 1 entries for 2 epochs\.$"),
        ([{"epoch": [1], "lr": [0.1]}], None, r"^plot_metrics expects a column that starts with 'train_' or 'val_'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(histories, labels, message):
    with pytest.raises(MetricError, match=message):
        plot_metrics(histories, labels)


def test_histories_are_not_changed():
    before = {name: list(column) for name, column in HISTORY.items()}
    plot_metrics([HISTORY])
    assert before == HISTORY


RATES, LOSSES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.5, 1.0, 1.2, 50.0]


def test_loss_over_rate_is_on_a_logarithmic_axis_with_the_suggestion():
    (axes,) = plot_lr_vs_loss(RATES, LOSSES, suggestion=1e-3).axes
    loss, suggestion = axes.lines
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "learning rate", "loss")
    assert (list(loss.get_xdata()), list(loss.get_ydata())) == (RATES, LOSSES)
    assert list(suggestion.get_xdata()) == [1e-3, 1e-3]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["suggestion: 0.001"]


def test_start_and_end_are_rates():
    (axes,) = plot_lr_vs_loss(RATES, LOSSES, suggestion=1.0, start=1e-3, end=1e-1).axes
    (loss,) = axes.lines  # the suggestion lies outside
    assert list(loss.get_xdata()) == RATES[1:4]


def test_a_loss_that_runs_away_is_cut_off():
    (axes,) = plot_lr_vs_loss(RATES, LOSSES).axes
    assert axes.get_ylim()[1] == 2.5
    (axes,) = plot_lr_vs_loss(RATES[:4], LOSSES[:4]).axes
    assert 2.0 < axes.get_ylim()[1] < 2.1
    plot_lr_vs_loss(RATES, [float("nan")] * 5)


def test_arrays_are_taken_as_well():
    (axes,) = plot_lr_vs_loss(np.array(RATES), np.array(LOSSES), start=1e-3).axes
    assert list(axes.lines[0].get_ydata()) == LOSSES[1:]


def test_what_has_no_points_is_refused():
    with pytest.raises(MetricError, match=r"^plot_lr_vs_loss expects a loss for each rate, got 2 rates and 1 losses\.$"):
        plot_lr_vs_loss([0.1, 0.2], [1.0])
    with pytest.raises(MetricError, match=r"^plot_lr_vs_loss has none of 5 rates between 2 and 1\.0\.$"):
        plot_lr_vs_loss(RATES, LOSSES, start=2)
    with pytest.raises(MetricError, match=r"none of 0 rates"):
        plot_lr_vs_loss([], [])


@pytest.mark.parametrize("figure", [plot_metrics([HISTORY, HISTORY]), plot_lr_vs_loss(RATES, LOSSES)])
def test_a_picture_is_written_and_shown(figure, tmp_path):
    figure.savefig(tmp_path / "chart.png", dpi=50)
    picture = matplotlib.image.imread(tmp_path / "chart.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20  # not an empty page
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_no_pyplot_no_window_and_matplotlib_only_with_the_first_chart():
    code = """
import sys
from purestate.view import plot_metrics, text_table
assert "matplotlib" not in sys.modules
figure = plot_metrics([{"epoch": [1, 2], "train_loss": [1.0, 0.5]}])
figure._repr_png_()
print(sorted(name for name in sys.modules if name.startswith(("matplotlib.pyplot", "tkinter", "PyQt", "PySide"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
