"""Writes a published model at its true size with random weights, in diffusers' layout: to try what only size shows.

Run: ``python benchmarks/true_size.py FOLDER NAME ...`` (sd15, sd21-base, sd21, sd2-inpainting 4 to 5 GB each, sdxl 14).
Then for example ``fairanon rehearse popalign_sd15 --model.backbone.init_args.model FOLDER/sd15``.
With ``--step EXPERIMENT`` it does one optimizer step of a real experiment on random images instead, on this machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from real_steps import ARCHITECTURE, configuration, method_on, step_of

from fairanon.backbones import architectures
from fairanon.run.footprint import GIB


def main() -> None:
    """Write models, or try a step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where to")
    parser.add_argument("names", nargs="*", choices=[[], *architectures.ARCHITECTURES], help="which models")
    parser.add_argument("--step", choices=sorted(ARCHITECTURE), help="one step of this experiment instead")
    parser.add_argument("--size", type=int, help="image side of that step; the experiment's own unless given")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    arguments = parser.parse_args()
    if arguments.step:
        with tempfile.TemporaryDirectory() as folder:
            config = configuration(arguments.step, Path(folder), arguments.dtype, size=arguments.size, batch=1)
            method = method_on(config, torch.device("cpu"))
            start = time.perf_counter()
            loss = step_of(method, config)
            seconds = time.perf_counter() - start
        trains = sum(p.numel() for p in method.parameters() if p.requires_grad)
        print(json.dumps({
            "experiment": arguments.step, "dtype": arguments.dtype, "size": config.data.init_args.size, "seconds": round(seconds, 1),
            "loss": loss, "parameters": sum(p.numel() for p in method.parameters()), "trains": trains,
        }))  # fmt: skip
        return
    for name in arguments.names:
        written = architectures.write(name, arguments.folder / name)
        size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
        print(f"{written}: {size / GIB:.1f} GiB")


if __name__ == "__main__":
    main()
