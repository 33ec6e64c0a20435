"""A plan is said at once, and each part again with its time."""

from fairanon.progress import Plan, progress


def test_a_plan_is_said_at_once_and_each_part_when_it_is_over(capsys):
    plan = Plan({"draw": "draw images", "train": "train 3 steps"})
    assert capsys.readouterr().out.splitlines() == ["  1/2 draw images", "  2/2 train 3 steps"]
    plan.begin("draw")
    plan.begin("unknown")
    plan.begin("train")
    plan.begin("")
    said = capsys.readouterr().out.splitlines()
    assert said == ["1/2 draw images ...", "1/2 draw images: 0:00", "2/2 train 3 steps ...", "2/2 train 3 steps: 0:00"]


def test_of_one_part_and_without_progress_nothing_is_said(capsys):
    Plan({"train": "train"}).begin("train")
    with progress(False):
        Plan({"draw": "draw images", "train": "train 3 steps"}).begin("draw")
    assert capsys.readouterr().out == ""
