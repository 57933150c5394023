"""Learning curves from records as runs write them."""

import math

import pytest

from sdjax.report import curves


def record(step, phase="joint", split="train", **numbers):
    return {"step": step, "epoch": 0, "phase": phase, "split": split, **numbers}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_phases_follow_each_other_where_each_counts_from_the_start():
    history = [record(s, "pretrain", loss=1) for s in (10, 20)]
    history += [record(s, "probe", loss=1) for s in (10, 20)]
    assert [r["step"] for r in curves.timeline(history)] == [10, 20, 30, 40]


def test_phases_that_count_on_stay_where_they_are():
    history = [record(s, "pretrain", loss=1) for s in (10, 20)]
    history += [record(s, "probe", loss=1) for s in (20, 30)]
    assert [r["step"] for r in curves.timeline(history)] == [10, 20, 20, 30]


def test_records_that_a_resumed_run_repeats_count_once_and_the_later_values_hold():
    history = [record(10, loss=1.0), record(20, loss=2.0, bce=4.0), {"event": "resumed"}]
    history += [record(20, loss=3.0), record(30, loss=5.0)]
    merged = curves.timeline(history)
    assert [(r["step"], r["loss"]) for r in merged] == [(10, 1.0), (20, 3.0), (30, 5.0)]
    assert merged[1]["bce"] == 4.0


def test_each_phase_has_a_panel_and_a_sum_of_losses_one_for_each_part():
    history = [record(s, loss=3, contrastive=2, bce=1) for s in range(5)]
    assert titles(curves.learning_curves(history)) == [
        *("joint: total loss", "joint: contrastive loss", "joint: bce loss"),
    ]
    history = [record(s, "pretrain", loss=2, contrastive=2) for s in range(5)]
    history += [record(s, "probe", loss=1, bce=1) for s in range(5, 9)]
    history += [record(8, "probe", "validation", mAP=0.5, micro_f1=0.4)]
    assert titles(curves.learning_curves(history)) == [
        *("pretrain: contrastive loss", "probe: bce loss", "validation (probe)"),
    ]


def test_panels_show_the_values():
    history = [record(s, loss=1 / (s + 1)) for s in range(5)]
    history += [record(s, split="validation", mAP=m) for s, m in [(2, 0.3), (3, 0.6), (4, 0.5)]]
    loss, validation = curves.learning_curves(history).axes
    assert loss.lines[0].get_xydata().tolist() == [[s, 1 / (s + 1)] for s in range(5)]
    assert validation.lines[0].get_ydata().tolist() == [0.3, 0.6, 0.5]
    assert validation.lines[1].get_label() == "best mAP 0.600 (step 3)"


def marked_steps(figure):
    lines = [line for line in figure.axes[-1].lines if line.get_label() == "tested"]
    return [list(line.get_xdata()) for line in lines]


def test_the_tested_step_is_marked_where_it_is_known():
    history = [record(s, split="validation", mAP=m) for s, m in [(2, 0.3), (3, 0.6), (4, 0.5)]]
    assert marked_steps(curves.learning_curves(history, 4)) == [[4, 4]]
    assert marked_steps(curves.learning_curves(history)) == []
    curves.learning_curves([record(1, loss=1.0)], 1)  # no validation panel to mark it in


def test_the_tested_step_is_one_of_the_last_phase():
    history = [record(s, "pretrain", loss=1) for s in (10, 20)]
    history += [record(s, "probe", "validation", mAP=0.5) for s in (10, 20)]
    assert marked_steps(curves.learning_curves(history, 10)) == [[30, 30]]


def test_many_values_are_smoothed_without_moving():
    history = [record(s, loss=float(s)) for s in range(200)]
    raw, smooth = curves.learning_curves(history).axes[0].lines
    assert len(raw.get_xdata()) == 200
    # The centred mean of a straight line is the line.
    assert smooth.get_ydata() == pytest.approx(smooth.get_xdata())
    assert len(smooth.get_xdata()) < 200


def test_phases_with_validation_are_named():
    history = [record(s, p, "validation", mAP=0.5) for s, p in [(1, "a"), (2, "a"), (3, "b")]]
    (axes,) = curves.learning_curves(history).axes
    assert [text.get_text() for text in axes.texts] == ["a", "b"]


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"event": "start"}],
        [record(1, learning_rate=0.1)],
        [record(1, loss=math.nan), record(2, loss=None), record(3, loss="much")],
    ],
)
def test_nothing_to_show(history):
    assert curves.learning_curves(history) is None


def test_values_that_are_not_finite_are_left_out():
    history = [record(1, loss=1.0), record(2, loss=math.inf), record(3, loss=2.0)]
    (axes,) = curves.learning_curves(history).axes
    assert axes.lines[0].get_xdata().tolist() == [1, 3]
