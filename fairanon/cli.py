"""The only door in for settings: ``fairanon VERB ...``. Imports nothing heavy before a verb needs it."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from fairanon import __version__, experiments
from fairanon.experiments import Experiment, Stopped, UserError

SETTINGS = {
    "": """
settings:
  --KEY VALUE           any key that `fairanon config NAME` prints, for example --trainer.max_steps 100
  --model.help CLASS    what a class takes (data, evaluate likewise); give NAME as well
""",
    "measure": """
settings:
  --KEY VALUE           any key of the run's config.yaml, for example --evaluate.images 200
""",
    "prepare": """
settings:
  --prepare.KEY VALUE   any key of the file, for example --prepare.grow 8
""",
}

PHOTOGRAPHS = ("anonymize", "calibrate", "evaluate")
"""Verbs that work on photographs and know nothing of experiments."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        args: What follows ``fairanon``; None takes the command line.

    Returns:
        0, 1 after a failure, 2 for arguments that make no sense.

    Raises:
        KeyboardInterrupt: Somebody stopped it; `entry` makes the exit code 130 of it, or 143 of a SIGTERM.
    """
    words = list(sys.argv[1:] if args is None else args)
    parser = _parser()
    if not words:
        parser.print_help()
        return 2
    try:
        given = _parse(parser, words)
        if given.verb == "experiments":
            print(experiments.described())
            return 0
        if given.verb in ("train", "rehearse", "config"):
            given.experiment = _experiment(given)
        elif given.verb == "fit":
            given.experiment = experiments.own(given.config, given.overlay, given.settings)
    except SystemExit as ended:  # argparse's, after --help and after a mistake
        return int(ended.code or 0)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2

    if given.verb in PHOTOGRAPHS:
        from fairanon import photographs  # a second; what trains takes ten

        return photographs.run(given)
    from fairanon import verbs

    return verbs.run(given)


def entry() -> None:
    """Console script; whoever stops it gets the exit codes of shells, 130 and 143."""
    code = 130

    def terminate(number: int, _: FrameType | None) -> None:
        nonlocal code
        code = 143
        raise Stopped

    signal.signal(signal.SIGTERM, terminate)
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's own, set for its programs too, is not there for this one
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files, in terminals that know other letters
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except KeyboardInterrupt as stopped:
        print(f"\nfairanon: {stopped if str(stopped) else 'stopped; the same command goes on'}.", file=sys.stderr)
    sys.exit(code)


def _experiment(given: argparse.Namespace) -> Experiment:
    return experiments.resolve(given.name, given.overlay, given.config, given.settings)


# --- the words -------------------------------------------------------------------------------------------


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """The verb's own arguments, and all others as its ``settings``, ``--KEY=VALUE`` each."""
    if words[0] == "evaluate" and len(words) == 2 and not words[1].startswith("-"):
        raise UserError(
            "`fairanon evaluate ORIGINALS ANONYMIZED` takes two folders; a run is measured by `fairanon measure RUN`."
        )
    verb = _verbs(parser).get(words[0])
    known = {} if verb is None else verb._option_string_actions
    joined: list[str] = []  # a setting's value must not be taken for the verb's argument
    for word in words:
        before = joined[-1] if joined else ""
        if before.startswith("--") and "=" not in before and before not in known and not word.startswith("--"):
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    given, settings = parser.parse_known_args(joined)
    if settings and not given.open:
        _verbs(parser)[given.verb].error(f"unknown: {' '.join(settings)}")
    if wrong := [word for word in settings if not word.startswith("--")]:
        said = f"what is {wrong[0]!r}? Settings are --KEY VALUE, files of your own -c FILE"
        ours = wrong[0] in experiments.names()
        _verbs(parser)[given.verb].error(f"{said}; one of ours is `fairanon train {wrong[0]}`" if ours else said)
    given.settings = [*settings, *([f"--seed={given.seed}"] if getattr(given, "seed", None) is not None else [])]
    return given


def _verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, not the whole usage."""
        raise UserError(f"{self.prog}: {message}; `{self.prog} --help` says what it takes.")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """A word that is no verb, or no choice of an option."""
        if action.choices is not None and value not in action.choices:
            alike = difflib.get_close_matches(str(value), [str(choice) for choice in action.choices], 1)
            if action.option_strings:
                meant = f" (did you mean {alike[0]}?)" if alike else ""
                those = ", ".join(map(str, action.choices))
                raise UserError(f"{action.option_strings[0]}: there is no {str(value)!r}{meant}; choose of {those}.")
            hint = f" (did you mean {alike[0]}?)" if alike else ", and the verb comes first"
            raise UserError(f"fairanon: there is no verb {str(value)!r}{hint}; `fairanon --help` lists them.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "fairanon", description="Fair and private face generation: train, measure, compare.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fairanon {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str, settings: bool = True) -> argparse.ArgumentParser:
        found = verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=SETTINGS.get(name, SETTINGS[""]) if settings else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        found.set_defaults(open=settings)
        return found

    train = verb("train", "prepare the data, train an experiment, measure before and after, write the report")
    rehearse = verb("rehearse", "all of it at minimum counts: what is missing, what works, what it will take")
    fit = verb("fit", "train a configuration file of your own, as train does an experiment of ours")
    config = verb("config", "print the resolved configuration of an experiment")
    table = verb("table", "train each experiment with each seed unless that run is finished, then compare them")
    for found in (train, rehearse, config):
        found.add_argument("name", metavar="NAME", help="an experiment; `fairanon experiments` lists them")
    for found in (train, rehearse, fit, config):
        found.add_argument(
            "-c",
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            help="a configuration file of your own; `extends: NAME` in it begins with an experiment; may be given again",
        )
    for found in (train, rehearse, fit, config, table):
        found.add_argument(
            "--overlay",
            action="append",
            default=[],
            metavar="O",
            help="experiments/overlays/O.yaml, for example bf16 or ddp; may be given again",
        )
    for found in (train, rehearse, fit, config):
        found.add_argument(
            "--seed", type=int, metavar="N", help="one seed for the run: global, model and data (not evaluate.seed)"
        )
    for found in (train, fit):
        found.add_argument("--fresh", action="store_true", help="begin a new run, even if one is unfinished")
        found.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")

    measure = verb("measure", "measure a finished run again, for example with more images")
    export = verb("export", "write a diffusers pipeline with the trained adapters fused in", settings=False)
    report = verb("report", "write a run's report.html again and print its table", settings=False)
    for found in (measure, export, report):
        found.add_argument("folder", metavar="RUN", help="a run's folder, for example runs/popalign_tiny/latest")
    export.add_argument("to", metavar="FOLDER", help="a new folder")
    export.add_argument("--weight", type=float, default=1.0, metavar="W", help="how strongly adapters act (default 1)")

    prepare = verb("prepare", "make the data that a training needs")
    prepare.add_argument(
        "name", nargs="?", default="", metavar="NAME|FILE", help="experiments/prepare/NAME.yaml, or a file of your own"
    )
    prepare.add_argument(
        "images", nargs="?", metavar="IMAGES", help="a folder of images to make it of; without it the file's own"
    )
    prepare.add_argument(
        "--device", default="auto", metavar="D", help="where models work (default: a GPU if there is one)"
    )

    table.add_argument("names", nargs="+", metavar="NAME", help="experiments")
    table.add_argument("--seeds", type=_seeds, required=True, metavar="S,S,...", help="for example 11,12,13")
    table.add_argument(
        "--cells",
        metavar="FOLDER",
        help="keep each finished cell's numbers there; what is there is not trained again, on any machine",
    )
    said = "hide the faces of photographs, test each with a recognizer, and say which may be published"
    _anonymize(verb("anonymize", said, settings=False))
    _evaluate(verb("evaluate", "compare originals with what anybody's anonymizer made of them", settings=False))
    _calibrate(
        verb("calibrate", "find the distance above which a recognizer takes two faces for two people", settings=False)
    )
    verb("experiments", "list the experiments", settings=False)
    return parser


def _anonymize(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = "J is a judge: a file's name in experiments/judges, or a YAML file of your own. Exit code 3: see OUT/review.csv."
    add("inputs", nargs="+", metavar="IN", help="files; or a folder, a zip, a CSV or .jsonl of files with boxes")
    add("out", metavar="OUT", help="a new folder; the same command goes on where it was")
    methods = ("mask", "pixelate", "blur", "ano-face-fair", "id2face")
    add("--method", choices=methods, default="mask", help="how a face is hidden (default mask: nothing of it is left)")
    add("--checkpoint", metavar="FOLDER", help="who draws new faces: a run's folder, or a pipeline's")
    add(
        "--prompt",
        metavar="TEXT",
        help='ano-face-fair: what every face should look like (default "a photo of a person")',
    )
    add("--steps", type=int, default=20, metavar="N", help="of the sampler that draws (default 20)")
    add("--keep", default="", metavar="R,R", help="parts of a face that stay, for example eyes,lips; needs --parser")
    add("--faces", choices=("all", "largest"), default="all", help="hide all faces, or the largest alone (default all)")
    add(
        "--min-face",
        type=float,
        default=0,
        metavar="PX",
        help="do not hide faces whose longer side is smaller; the picture goes to review",
    )
    add(
        "--boxes",
        choices=("add", "only"),
        default="add",
        help="your own boxes: beside what is found, or alone (default add)",
    )
    add("--threshold", type=float, metavar="S", help="find faces from this score on (default the detector's, .2)")
    add("--fast", action="store_true", help="look at fewer scales, and not at turned copies: fewer faces are found")
    add("--box-scale", type=float, default=1.4, metavar="X", help="enlarge each box by this factor (default 1.4)")
    add(
        "--cut-scale",
        type=float,
        default=1.8,
        metavar="X",
        help="show so much round a face to what draws (default 1.8)",
    )
    add(
        "--strength",
        type=float,
        default=0.5,
        metavar="S",
        help="of blur and pixelate at the first try, .01 to 1, the strongest (default .5)",
    )
    add(
        "--tries",
        type=int,
        default=4,
        metavar="N",
        help="attempts for each face before somebody has to look (default 4)",
    )
    add("--skip-attack", action="store_true", help="attack nothing: then everything is to be looked at")
    add("--seed", type=int, metavar="N", help="of the new faces; whoever knows it can draw them again (default secret)")
    add(
        "--key-file",
        metavar="FILE",
        help="the same person gets the same new face in all pictures; a file of 16 random bytes or more",
    )
    add(
        "--key-scope",
        choices=("folder", "everywhere"),
        default="folder",
        help="everywhere: the same key and file name give the same new face in another OUT too (default folder)",
    )
    add(
        "--no-face",
        choices=("review", "copy", "skip"),
        default="review",
        help="pictures without a face (default review)",
    )
    add("--detector", default="centerface", metavar="J,J", help="who finds faces; boxes of several are united")
    add(
        "--recognizer",
        default="dlib",
        metavar="J,J",
        help="recognizers that test each hidden face; with several, all must fail",
    )
    add("--parser", metavar="J", help="model that marks the parts of a face, for example facexlib_parser")
    add("--landmarks", default="insightface_landmarks", metavar="J", help="id2face: who finds the 68 points")
    add("--thresholds", action="append", default=[], metavar="FILE", help="what `fairanon calibrate` wrote")
    add("--side", type=int, default=1280, metavar="PX", help="longer side at which faces are looked for (default 1280)")
    add("--no-tiles", action="store_true", help="do not look at large pictures in parts: small faces are missed")
    add("--jpeg-quality", type=int, metavar="Q", help="of JPEG, WebP, HEIC, AVIF (default: files stay about as large)")
    add("--keep-date", action="store_true", help="files get the day of their originals as their time, no hour")
    add("--hashes", action="store_true", help="note a SHA-256 of each original in the manifest: it links the two")
    add("--batch-size", type=int, default=8, metavar="N", help="faces drawn at once (default 8)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads (default one for each core)")
    add("--device", default="auto", metavar="D,D", help="where models work, a process each (default: all GPUs, or cpu)")
    add("--dry-run", action="store_true", help="draw the boxes that are found, replace nothing")
    add("--preview", type=int, metavar="N", help="only write a sheet of N pictures before and after; publish nothing")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "J is a judge: a file's name in experiments/judges, or a YAML file of your own. Exit code 3: files were left out."
    add = parser.add_argument
    add("originals", metavar="ORIGINALS", help="a folder; or embeddings that --keep-embeddings wrote (.safetensors)")
    add("anonymized", metavar="ANONYMIZED", help="another; files of the same relative path belong together")
    add(
        "--out",
        default="evaluation",
        metavar="FOLDER",
        help="metrics.json, faces.csv, table.csv, table.tex, report.html (default evaluation)",
    )
    add(
        "--table",
        metavar="CSV",
        help="columns original and, as far as known, anonymized, group, identity; then only the largest face counts",
    )
    add("--parrot", metavar="FOLDER", help="the originals anonymized once more, by an attacker who knows the method")
    add("--detector", default="centerface", metavar="J,J", help="who finds faces")
    add("--recognizer", default="dlib", metavar="J,J", help="who recognizes; two are better than one")
    add("--thresholds", action="append", default=[], metavar="FILE", help="what `fairanon calibrate` wrote")
    for name, said in (
        ("geometry", "landmarks, pose, expression, gaze"), ("features", "FID and KID (default inception, if it is there)"),
        ("clip", "CLIP-I, for example clip_features"), ("perceptual", "a distance beside LPIPS"),
        ("quality", "image quality, for example musiq"), ("attributes", "whether a face still looks like its group"),
    ):  # fmt: skip
        add(f"--{name}", metavar="J", help=f"who judges {said}")
    add(
        "--calibrate",
        action="store_true",
        help="no person is in two originals: calibrate thresholds on them (142 people or more)",
    )
    add("--force", action="store_true", help="measure pairs that share nothing outside of the faces")
    add("--threshold", type=float, default=0.5, metavar="S", help="find faces from this score on (default .5)")
    add("--side", type=int, default=1280, metavar="PX", help="longer side at which faces are looked for (default 1280)")
    add("--no-tiles", action="store_true", help="do not look at large pictures in parts")
    add("--size", type=int, default=256, metavar="PX", help="side of the faces that judges of looks see (default 256)")
    add("--cut-scale", type=float, default=1.8, metavar="X", help="how much round a face they see (default 1.8)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads that read (default one a core)")
    add("--device", default="auto", metavar="D", help="where judges work (default: a GPU if there is one)")
    add("--keep-embeddings", action="store_true", help="write the embeddings, too; they tell who is who: guard them")
    add("--show-faces", action="store_true", help="show the worst cases in the report: it shows people")
    add("--json", action="store_true", help="print metrics.json instead of the tables")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="photographs of at least 142 different people, one of each")
    add("--groups", metavar="CSV", help="columns file and group: a threshold for each group, too")
    add("--out", default="thresholds.json", metavar="FILE", help="the table (default thresholds.json)")
    add(
        "--false-match-rate", type=float, default=1e-3, metavar="R", help="share of pairs that may match (default .001)"
    )
    add("--detector", default="centerface", metavar="J,J", help="who finds faces")
    add("--recognizer", default="dlib", metavar="J,J", help="whose thresholds")
    add("--device", default="auto", metavar="D", help="where they work (default: a GPU if there is one)")


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(
            f"seeds are numbers with commas between them, for example 11,12,13, not {text}"
        )
    return [int(part) for part in text.split(",")]
