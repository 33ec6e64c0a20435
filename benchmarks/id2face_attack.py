"""Attackers of ID2Face who know more than a recognizer: one has the ID-VAE, one compares pixels.

    python benchmarks/id2face_attack.py [--count 2000] [--negated]

With the weights that come along. The first looks for originals at right angles to each result in the latent space, where orthogonal
mapping puts every new identity; beside it the same attacker looking for similar latents. The second looks for the photograph whose
pixels are nearest to a result's, outside of what was drawn and inside, and for another photograph of the same person in the same way.
With ``--negated`` new identities are the sources' own with the opposite sign, and one attacker more negates again.
Chance is 1 / count for top-1 and .5 for the mean place in the gallery.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data_modules.synthetic_faces import PeopleToAnonymize
from fairanon.evaluators import PointRendParser, TinyGeometry
from fairanon.methods import ID2Face
from fairanon.methods.load import load_run
from fairanon.metrics import IdentityRetrieval
from fairanon.metrics.functional.estimates import Estimate
from fairanon.networks import NegatedIdentity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--negated", action="store_true")
    arguments = parser.parse_args()
    rows = PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=arguments.count, attacked=0, draws=0).rows()
    method = load_run("runs/id2face_tiny/latest")
    assert isinstance(method, ID2Face)
    attackers: dict[str, float | None] = {"similar": None, "at right angles": 0.0}
    if arguments.negated:
        method.mapping = NegatedIdentity()
        attackers["opposite"] = -1.0
    probes, gallery, results, changed = [], [], [], []
    with method.pipeline() as pipeline:
        for first in tqdm(range(0, len(rows), 64), desc="anonymizing", unit="batch"):
            part = rows[first : first + 64]
            image, mask, marks = (
                torch.stack([getattr(row, name) for row in part]) for name in ("image", "mask", "landmarks")
            )
            keys = [(0, first + k) for k in range(len(part))]
            drawn = pipeline(image, mask, marks, keys, num_inference_steps=12)
            results.append(drawn)
            changed.append(pipeline.changed(mask, marks))
            probes.append(F.normalize(pipeline.latents_of(drawn), dim=1))
            gallery.append(F.normalize(pipeline.latents_of(image), dim=1))
    for name, expected in attackers.items():
        metric = IdentityRetrieval(false_match_rates=(), expected=expected)
        metric.update(torch.cat(probes), torch.cat(gallery), torch.arange(len(rows)))
        estimates = metric.estimates()
        selected = {key: estimates[key] for key in ("top1", "top5", "place")}
        print(
            name,
            {
                key: estimate and [round(end, 4) for end in (estimate.value, estimate.low, estimate.high)]
                for key, estimate in selected.items()
            },
        )
    images, others = (torch.stack([getattr(row, name) for row in rows]) for name in ("image", "reference"))
    drawn, drawn_anew = torch.cat(results), torch.cat(changed)
    for where, seen in (("outside of what was drawn", ~drawn_anew), ("inside", drawn_anew)):
        for what, photographs in (("the same photograph", images), ("another one of the person", others)):
            share = Estimate.share(int(nearest(drawn, photographs, seen).sum()), len(rows))
            print(f"pixels {where}, {what}: top1 {share.value:.4f} [{share.low:.4f}, {share.high:.4f}]")


def nearest(drawn: Tensor, photographs: Tensor, seen: Tensor) -> Tensor:
    """Whether each result's nearest photograph is its own, by the pixels that are seen: bool (N,).

    Args:
        drawn: uint8 (N, 3, H, W), results.
        photographs: uint8 (N, 3, H, W).
        seen: bool (N, 1, H, W), of each result.
    """
    weights = seen.expand_as(drawn).flatten(1).double()
    own, known = ((pixels.double()).flatten(1) for pixels in (drawn, photographs))
    apart = weights @ known.square().T - 2 * (weights * own) @ known.T  # less what is the same for all photographs
    return apart.argmin(1) == torch.arange(len(drawn))


if __name__ == "__main__":
    main()
