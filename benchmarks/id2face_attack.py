"""An attacker with the recognizer and the ID-VAE, who looks for originals at right angles to each result in the latent space.

    python benchmarks/id2face_attack.py [--count 2000]

Orthogonal mapping puts every new identity there. With the weights that come along; beside it the same attacker looking for
similar latents. Chance is 1 / count for top-1 and .5 for the mean place in the gallery.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F
from tqdm import tqdm

from data_modules.synthetic_faces import PeopleToAnonymize
from fairanon.evaluators import PointRendParser, TinyGeometry
from fairanon.methods import ID2Face
from fairanon.methods.load import load_run
from fairanon.metrics import IdentityRetrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    given = parser.parse_args()
    rows = PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=given.count, attacked=0, draws=0).rows()
    method = load_run("runs/id2face_tiny/latest")
    assert isinstance(method, ID2Face)
    probes, gallery = [], []
    with method.pipeline() as pipeline:
        for first in tqdm(range(0, len(rows), 64), desc="anonymizing", unit="batch"):
            part = rows[first : first + 64]
            fields = [torch.stack([getattr(row, name) for row in part]) for name in ("image", "mask", "landmarks")]
            keys = [(0, first + k) for k in range(len(part))]
            drawn = pipeline(*fields, keys, num_inference_steps=12)
            probes.append(F.normalize(pipeline.latents_of(drawn), dim=1))
            gallery.append(F.normalize(pipeline.latents_of(fields[0]), dim=1))
    for name, expected in (("similar", None), ("at right angles", 0.0)):
        metric = IdentityRetrieval(false_match_rates=(), expected=expected)
        metric.update(torch.cat(probes), torch.cat(gallery), torch.arange(len(rows)))
        found = metric.compute()
        said = {key: found[key] for key in ("top1", "top5", "place")}
        print(
            name, {key: value and [round(value[k], 4) for k in ("value", "low", "high")] for key, value in said.items()}
        )


if __name__ == "__main__":
    main()
