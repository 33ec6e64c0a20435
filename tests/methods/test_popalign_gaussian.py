import json
import math

import pytest

from fairanon.cli import main
from tests.conftest import REPOSITORY


def run(folder, *words):
    """The shipped experiment, run as a user runs it."""
    (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "popalign_gaussian", "--trainer.enable_progress_bar", "false", *words]) == 0
    (path,) = (folder / "runs" / "popalign_gaussian").glob("2*/gaussian.json")
    assert (path.parent / "gaussian.png").stat().st_size > 10_000
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run(tmp_path_factory.mktemp("study"))


def test_its_beginning_goes_to_where_it_ends(tmp_path):
    """What `make test-all` sees whole, at a tenth of the steps."""
    found = run(tmp_path, "--trainer.max_steps", "300")
    reference = 1 / (1 + math.exp(-2))
    assert all(found[name]["share_of_g1"] < reference - 0.1 for name in ("beta 1", "beta 0.5", "sft"))
    assert found["target 20-80"]["share_of_g1"] < found["beta 1"]["share_of_g1"] < found["target 80-20"]["share_of_g1"]
    assert found["sft"]["weights"][1] < 0.05 and found["beta 1"]["weights"][1] > 0.14, "SFT forgets what nobody prefers"


def closed_form(beta, share):
    """Share of G1 at the optimum: p ~ p_ref (p_win / p_lose) ** (1 / beta) where the preference data lies."""
    rare = 1 / (1 + math.exp(2))  # the reference's G3 among G1 and G3
    odds = math.log((1 - rare) / rare) + (math.log(share / (1 - rare)) - math.log((1 - share) / rare)) / beta
    return 1 / (1 + math.exp(-odds))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beta 1", "beta 0.9", "beta 0.5", "target 80-20", "target 20-80"])
def test_popalign_reaches_its_closed_form(study, name):
    row = study[name]
    assert row["share_of_g1"] == pytest.approx(closed_form(row["beta"], row["share"]), abs=0.04)


@pytest.mark.slow
def test_popalign_balances_and_keeps_g2_while_sft_loses_it(study):
    assert study["beta 1"]["share_of_g1"] == pytest.approx(0.5, abs=0.03)
    assert study["sft"]["share_of_g1"] == pytest.approx(0.5, abs=0.01)
    assert study["beta 1"]["weights"][1] > 0.14 and study["sft"]["weights"][1] < 0.01  # the reference has 0.245
    assert all(abs(mean) < 0.5 for mean in [study["beta 1"]["means"][1]])


@pytest.mark.slow
def test_a_small_beta_overshoots_where_the_paper_says_it_balances(study):
    shares = [study[name]["share_of_g1"] for name in ("beta 0.1", "beta 0.5", "beta 0.9", "beta 1")]
    assert shares == sorted(shares)
    assert study["beta 0.5"]["share_of_g1"] < 0.2  # paper, section 4: balanced


@pytest.mark.slow
def test_alpha_below_one_half_diverges(study):
    assert study["alpha 0.25"]["weights"][1] > 0.7, "all mass flees to where the preference data is silent"
    assert study["alpha 0.75"]["weights"][1] < study["beta 0.5"]["weights"][1], "a stronger pull to the winners"
