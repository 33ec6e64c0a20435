"""How a face's box is best handed to dlib's points: distances to the embedding that dlib's own detector leads to.

Seven faces of two real photographs, CenterFace's boxes as `fairanon anonymize` finds them, each also moved and stretched by
4 % of its sides. A distance of .6 is another person.

python benchmarks/alignment.py [--json]
"""

from __future__ import annotations

import argparse
import json

import dlib
import insightface.data
import numpy as np
import skimage.data
import torch
from tqdm import tqdm

from fairanon.anonymizer.find import Finder
from fairanon.evaluators.dlib_centerface import CenterFaceDetector, DlibEmbedder
from fairanon.imaging import Square, to_array

MOVES = 8


class Whole(DlibEmbedder):
    """With the box as it is."""

    def align(self, image: torch.Tensor, box: torch.Tensor) -> Square | None:
        """See `FaceMatcher`."""
        place = dlib.rectangle(*map(round, box.tolist()))
        chip = dlib.get_face_chip_details(self.points(to_array(image), place), self.size, 0.25)
        middle = chip.rect.dcenter()
        return Square(middle.x + 0.5, middle.y + 0.5, chip.rect.width(), float(np.degrees(chip.angle)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    detector, theirs = CenterFaceDetector(), dlib.get_frontal_face_detector()
    ways: dict[str, DlibEmbedder] = {
        "the square in its middle": DlibEmbedder(detector),
        "the box as it is": Whole(detector),
    }
    pictures = [np.ascontiguousarray(insightface.data.get_image("t1")[:, :, ::-1]), skimage.data.astronaut()]
    distances: dict[str, list[float]] = {way: [] for way in ways}
    generator = np.random.default_rng(0)
    for array in pictures:
        image = torch.from_numpy(array.copy()).permute(2, 0, 1)
        boxes = Finder([detector]).find(image).boxes
        for face in tqdm(theirs(array, 1), desc="faces", unit="face"):
            own = torch.tensor([face.left(), face.top(), face.right(), face.bottom()]).float()
            x, y = (own[:2] + own[2:]) / 2
            near = [b for b in boxes if b[0] < x < b[2] and b[1] < y < b[3]]
            for k in range(MOVES if near else 0):
                sides = (near[0][2:] - near[0][:2]).repeat(2)
                box = near[0] + (sides * torch.from_numpy(generator.normal(0, 0.04, 4)).float() if k else 0)
                wanted = embedding(ways["the box as it is"], image, own)
                for way, matcher in ways.items():
                    distances[way].append(float((embedding(matcher, image, box) - wanted).norm()))
    for way, rows in distances.items():
        row = {
            "dlib's points in": way, "boxes": len(rows), "mean": round(float(np.mean(rows)), 3), "largest": round(max(rows), 3),
            "above .3": sum(value > 0.3 for value in rows), "above .6": sum(value > 0.6 for value in rows),
        }  # fmt: skip
        print(json.dumps(row) if arguments.json else ", ".join(f"{key}: {value}" for key, value in row.items()))


def embedding(matcher: DlibEmbedder, image: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Of the face in a box (4,)."""
    square = matcher.align(image, box)
    assert square is not None
    return matcher.embed_aligned(square.crop(image, matcher.size)[None])[0]


if __name__ == "__main__":
    main()
