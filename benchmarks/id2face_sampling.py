"""ID2Face's samplers: DPM-Solver++ next to the published DDIM with 40 steps, and batches of 8 next to single images.

    python benchmarks/id2face_sampling.py PIPELINE [--count 1000] [--steps 12] [--repeats 3] [--json]

PIPELINE is the folder ``pipeline`` of a finished run of id2face_tiny. First the quality is compared (Fréchet distance to the
originals, the same people and noise), then the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from common import row as row_of
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from tqdm import tqdm

from data_modules.synthetic_faces import PeopleToAnonymize
from fairanon.evaluators import (
    FaceDescription,
    PointRendParser,
    TinyAttributes,
    TinyFeatureMaps,
    TinyGeometry,
    TinyRecognizer,
)
from fairanon.metrics.functional.distances import frechet_interval
from fairanon.pipelines import ID2FacePipeline

PUBLISHED = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    judge = TinyAttributes(faces=False)
    description = FaceDescription(TinyGeometry(), judge, ("glasses", "occupation"))
    pipeline = ID2FacePipeline.from_pretrained(arguments.pipeline, TinyRecognizer(), TinyFeatureMaps(), description)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    samplers = {
        "dpm": (DPMSolverMultistepScheduler.from_config(config), arguments.steps),
        "ddim": (DDIMScheduler.from_config(config), PUBLISHED),
    }
    rows = PeopleToAnonymize(PointRendParser(), TinyGeometry(), count=arguments.count, attacked=0, draws=0).rows()

    def draw(name: str, first: int, batch: int) -> Tensor:
        pipeline.scheduler, steps = samplers[name]
        part = range(first, min(first + batch, len(rows)))
        images, masks, landmarks = (
            torch.stack([getattr(rows[k], field) for k in part]) for field in ("image", "mask", "landmarks")
        )
        return pipeline(images, masks, landmarks, [(0, k) for k in part], num_inference_steps=steps)

    originals = judge.features(torch.stack([row.image for row in rows if row.image is not None]))
    for name in samplers:
        firsts = range(0, len(rows), 32)
        drawn_images = torch.cat([draw(name, first, 32) for first in tqdm(firsts, desc=name)])
        distance = frechet_interval(judge.features(drawn_images), originals)
        print(f"{name}, {samplers[name][1]} steps: FID {distance.value:.3f} [{distance.low:.3f}, {distance.high:.3f}]")
    times: dict[str, list[float]] = {"dpm": [], "ddim": [], "single": []}
    for _ in range(arguments.repeats):
        for name in ("dpm", "ddim"):
            start = time.perf_counter()
            draw(name, 0, 8)
            times[name].append((time.perf_counter() - start) / 8)
        start = time.perf_counter()
        for k in range(8):
            draw("dpm", k, 1)
        times["single"].append((time.perf_counter() - start) / 8)
    results = [
        row_of(f"an image, DPM-Solver++ {arguments.steps} / DDIM {PUBLISHED}", times["dpm"], times["ddim"], "s"),
        row_of("an image, in batches of 8 / by itself", times["dpm"], times["single"], "s"),
    ]
    for row in results:
        print(json.dumps(row) if arguments.json else row)
    print(f"{1 / statistics.median(times['dpm']):.1f} images a second in batches of 8")


if __name__ == "__main__":
    main()
