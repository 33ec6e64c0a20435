"""Attackers of ID2Face who know more than a recognizer: one has the ID-VAE, one compares pixels.

    python benchmarks/id2face_attack.py [--count 2000] [--save FILE]

With the weights that come along. The first looks for originals at right angles to each result in the latent space, where orthogonal
mapping puts every new identity; beside it one who looks for similar latents, and one who negates each result's latent and looks for
similar ones. All three also attack results whose identities are the sources' own, negated. The last looks for the photograph whose
pixels are nearest to a result's, outside of what was drawn and inside, and for another photograph of the same person in the same way.
Chance is 1 / count for top-1 and .5 for the mean place in the gallery.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data_modules.synthetic_faces import PeopleToAnonymize
from fairanon.assets.world_version import world_version
from fairanon.batches import PromptRow
from fairanon.config.runs import versions
from fairanon.evaluators import PointRendParser, TinyGeometry
from fairanon.files import write_json
from fairanon.methods import ID2Face
from fairanon.methods.load import load_run
from fairanon.metrics import IdentityRetrieval
from fairanon.metrics.functional.estimates import Estimate, as_json
from fairanon.networks import NegatedIdentity, OrthogonalIdentityMapping

ATTACKERS: dict[str, float | None] = {"similar": None, "at right angles": 0.0, "negating": -1.0}
"""The similarity that each expects of a result's latent and its original's; None is as much as possible."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--save", type=Path, help="a JSON file for the numbers")
    arguments = parser.parse_args()
    rows = PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=arguments.count, attacked=0, draws=0).rows()
    method = load_run("runs/id2face_tiny/latest")
    assert isinstance(method, ID2Face) and isinstance(method.mapping, OrthogonalIdentityMapping)
    found = {}
    for name, mapping in (("orthogonal", method.mapping), ("negated", NegatedIdentity())):
        method.mapping = mapping
        found[name] = attack(method, rows, name)
    for name, estimates in found.items():
        for key, estimate in estimates.items():
            ends = "" if estimate.low is None else f" [{estimate.low:.4f}, {estimate.high:.4f}]"
            print(f"{name} identities, {key}: {estimate.value:.4f}{ends}")
    if arguments.save is not None:
        metrics = {name: as_json(estimates) for name, estimates in found.items()}
        command = f"python benchmarks/id2face_attack.py --count {len(rows)}"
        kept = {"command": command, "world": world_version(), "versions": versions(), "count": len(rows)}
        write_json(arguments.save, kept | {"metrics": metrics})


def attack(method: ID2Face, rows: Sequence[PromptRow], name: str) -> dict[str, Estimate]:
    """What each attacker finds among some people who were anonymized: "top1/similar", "place/similar", "top1/pixels inside/photograph", ..."""
    images, others = (torch.stack([getattr(row, what) for row in rows]) for what in ("image", "reference"))
    probes, gallery, results, changed = [], [], [], []
    with method.pipeline() as pipeline:
        for first in tqdm(range(0, len(rows), 64), desc=f"anonymizing, {name}", unit="batch"):
            part = rows[first : first + 64]
            image, mask, marks = (
                torch.stack([getattr(row, what) for row in part]) for what in ("image", "mask", "landmarks")
            )
            keys = [(0, first + k) for k in range(len(part))]
            drawn = pipeline(image, mask, marks, keys, num_inference_steps=12)
            results.append(drawn)
            changed.append(pipeline.changed(mask, marks))
            probes.append(F.normalize(pipeline.latents_of(drawn), dim=1))
            gallery.append(F.normalize(pipeline.latents_of(image), dim=1))
    estimates: dict[str, Estimate] = {}
    for attacker, expected in ATTACKERS.items():
        metric = IdentityRetrieval(false_match_rates=(), expected=expected)
        metric.update(torch.cat(probes), torch.cat(gallery), torch.arange(len(rows)))
        numbers = metric.estimates()
        estimates |= {f"{key}/{attacker}": number for key in ("top1", "top5", "place") if (number := numbers[key])}
    drawn, drawn_anew = torch.cat(results), torch.cat(changed)
    for where, seen in (("outside", ~drawn_anew), ("inside", drawn_anew)):
        for what, photographs in (("photograph", images), ("another photograph", others)):
            hits = int(nearest(drawn, photographs, seen).sum())
            estimates[f"top1/pixels {where}/{what}"] = Estimate.share(hits, len(rows))
    return estimates


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
