"""Where ID2Face's Fréchet distance on the embedded world comes from: the autoencoder, drawing, and who is drawn.

    python benchmarks/id2face_frechet.py [--count 2000]

With the weights that come along; each row replaces one thing less by the real one. The distance of the method itself is the
last row, as `make eval EXP=id2face_tiny` measures it.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor
from tqdm import tqdm

from data_modules.synthetic_faces import PeopleToAnonymize, SyntheticIdentities
from fairanon.evaluators import PointRendParser, TinyAttributes, TinyGeometry
from fairanon.imaging import to_model, to_pixels
from fairanon.methods import ID2Face
from fairanon.methods.load import load_run
from fairanon.metrics.functional.distances import frechet_distance
from fairanon.pipelines.inpaint import paste
from fairanon.seeding import keyed_randn

_BATCH = 64


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args().count
    rows = PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=count, attacked=0, draws=0).rows()
    method = load_run("runs/id2face_tiny/latest")
    assert isinstance(method, ID2Face)
    features = TinyAttributes(faces=False).features
    images, masks, landmarks = (
        torch.stack([getattr(row, name) for row in rows]) for name in ("image", "mask", "landmarks")
    )
    parts = [slice(k, k + _BATCH) for k in range(0, count, _BATCH)]
    source = torch.cat([features(images[part]) for part in parts])
    data = SyntheticIdentities(batch_size=_BATCH)
    data.setup("fit")
    others = torch.cat([batch.references for batch in itertools.islice(data.train_dataloader(), len(parts))])[:count]

    with method.pipeline() as pipeline:
        decode = method.networks.id_vae.decode
        own = pipeline.latents_of(images)
        draws = keyed_randn([(0, k, "identity") for k in range(count)], pipeline.draws_shape)
        who: dict[str, Tensor | None] = {
            "the autoencoder alone": None,
            "everybody's own identity": decode(own),
            "each other's identities": decode(own.roll(1, 0)),
            "identities of other real people": decode(pipeline.latents_of(others)),
            "drawn from the mixture": decode(method.networks.mixture(draws[:, 0])) if method.networks.mixture else None,
            "drawn and orthogonal: the method": pipeline.identities(own, draws),
        }
        for name, control in who.items():
            drawn_features = []
            for part in tqdm(parts, desc=name, unit="batch"):
                fields = images[part], masks[part], landmarks[part]
                if control is None:
                    latents = pipeline.vae.encode(to_model(fields[0])).latent_dist.mean
                    again = to_pixels(pipeline.vae.decode(latents).sample)
                    drawn = paste(fields[0], again, pipeline.changed(*fields[1:]), pipeline.feather or 0)
                else:
                    keys = [(0, part.start + k) for k in range(len(fields[0]))]
                    drawn = pipeline(*fields, keys, control=control[part], num_inference_steps=12)
                drawn_features.append(features(drawn.cpu()))
            print(f"{name}: {frechet_distance(torch.cat(drawn_features), source):.3f}", flush=True)


if __name__ == "__main__":
    main()
