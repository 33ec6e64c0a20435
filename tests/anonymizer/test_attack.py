"""Who is recognized is not anonymized; thresholds and coverage against closed forms."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from fairanon.anonymizer.attack import (
    Attacker,
    Threshold,
    aligned,
    covered,
    embed_at,
    has_a_say,
    threshold_of,
    verdict_of,
)
from fairanon.anonymizer.calibrate import thresholds_of
from fairanon.anonymizer.faces import Face, Picture, Seen
from fairanon.anonymizer.find import Finder, turned
from fairanon.anonymizer.folder import Job
from fairanon.anonymizer.hide import Classical, region
from fairanon.anonymizer.manifest import Outcome
from fairanon.anonymizer.photos import Photo, read_photo
from fairanon.anonymizer.picture import Choices, Treatment
from fairanon.anonymizer.restore import restorations
from fairanon.anonymizer.sources import collect
from fairanon.cli import main
from fairanon.evaluators import TinyDetector, TinyEmbedder
from fairanon.files import read_json, write_json
from fairanon.imaging import Square, write_image
from fairanon.metrics.functional.verification import distances
from fairanon.protocols import Detections
from fairanon.redaction import redact
from tests.anonymizer import photographs
from tests.anonymizer.scenes import scene


class Colour:
    """Recognizes people by the mean colour of their faces."""

    name, licence, size, published, metric = "colour", "none", 8, 10.0, "euclidean"

    def __init__(self, blind=False):
        self.blind = blind

    def align(self, image, box):
        x0, y0, x1, y1 = box.tolist()
        return None if self.blind else Square((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2)

    def embed_aligned(self, cuts):
        return cuts.float().mean((2, 3))


class Nobody:
    name, kinds, licence, any_scale = "nobody", ("face",), "none", True

    def detect(self, pixels):
        return [{"face": Detections(torch.empty(0, 4), torch.empty(0))} for _ in pixels]


def attacked(result, matcher=None, method="blur", colour=(200, 40, 40), found=True, strength=None):
    """The verdict of one red face on black after it became something else."""
    matcher = matcher or Colour()
    original = torch.zeros(3, 40, 40, dtype=torch.uint8)
    original[:, 10:30, 10:30] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    face = Face((10.0, 10.0, 30.0, 30.0), 0.9, found=found, method=method, strength=strength)
    attacker = Attacker([matcher], {matcher.name: threshold_of(matcher)}, Nobody())
    attacker.meet(Picture("it", Photo(original, "PNG", False, {}), [face]))
    new = original.clone()
    new[:, 10:30, 10:30] = torch.tensor(result, dtype=torch.uint8).view(3, 1, 1)
    attacker.judge(face, new)
    return face


def test_the_distance_to_the_source_decides():
    assert attacked((200, 45, 40)).verdict == "recognized"
    far = attacked((40, 200, 40))
    assert far.verdict == "obscured" and far.distances["colour"] == pytest.approx(160 * math.sqrt(2), rel=1e-3)
    at = attacked((200, 50, 40))
    assert at.verdict == "recognized", "at the threshold it is no proof"


def test_who_cannot_be_embedded_is_no_success_unless_a_mask_covers_the_box():
    assert attacked((40, 200, 40), Colour(blind=True)).verdict == "cannot be judged"
    assert attacked((127, 127, 127), Colour(blind=True), "mask").verdict == "covered"
    assert attacked((40, 200, 40), Colour(blind=True), "mask").verdict == "cannot be judged", "that is no mask"
    for strength, verdict in ((0.99, "cannot be judged"), (1.0, "obscured")):
        face = attacked((40, 200, 40), Colour(blind=True), strength=strength)
        assert face.verdict == verdict and not face.testable, "at full strength there is nothing stronger"
    assert attacked((40, 200, 40), Colour(blind=True), "id2face", strength=1.0).verdict == "cannot be judged"
    assert attacked((40, 200, 40)).testable


def test_a_face_that_looks_like_nothing_to_a_recognizer_is_not_judged_by_it():
    grey = attacked((127, 127, 127), method="mask", colour=(125, 128, 126))
    assert grey.verdict == "covered" and grey.distances == {}
    assert attacked((90, 90, 90), colour=(125, 128, 126)).verdict == "cannot be judged"


def test_a_mask_through_which_a_recognizer_sees_somebody_fails():
    matcher = Colour()
    matcher.align = lambda image, box: Square(20.0, 20.0, 40.0)  # hair and clothes, too
    matcher.published = 60.0
    assert attacked((127, 127, 127), matcher, "mask", colour=(255, 127, 127)).verdict == "recognized"


def test_coverage_is_the_share_of_the_box():
    face, pixels = Face((10.0, 10.0, 30.0, 30.0), 1.0), torch.zeros(3, 40, 40, dtype=torch.uint8)
    pixels[:, 10:30, 10:25] = 127
    assert covered(face, pixels) == 0.75
    pixels[:, 0:40, 0:40] = 120
    assert covered(face, pixels) == 1.0
    assert covered(Face((-20.0, -20.0, 0.4, 0.4), 1.0), pixels) == 1.0


def test_a_recognizer_that_takes_an_original_for_an_empty_image_has_no_say():
    face = Face((0, 0, 1, 1), 1.0, seen={"colour": Seen(Square(0, 0, 1), torch.zeros(3), empty=4.0)})
    face.distances = {"colour": 2.0}
    assert verdict_of(face, {"colour": Threshold(3.0, "")}) == "recognized"
    assert verdict_of(face, {"colour": Threshold(5.0, "")}) == "cannot be judged"
    face.covered = 1.0
    assert verdict_of(face, {"colour": Threshold(5.0, "")}) == "covered"


def test_the_strictest_threshold_counts_and_says_where_it_is_from(tmp_path):
    assert threshold_of(Colour()) == Threshold(10.0, "published by its authors, not calibrated")
    row = {"value": 3.0, "false_match_rate": 1e-3, "people": 200, "pairs": 19900, "missing": 0}
    write_json(
        tmp_path / "t.json", {"colour": {**row, "groups": {"a": {**row, "value": 14.0}, "b": {**row, "value": 12.0}}}}
    )
    found = threshold_of(Colour(), [tmp_path / "t.json"])
    assert found == Threshold(14.0, "calibrated at a false-match rate of 0.001 on 200 people", empty=10.0)
    assert has_a_say(Seen(Square(0, 0, 1), torch.zeros(1), 12.0), found), "a high threshold does not end the attack"
    write_json(tmp_path / "low.json", {"colour": {**row, "value": 6.0, "groups": {}}})
    assert threshold_of(Colour(), [tmp_path / "low.json"]).origin.endswith("on 200 people, below the usual 10")
    unknown = Colour()
    unknown.published = None
    with pytest.raises(ValueError, match="no threshold of colour is known; `fairanon calibrate FOLDER"):
        threshold_of(unknown)
    assert "calibrated" in threshold_of(TinyEmbedder("embedder_a")).origin


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), 4.9, float("inf"), "x", None])
def test_a_threshold_that_calls_everybody_somebody_else_is_refused(tmp_path, value):
    row = {"value": value, "false_match_rate": 1e-3, "people": 200, "pairs": 19900, "missing": 0, "groups": {}}
    write_json(tmp_path / "t.json", {"colour": row})
    with pytest.raises(ValueError, match=r"--thresholds: t\.json (has .* for colour|is no table)"):
        threshold_of(Colour(), [tmp_path / "t.json"])


class Corner(Colour):
    """Recognizes a face by its upper left and lower right quarter, and aligns to its box."""

    def align(self, image, box):
        x0, y0, x1, y1 = box.tolist()
        return Square((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0)

    def embed_aligned(self, cuts):
        return torch.cat([cuts[..., :4, :4].float().mean((2, 3)), cuts[..., 4:, 4:].float().mean((2, 3))], 1)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_who_lies_is_recognized_lying(quarters):
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 10:20, 20:30] = torch.tensor([200, 40, 40]).view(3, 1, 1)
    matcher, box = Corner(), torch.tensor([20.0, 10, 40, 30])
    upright = embed_at(matcher, matcher.align(image, box), image)
    lying = image.rot90(-quarters, (1, 2))
    where = turned(box[None], 60, 80, -quarters % 4)[0]
    square = aligned(matcher, lying, where, quarters)
    assert (embed_at(matcher, square, lying) - upright).abs().max() <= 2


def test_a_box_of_ones_own_that_shows_nobody_is_covered_at_best():
    face = attacked((127, 127, 127), method="mask")
    assert face.verdict == "anonymized"
    assert attacked((127, 127, 127), method="mask", found=False).verdict == "covered"
    assert attacked((40, 200, 40), method="id2face", found=False).verdict == "cannot be judged"


@pytest.mark.parametrize(("kind", "strength"), [("pixelate", 0.2), ("blur", 0.15)])
def test_a_restoration_comes_nearer_to_the_original(kind, strength):
    pixels = torch.from_numpy(np.array(photographs.astronaut().crop((165, 45, 285, 189)))).permute(2, 0, 1)
    hidden = redact(pixels[None], torch.ones(1, 1, *pixels.shape[-2:], dtype=torch.bool), kind, strength)[0]

    def error(image):
        inside = (image.float() - pixels.float())[:, 12:-12, 12:-12]
        return float(inside.square().mean())

    found = list(restorations(hidden, kind, strength))
    assert len(found) == (2 if kind == "pixelate" else 3) and all(one.shape == pixels.shape for one in found)
    assert min(map(error, found)) < 0.8 * error(hidden)


@pytest.mark.parametrize(("limit", "verdict"), [(9.7, "recognized"), (9.0, "obscured")])
def test_a_face_that_is_nearly_recognized_is_also_shown_moved(limit, verdict):
    """Its distance is 10 where it was, and less where a square shows some of what lies round it, in the original's colour."""

    class Fine(Colour):
        size = 64

    hidden = torch.full((3, 64, 64), 10, dtype=torch.uint8)
    hidden[:, :, 52:] = 0
    attacker = Attacker([Fine()], {"colour": Threshold(math.sqrt(3) * limit, "test")}, Nobody())
    face = Face((12, 12, 52, 52), 1.0, method="pixelate", strength=0.1, region=(12, 12, 52, 52))
    face.seen["colour"] = Seen(Square(32, 32, 40), torch.zeros(3), 1000.0)
    attacker.judge(face, hidden)
    share = face.distances["colour"] / (math.sqrt(3) * 10)
    assert share < 0.95 if verdict == "recognized" else share > 0.97
    assert face.verdict == verdict


class Counting(Colour):
    def __init__(self):
        super().__init__()
        self.shown = 0

    def embed_aligned(self, cuts):
        self.shown += 1
        return super().embed_aligned(cuts)


class Everywhere(Nobody):
    def detect(self, pixels):
        height, width = pixels.shape[-2:]
        return [{"face": Detections(torch.tensor([[0.0, 0, width, height]]), torch.ones(1))} for _ in pixels]


def pixelated_face(matcher, distance, detector=None, threshold=50.0, usual=None):
    """A face at this distance from its original, and who attacks it."""
    face = Face((40, 40, 80, 80), 1.0, method="pixelate", strength=0.1, region=(40, 40, 80, 80))
    face.seen["colour"] = Seen(Square(60, 60, 40), torch.zeros(3), 1000.0)
    hidden = torch.full((3, 200, 200), round(distance / math.sqrt(3)), dtype=torch.uint8)
    attacker = Attacker([matcher], {"colour": Threshold(threshold, "test")}, detector or Nobody(), usual)
    return face, hidden, attacker


@pytest.mark.parametrize(("distance", "shown"), [(30, 1), (100, 1 + 2 * 2), (53, 1 + 2 * 2 + 2 * 5)])
def test_who_is_recognized_is_attacked_no_further(distance, shown):
    matcher = Counting()
    face, hidden, attacker = pixelated_face(matcher, distance)
    before = matcher.shown
    attacker.judge(face, hidden)
    assert matcher.shown - before == shown
    assert face.verdict == ("recognized" if distance < 50 else "obscured")


@pytest.mark.parametrize(
    ("distance", "usual", "shown"),
    [(30, {"colour": 50}, 15), (53, {"colour": 50}, 15), (100, {"colour": 50}, 5), (100, {}, 15)],
)
def test_who_measures_distances_attacks_to_the_end_whatever_the_threshold(distance, usual, shown):
    """`evaluate` learns the threshold after it has looked, and its distances must not depend on it."""
    told = []
    for threshold in (50.0, -1.0):
        matcher = Counting()
        face, hidden, attacker = pixelated_face(matcher, distance, threshold=threshold, usual=usual)
        before = matcher.shown
        attacker.judge(face, hidden)
        assert matcher.shown - before == shown
        told.append(face.distances)
    assert told[0] == told[1]


@pytest.mark.parametrize(("scale", "attacked"), [(1, False), (6, True)])
def test_all_of_what_was_hidden_belongs_to_what_is_looked_at(scale, attacked):
    """A blur is undone from all of its pixels, also those beyond the square that a detector searches."""
    matcher = Counting()
    face, hidden, attacker = pixelated_face(matcher, 100)
    face.region = region(face.box, scale, 200, 200)
    attacker.judge(face, hidden)
    once, changed = matcher.shown, hidden.clone()
    changed[0, 60, 160] ^= 1
    attacker.judge(face, changed)
    assert (matcher.shown > once) == attacked


def test_a_face_whose_surroundings_are_the_same_again_is_not_attacked_again():
    matcher = Counting()
    face, hidden, attacker = pixelated_face(matcher, 100)
    attacker.judge(face, hidden)
    once, found = matcher.shown, dict(face.distances)
    elsewhere = hidden.clone()
    elsewhere[:, :, 141:] = 255  # the attack looks at 160 pixels round the middle, as the detector does
    face.paint = object()
    attacker.judge(face, elsewhere)
    assert matcher.shown == once and face.distances == found and face.paint is None
    face.given_up = True
    attacker.judge(face, elsewhere)
    assert matcher.shown == once and face.verdict == "found among all"
    face.given_up = False
    for y, x in ((60, 60), (0, 60), (139, 60), (60, 139)):
        near = hidden.clone()
        near[0, y, x] ^= 1
        attacker.judge(face, near)
        assert matcher.shown > once, (y, x)
        once = matcher.shown
    face.strength = 0.2
    attacker.judge(face, near)
    assert matcher.shown > once, "another strength is undone in another way"


def test_a_face_that_is_found_again_is_attacked_whatever_is_the_same():
    matcher = Counting()
    face, hidden, attacker = pixelated_face(matcher, 100, Everywhere())
    attacker.judge(face, hidden)
    once = matcher.shown
    attacker.judge(face, hidden)
    assert face.found_again and matcher.shown == 2 * (once - 1) + 1  # one empty image at first


def test_remembering_an_attack_changes_no_result(tmp_path, monkeypatch):
    for number in range(6):
        write_image(scene(number, 3, columns=5, rows=3), tmp_path / "in" / f"{number}.png")
    judges = ["--detector", "tiny_detector", "--recognizer", "tiny_embedder_b"]
    attacks = []
    attack = Attacker._attack
    monkeypatch.setattr(Attacker, "_attack", lambda *given: (attacks.append(1), attack(*given)))
    told, counts = [], []
    for out in (tmp_path / "remembered", tmp_path / "anew"):
        main(["anonymize", str(tmp_path / "in"), str(out), "--method", "pixelate", "--strength", "0.4", *judges])
        told.append([{**json.loads(line), "seconds": 0} for line in (out / "manifest.jsonl").read_text().splitlines()])
        told[-1].append({path.name: path.read_bytes() for path in out.rglob("*.png")})
        counts.append(len(attacks))
        monkeypatch.setattr("fairanon.anonymizer.attack._looked_at", lambda *given: object())
    assert told[0] == told[1] and len(told[0]) > 12
    assert counts[0] < counts[1] - counts[0], "some were hidden anew beside others that stayed"


def test_calibration_finds_the_rate_that_it_promises():
    people = [(str(k), scene(k, 1, seed=50, columns=1, rows=1), "even" if k % 2 else "odd") for k in range(150)]
    matcher = TinyEmbedder("embedder_b")
    found = thresholds_of(people, Finder([TinyDetector()]), [matcher], 1e-2)[matcher.name]
    assert found["people"] == 150 and found["pairs"] == 150 * 149 / 2 and found["missing"] == 0
    boxes = [TinyDetector().detect(image[None])[0]["face"].boxes[0] for _, image, _ in people]
    rows = torch.cat(
        [
            matcher.embed_aligned(matcher.align(i, b).crop(i, 64)[None])
            for (_, i, _), b in zip(people, boxes, strict=True)
        ]
    )
    apart = distances(rows, rows, matcher.metric)[tuple(torch.triu_indices(150, 150, 1))]
    assert float((apart <= found["value"] + 5e-5).float().mean()) == pytest.approx(1e-2, abs=2e-4)
    assert set(found["groups"]) == {"even", "odd"} and found["groups"]["odd"]["people"] == 75
    with pytest.raises(ValueError, match="20 people make 190 pairs, too few"):
        thresholds_of(people[:20], Finder([TinyDetector()]), [matcher], 1e-3)


@pytest.mark.slow
def test_the_packaged_thresholds_are_those_of_the_packaged_judges():
    from fairanon.embedded import embedded

    table = read_json(embedded("judges", "thresholds.json"), "judges")
    matcher = TinyEmbedder("embedder_b")
    people = [(str(k), scene(k, 1, seed=60, columns=1, rows=1), None) for k in range(150)]
    found = thresholds_of(people, Finder([TinyDetector()]), [matcher], 1e-3)[matcher.name]
    assert found["value"] == pytest.approx(table[matcher.name]["value"], rel=0.35), "on other people"


def test_hidden_boxes_are_whole_pixels_inside_the_picture():
    assert region((10, 20, 30, 60), 1.0, 100, 100) == (10, 20, 30, 60)
    assert region((10, 20, 30, 60), 2.0, 100, 100) == (0, 0, 40, 80)
    assert region((-9, -9, -5, -5), 1.4, 100, 100) == (0, 0, 1, 1)
    assert region((0, 0, 400, 400), 1.4, 100, 90) == (0, 0, 90, 100)


@pytest.mark.parametrize("kind", ["mask", "pixelate", "blur"])
def test_classical_methods_change_their_box_alone_and_get_stronger(kind):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 400, 600), generator=generator).to(torch.uint8)
    face = Face((200.0, 100.0, 500.0, 390.0), 1.0)
    picture = Picture("it", Photo(pixels, "PNG", False, {}), [face])
    hider, detail = Classical(kind, strength=0.1, box_scale=1.0), []
    for attempt in range(4):
        face.attempt = attempt
        result = hider.apply(picture)
        x0, y0, x1, y1 = face.region
        outside = torch.ones(400, 600, dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        assert torch.equal(result[:, outside], pixels[:, outside])
        detail.append(float(result[:, 150:350, 250:450].float().std()))
    assert face.method == "mask" and detail[-1] == 0, "the last time nothing is left"
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(detail))


@pytest.mark.parametrize("words", [{"colour": (0, 0, 0)}, {"colour": (0, 0, 0), "shape": "ellipse"}])
def test_what_was_painted_is_known_again_after_a_kill(tmp_path, words):
    pixels = torch.randint(60, 200, (3, 90, 90), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_image(pixels, tmp_path / "in" / "a.png")
    source = collect([tmp_path / "in" / "a.png"])
    (item,) = source.items
    hider = Classical("mask", **words)
    attacker = Attacker([Colour(blind=True)], {"colour": Threshold(10.0, "")}, Nobody())
    treatment = Treatment(hider, Finder([Nobody()], 64, tiles=False), attacker, Choices())
    block = Job(source, tmp_path / "out", treatment, {}).block(0, source.items)
    one = Picture(item.name, read_photo(item.read(), item.name), [Face((30.0, 30.0, 60.0, 60.0), 1.0, found=False)])
    attacker.meet(one)
    result = hider.apply(one)
    attacker.judge(one.faces[0], result)
    assert one.faces[0].verdict == "covered" and one.faces[0].paint is None, "nothing is kept of it"
    write_image(result, block.waiting(item.name))
    face = one.faces[0]
    outcome = Outcome(
        item.name, "covered", "finished", "", [face.record()], [face.memory()], mark=treatment.mark(item.read())
    )
    (again,) = block._recall(item, outcome)
    assert again.verdict == "covered" and again.covered == 1.0
    write_image(pixels, block.waiting(item.name))
    (again,) = block._recall(item, outcome)
    assert again.verdict == "cannot be judged", "the file that waits is looked at, not what was said of it"
