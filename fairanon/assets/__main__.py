"""Rebuilds every embedded asset from nothing: ``make assets``.

Resumable: unfinished work lies in ``build/assets``, delete it to begin again. On one CPU core each, the judges take
about 70 minutes in all, the autoencoder 30, the diffusion model one and a half to two and a half hours, the segmenter 30.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from fairanon.assets import inpainting_model
from fairanon.assets.judge_networks import STEPS, measure_judges, thresholds, train_judge
from fairanon.assets.text_to_image import AUTOENCODER_STEPS, DIFFUSION_STEPS, POOL, build
from fairanon.evaluators.parsers import SEGMENTER
from fairanon.evaluators.tiny import judge_folder
from fairanon.files import atomic_write, write_json

SEGMENTER_STEPS = 4000
ID2FACE = {"trainer.max_steps": 6500, "model.fit.pairs": 8192, "model.fit.steps": 2500}
"""What experiments/id2face_tiny_long.yaml says; fewer are a trial."""

POPALIGN_STEPS, POPALIGN_SEED = 300, 21
"""What experiments/popalign_tiny.yaml says, and the first seed of its table."""


def main(words: list[str] | None = None) -> None:
    """Build everything, or one part, and measure the judges."""
    parser = argparse.ArgumentParser(prog="python -m fairanon.assets", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the assets go")
    parser.add_argument("--work", type=Path, default=Path("build/assets"), help="unfinished work")
    parser.add_argument(
        "--only",
        choices=["judges", "text_to_image", "inpainting", "segmenter", "id2face_tiny", "popalign_tiny"],
        help="build only these",
    )
    parser.add_argument("--share", type=float, default=1.0, help="share of the training steps, for a quick trial")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)

    def steps(full: int) -> int:
        return max(1, round(full * arguments.share))

    def wanted(name: str) -> bool:
        return arguments.only in (None, name)

    if wanted("judges"):
        for name, full in STEPS.items():
            train_judge(name, arguments.work, arguments.out / judge_folder(name).name, steps(full))
        print(json.dumps(measure_judges(arguments.out / "judges"), indent=2))
        write_json(arguments.out / "judges" / "thresholds.json", thresholds(str(arguments.out / "judges")))
    if wanted("text_to_image"):
        build(
            arguments.out / "text_to_image",
            arguments.work,
            steps(AUTOENCODER_STEPS),
            steps(DIFFUSION_STEPS),
            pool=max(64, round(POOL * arguments.share)),
        )
    if wanted("inpainting"):
        inpainting_model.build(
            arguments.out / "text_to_image",
            arguments.out / "inpainting",
            arguments.work,
            steps(inpainting_model.STEPS),
            pool=max(64, round(inpainting_model.POOL * arguments.share)),
        )
    if wanted("segmenter"):
        _segmenter(arguments.out / "segmenter", steps(SEGMENTER_STEPS))
    if wanted("id2face_tiny"):
        _id2face(arguments.out / "id2face_tiny", {name: steps(full) for name, full in ID2FACE.items()})
    if wanted("popalign_tiny"):
        _popalign(arguments.out / "popalign_tiny", steps(POPALIGN_STEPS))


def _segmenter(folder: Path, steps: int) -> None:
    """By its experiment, which goes on where it was stopped."""
    words = ["train", "segmenter_tiny", "--trainer.max_steps", str(steps)]
    subprocess.run([sys.executable, "-m", "fairanon", *words], check=True)
    with atomic_write(folder / SEGMENTER.name) as partial:
        shutil.copyfile(Path("runs") / "segmenter_tiny" / "latest" / SEGMENTER.name, partial)


def _id2face(folder: Path, counts: dict[str, int]) -> None:
    """Likewise; what trained, in half precision."""
    settings = (
        [] if counts == ID2FACE else [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    )
    _trained("id2face_tiny_long", ["--evaluate", "null", *settings], folder)


def _popalign(folder: Path, steps: int) -> None:
    """Likewise: the adapters that `make demo` shows."""
    settings = [] if steps == POPALIGN_STEPS else ["--trainer.max_steps", str(steps), "--evaluate", "null"]
    _trained("popalign_tiny", ["--seed", str(POPALIGN_SEED), *settings], folder)


def _trained(experiment: str, settings: list[str], folder: Path) -> None:
    """Train an experiment, and keep what it trained, with when and how that was."""
    subprocess.run([sys.executable, "-m", "fairanon", "train", experiment, *settings], check=True)
    ship((Path("runs") / experiment / "latest").resolve(), folder)


def ship(run: Path, folder: Path) -> None:
    """Write ``trained.safetensors``: what a finished run trained, in half precision.

    Args:
        run: Its folder.
        folder: Where the file goes.
    """
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, map_location="cpu", weights_only=True)
    state = {name: value.half().contiguous() for name, value in checkpoint["state_dict"].items()}
    seed = yaml.safe_load((run / "config.yaml").read_text())["seed_everything"]
    trained = datetime.fromtimestamp(last.stat().st_mtime).date().isoformat()
    metadata = {
        "base_model": checkpoint["base_model"],
        "trained": trained,
        "steps": str(checkpoint["global_step"]),
        "seed": str(seed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "trained.safetensors") as partial:
        save_file(state, partial, metadata=metadata)


if __name__ == "__main__":
    main()
