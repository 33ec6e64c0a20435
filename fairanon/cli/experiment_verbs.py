"""The verbs for experiments: train, rehearse, fit, config, table, measure, export, report, prepare, experiments."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from pathlib import Path
from typing import Any

from fairanon.cli.command import Command
from fairanon.config import experiments
from fairanon.config.experiments import UserError, preparation_file, resolve
from fairanon.config.options import add_options, request_of
from fairanon.config.prepare_request import PrepareRequest
from fairanon.config.runs import find_settings
from fairanon.config.spelling import check_spelling
from fairanon.run.train_request import MeasureRequest, TrainRequest

_SETTINGS = """
settings:
  --KEY VALUE           any key that `fairanon config NAME` prints, for example --trainer.max_steps 100
  --model.help CLASS    what a class takes (data, evaluate likewise); give NAME as well
"""
_OF_A_RUN = """
settings:
  --KEY VALUE           any key of the run's config.yaml, for example --evaluate.images 200
"""
_OF_A_PREPARATION = """
settings:
  --prepare.KEY VALUE   any key of the file, for example --prepare.grow 8
"""


def _look_for_experiment(arguments: argparse.Namespace) -> None:
    """What the command line names; whatever is wrong with it makes no sense to begin with."""
    arguments.experiment = request_of(TrainRequest, arguments, settings=arguments.settings).experiment()
    check_spelling(arguments.experiment)


def _look_for_cells(arguments: argparse.Namespace) -> None:
    for name in arguments.names:
        check_spelling(resolve(name, arguments.overlay, settings=arguments.settings))


def _look_for_run(arguments: argparse.Namespace) -> None:
    request_of(MeasureRequest, arguments)  # whatever is wrong with its options
    find_settings(Path(arguments.folder))


def _look_for_preparation(arguments: argparse.Namespace) -> None:
    request_of(PrepareRequest, arguments)  # whatever is wrong with its options
    preparation_file(arguments.name)


def _look_for_what_is_measured(arguments: argparse.Namespace) -> None:
    request_of(MeasureRequest, arguments)  # whatever is wrong with its options
    folder = Path(arguments.folder)
    if arguments.like:
        check_spelling(resolve(arguments.like, settings=arguments.settings))
    elif folder.is_dir() and not (folder / "config.yaml").exists():
        raise UserError(
            f"{folder} is no run's folder, it has no config.yaml; for images that lie in it name the experiment whose measures they "
            "are measured by: --like NAME."
        )
    else:
        find_settings(folder)


def _look_for_numbers(arguments: argparse.Namespace) -> None:
    if not (Path(arguments.folder) / "metrics.json").exists():
        raise UserError(
            f"{arguments.folder} is no finished run's folder: it has no metrics.json; runs lie in runs/EXPERIMENT/TIME."
        )


def _train(arguments: argparse.Namespace) -> None:
    if arguments.print_config:
        return _config(arguments)
    from fairanon.run.training import train

    train(arguments.experiment, arguments.fresh, arguments.log, arguments.log_images)
    return None


def _rehearse(arguments: argparse.Namespace) -> None:
    from fairanon.run.rehearsal import rehearse

    rehearse(arguments.experiment)


def _config(arguments: argparse.Namespace) -> None:
    from fairanon.config.settings import FairAnonCLI

    print(FairAnonCLI(arguments.experiment.words(), build=False).text, end="")


def _prepare(arguments: argparse.Namespace) -> None:
    from fairanon.prepare.run import prepare

    prepare(request_of(PrepareRequest, arguments, settings=tuple(arguments.settings)))


def _measure(arguments: argparse.Namespace) -> None:
    from fairanon.files import read_json
    from fairanon.report import print_numbers
    from fairanon.run.measuring import measure

    request = request_of(MeasureRequest, arguments, settings=arguments.settings)
    out = measure(request)
    if request.like:
        print_numbers(read_json(out / "metrics.json", "measure"), out / "metrics.json")
    if request.part is not None:
        print(
            f"part {request.part} is drawn and judged; nothing is counted before the same command with --finish in place of --part"
        )


def _demo(arguments: argparse.Namespace) -> None:
    from fairanon.methods.load import shipped
    from fairanon.run.measuring import measure

    made = shipped("popalign_tiny")
    print(
        f'The embedded model as it is, and with the adapters that `make train EXP=popalign_tiny ARGS="--seed {made["seed"]}"` '
        f"trained in {made['steps']} steps on {made['trained']}: {arguments.images} images a prompt. Nothing is trained now."
    )
    settings = {"evaluate.images": arguments.images, "evaluate.specific_images": 0, "evaluate.batch_size": 34}
    folder = measure(MeasureRequest(Path("runs/popalign_tiny/shipped"), settings=settings))
    if sys.stdout.isatty():
        import webbrowser

        webbrowser.open((folder / "report.html").resolve().as_uri())


def _export(arguments: argparse.Namespace) -> None:
    from fairanon.methods.load import load_run

    model = load_run(arguments.folder)
    print(model.export_pipeline(Path(arguments.to), Path(arguments.folder).resolve().parent.name, arguments.weight))


def _report(arguments: argparse.Namespace) -> None:
    from fairanon.files import read_json
    from fairanon.report import print_table, write_report

    folder = Path(arguments.folder)
    result = read_json(folder / "metrics.json", "report")
    if "before" not in result:
        raise UserError(
            f"report: {folder} has the numbers of a folder of images, which have no page; they are in its metrics.json."
        )
    print_table(result, write_report(folder))


def _table(arguments: argparse.Namespace) -> None:
    """Every experiment with every seed; a finished cell is a finished run, so a stopped table goes on.

    With ``--cells FOLDER`` the numbers of finished cells are kept there, with the recipe, the embedded world and the code that made
    them; those of the same recipe and world are not trained again on another machine either.
    """
    from fairanon.assets.world_version import world_version
    from fairanon.config.runs import runs_root
    from fairanon.files import read_json, write_json
    from fairanon.report import compare, summarise, untrained
    from fairanon.report.comparison import SEEDS, compared, write_comparison
    from fairanon.run.training import trained

    if len(set(arguments.names)) == 1:
        print("one experiment is compared with nobody but its base", flush=True)
    elif len(arguments.seeds) < SEEDS:
        print(f"of fewer than {SEEDS} seeds none of the experiments is called better", flush=True)
    folders = _of_images(arguments)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys(arguments.names)}
    for name, seed in itertools.product(rows, arguments.seeds):
        experiment = resolve(name, arguments.overlay, settings=[*arguments.settings, f"--seed={seed}"])
        cell = None if arguments.cells is None else Path(arguments.cells) / f"{name}-{seed}.json"
        made = {"recipe": experiment.recipe(), "world": world_version()}
        if cell is not None and cell.exists():
            rows[name].append(_kept(cell, name, made))
            continue
        folder = trained(experiment, f"{name}, seed {seed}")
        rows[name].append(read_json(folder / "metrics.json", "table"))
        if cell is not None:
            write_json(cell, made | {"metrics": rows[name][-1]})
    summary, beside = summarise(rows), untrained(rows) | folders
    path = runs_root() / f"table-{arguments.names[0]}.json"
    words = [
        *arguments.names,
        "--seeds",
        ",".join(map(str, arguments.seeds)),
        *(f"--overlay {name}" for name in arguments.overlay),
        *(f"--beside {folder}" for folder in arguments.beside),
    ]
    made_by = {"command": " ".join(["fairanon table", *words, *arguments.settings]), "world": world_version()}
    made_by["code"] = ", ".join(sorted({cell["versions"]["code"] for row in rows.values() for cell in row}))
    first = next(iter(rows.values()))[0]
    better = {key: way for key, way in first.get("higher_is_better", {}).items() if key in first["headline"]}
    content = {**made_by, "higher_is_better": better, "rows": summary, "beside": beside}
    write_json(path, content)
    page = write_comparison(path.with_suffix(".html"), content)
    print(compare(summary | beside))
    print("\n" + "\n".join(compared(content).lines(sys.stdout.isatty())))
    own = "; of what was not trained its own 95 % intervals" if beside else ""
    print(
        f"\n{first['images']} images, {first['images_per_prompt']} a prompt; mean [range] over {len(arguments.seeds)} "
        f"seeds, of changes the outermost ends of the seeds' paired 95 % intervals{own}. {page}; the same for scripts: {path}"
    )


def _kept(cell: Path, experiment: str, made: dict[str, str]) -> dict[str, Any]:
    """The numbers of a finished cell; one of other settings is nobody's to be written over.

    Raises:
        UserError: It is damaged, or another one.
    """
    from fairanon.files import read_json

    known = read_json(cell, "--cells")
    metrics = known.get("metrics") if isinstance(known, dict) else None
    parts = ("experiment", "headline", "before", "after", "ratio", "seconds", "versions", "images", "images_per_prompt")
    if (
        not isinstance(metrics, dict)
        or any(part not in metrics for part in parts)
        or metrics["experiment"] != experiment
    ):
        raise UserError(f"--cells: {cell} holds no numbers of {experiment}; take it away.")
    if any(known.get(key) != value for key, value in made.items()):
        raise UserError(
            f"--cells: {cell} is of other settings or another embedded world; name another folder, or take it away."
        )
    return metrics


def _of_images(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The numbers of folders of images by their names, measured as the table's first experiment measures its own."""
    from fairanon.evaluation.image_folder import is_image_folder
    from fairanon.files import read_json
    from fairanon.run.folder_measuring import measure_folder

    rows: dict[str, dict[str, Any]] = {}
    for folder in map(Path, arguments.beside):
        name = folder.resolve().name
        if not is_image_folder(folder):
            raise UserError(f"--beside: {folder} is no folder of images.")
        if name in (*rows, *arguments.names, "base"):
            raise UserError(f"--beside: there is a row {name} already; give the folder another name.")
        request = MeasureRequest(folder, arguments.settings, arguments.names[0])
        result = read_json(measure_folder(request, arguments.overlay) / "metrics.json", "table")
        print(f"{name}: {result['images']} images of {result['prompts']} prompts, for its own row", flush=True)
        rows[name] = {key: result["after"][key] for key in result["headline"]}
    return rows


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(
            f"seeds are numbers with commas between them, for example 11,12,13, not {text}"
        )
    seeds = [int(part) for part in text.split(",")]
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise argparse.ArgumentTypeError(f"{twice[0]} is named twice; a seed counts once")
    return seeds


# --- their arguments ---------------------------------------------------------------------------------------


def _of_an_experiment(parser: argparse.ArgumentParser) -> None:
    add_options(parser, TrainRequest, leave_out=("fresh", "log", "log_images"))


def _of_a_training(parser: argparse.ArgumentParser) -> None:
    add_options(parser, TrainRequest)
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")


def _of_own_files(parser: argparse.ArgumentParser) -> None:
    add_options(parser, TrainRequest, leave_out=("name",))
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")


def _of_a_table(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="experiments")
    add_options(parser, TrainRequest, leave_out=("name", "config", "seed", "fresh", "log", "log_images"))
    add("--seeds", type=_seeds, required=True, metavar="S,S,...", help="for example 11,12,13")
    add(
        "--cells", metavar="FOLDER",
        help="keep each finished cell's numbers there; what is there is not trained again, on any machine",
    )  # fmt: skip
    add(
        "--beside", action="append", default=[], metavar="FOLDER",
        help="a folder of images (layouts: docs/audit.md), measured as the first experiment measures its own, becomes a row; may be given again",
    )  # fmt: skip


def _of_a_run(parser: argparse.ArgumentParser) -> None:
    add_options(parser, MeasureRequest)


def _of_a_report(parser: argparse.ArgumentParser) -> None:
    add_options(parser, MeasureRequest, leave_out=("like", "prompts"))


def _of_an_export(parser: argparse.ArgumentParser) -> None:
    add_options(parser, MeasureRequest, leave_out=("like", "prompts", "device", "engine", "part", "finish"))
    parser.add_argument("to", metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--weight", type=float, default=1.0, metavar="W", help="how strongly adapters act (default 1)"
    )  # fmt: skip


def _of_a_preparation(parser: argparse.ArgumentParser) -> None:
    add_options(parser, PrepareRequest)


def _of_a_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=10, metavar="N", help="images a prompt (default 10)")


def _dashboard(arguments: argparse.Namespace) -> None:
    """``fairanon dashboard [METHOD]``: saved views of a W&B project."""
    from fairanon.run.views import VIEWS, save

    for address in save([arguments.method] if arguments.method else list(VIEWS), arguments.entity, arguments.project):
        print(address)


def _of_a_dashboard(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("method", nargs="?", choices=METHODS, metavar="METHOD", help=f"{', '.join(METHODS)} (default: a view for each)")
    add("--entity", metavar="E", help="whose project it is (default: your account's)")
    add("--project", default="fairanon", metavar="P", help="its name (default fairanon)")


METHODS = ("PopAlign", "FairHuman", "AnoFaceFair", "ID2Face")
COMMANDS = [
    Command("demo", "see the embedded model draw people before and after PopAlign, in minutes", _of_a_demo, _demo),
    Command(
        "train", "prepare the data, train an experiment, measure before and after, write the report", _of_a_training,
        _train, _SETTINGS, look=_look_for_experiment,
    ),
    Command(
        "rehearse", "all of it at minimum counts: what is missing, what works, what it will take", _of_an_experiment,
        _rehearse, _SETTINGS, look=_look_for_experiment,
    ),
    Command(
        "fit", "train a configuration file of your own, as train does an experiment of ours", _of_own_files, _train,
        _SETTINGS, look=_look_for_experiment,
    ),
    Command(
        "config", "print the resolved configuration of an experiment", _of_an_experiment, _config, _SETTINGS,
        look=_look_for_experiment,
    ),
    Command(
        "table", "train each experiment with each seed unless that run is finished, then compare them", _of_a_table,
        _table, _SETTINGS, look=_look_for_cells,
    ),
    Command(
        "measure", "measure a finished run again, or a folder of images as an experiment measures its own", _of_a_run, _measure,
        _OF_A_RUN, look=_look_for_what_is_measured,
    ),
    Command(
        "export", "write a diffusers pipeline with the trained adapters fused in", _of_an_export, _export, look=_look_for_run,
    ),
    Command("report", "write a run's report.html again, and print its answer", _of_a_report, _report, look=_look_for_numbers),
    Command(
        "dashboard", "write saved views to Weights & Biases: the answer, pictures, what should stay, curves", _of_a_dashboard,
        _dashboard, epilog="Needs pip install \"fairanon[dashboard]\" and `wandb login`.",
    ),
    Command("prepare", "make the data that a training needs", _of_a_preparation, _prepare, _OF_A_PREPARATION, look=_look_for_preparation),
    Command(
        "experiments", "list the experiments, by method", lambda _: None, lambda _: print(experiments.described()), light=True,
    ),
]  # fmt: skip
