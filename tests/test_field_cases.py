"""What people who do this job report of other tools, each as a small input for this one (docs/troubleshooting.md)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import wandb
from PIL import Image

from data_modules.ai_hub import AiHub
from data_modules.fairface import FairFace
from data_modules.ffhq import Ffhq
from data_modules.human_regions import RegionImages, usable
from data_modules.population_preferences import PopulationPreferences, read_preferences
from data_modules.region_folder import RegionFolder
from data_modules.synthetic_faces.renderer import render
from data_modules.synthetic_faces.world import draw_scenes
from fairanon.callbacks.dashboard import Described
from fairanon.cli import main
from fairanon.config.experiments import experiments_folder, own
from fairanon.config.runs import versions
from fairanon.config.settings import FairAnonCLI
from fairanon.evaluators import PointRendParser, TinyDetector
from fairanon.files import TextError
from fairanon.imaging import read_image, write_image
from fairanon.prepare import FaceMasks, RegionMasks
from fairanon.prompts import read_prompts
from fairanon.run.loggers import _wandb_loggers

REPOSITORY = Path(__file__).parent.parent
STUDY = ["train", "popalign_gaussian", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder like a checkout's root."""
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    return main([str(word) for word in words])


def faces(folder, count, seed=3):
    folder.mkdir(parents=True)
    for n, image in enumerate(render(draw_scenes(seed, range(count), "balanced")).image):
        write_image(image, folder / f"{n:03}.png")
    return folder


def regions(folder, *more):
    return run("prepare", "regions", folder, "--prepare.init_args.detector", "fairanon.evaluators.TinyDetector", *more)


# --- where it is started, and how it is configured -------------------------------------------------------


def test_from_another_directory(checkout, tmp_path_factory, monkeypatch, capsys):
    """Below a checkout its own experiments are found, elsewhere those that come with fairanon."""
    (checkout / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(checkout / "deep" / "er")
    assert experiments_folder() == checkout / "experiments"
    assert main(["config", "popalign_tiny"]) == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert experiments_folder() == REPOSITORY / "experiments"
    assert read_prompts(Path("experiments/prompts/tiny_eval.csv")) == read_prompts(
        REPOSITORY / "experiments/prompts/tiny_eval.csv"
    )
    assert main(["experiments"]) == 0 and "popalign_tiny" in capsys.readouterr().out


def test_own_configuration_files(checkout, capsys):
    files = {
        "lr.yaml": "extends: simpo_tiny\nmodel: {init_args: {beta: 1e2, optimizer: {init_args: {lr: 1e-4}}}}\n",
        "bom.yaml": "\ufeffextends: simpo_tiny\nmodel: {init_args: {beta: 1e2, optimizer: {init_args: {lr: 1e-4}}}}\n",
    }
    for name, text in files.items():
        (checkout / name).write_text(text, encoding="utf-8")
        given = own([name])
        assert [path.stem for path in given.files] == ["_base", "simpo_tiny", name[:-5]]
        config = FairAnonCLI(given.words(), build=False).config
        assert config.model.init_args.optimizer.init_args.lr == 1e-4 and config.model.init_args.beta == 100.0
        assert config.trainer.gradient_clip_val == 1.0 and config.trainer.num_sanity_val_steps == 0
    bad = {
        "typo.yaml": ("extends: simpo_tiny\nmodle: {init_args: {beta: 1.0}}\n", "modle"),
        "typo2.yaml": ("extends: simpo_tiny\nmodel: {init_args: {betta: 1.0}}\n", "betta"),
        "tab.yaml": ("extends: simpo_tiny\nmodel:\n\tinit_args: {}\n", "tab.yaml, line 3 is no YAML"),
        "list.yaml": ("- one\n", "list.yaml is no configuration"),
    }
    for name, (text, said) in bad.items():
        (checkout / name).write_text(text)
        assert run("fit", "-c", name) == 2
        assert said in capsys.readouterr().err
    for words, said in (
        (["fit", "-c", "missing.yaml"], "missing.yaml is missing"),
        (["fit", "-c", "."], "cannot be read (Is a directory)"),
        (["fit"], "fairanon fit -c FILE"),
        (["fit", "-c", "lr.yaml", "again"], "what is 'again'? Settings are --KEY VALUE"),
        (["train", "lr.yaml"], "`fairanon fit -c lr.yaml` trains it"),
    ):
        assert run(*words) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.max_steps", "-1"], "would train for ever"),
        (["--evaluate.images", "0"], "evaluate.images must not be 0"),
        (["--evaluate.sampling_steps", "-1"], "evaluate.sampling_steps must not be -1"),
    ],
)
def test_counts_of_nothing_are_refused(checkout, preferences, capsys, words, said):
    assert run("train", "popalign_tiny", "--data.folder", preferences, *words) == 1
    assert said in capsys.readouterr().err and not (checkout / "runs" / "popalign_tiny").exists()


# --- tables and captions ---------------------------------------------------------------------------------


def test_captions_in_other_encodings_cost_one_image_each(checkout, caplog):
    folder = faces(checkout / "in", 4)
    (folder / "000.txt").write_bytes(b"it\x92s me")
    (folder / "001.txt").write_text("\ufeffa friend\r\n", encoding="utf-8")
    assert regions(folder, "--prepare.init_args.folder", "out") == 0
    captions = {record.image.stem: record.caption for record in RegionFolder("out").records()}
    assert captions == {"001": "a friend", "002": "a photo of a person", "003": "a photo of a person"}
    assert "000.txt, line 1 is not UTF-8; save the file as UTF-8" in caplog.text


@pytest.mark.parametrize(
    "change", [lambda t: "\ufeff" + t, lambda t: t.replace(",", ";"), lambda t: t.replace("\n", "\r\n")]
)
def test_fairfaces_table_saved_by_a_spreadsheet(tmp_path, change):
    table = "file,age,gender,race,service_test\ntrain/1.jpg,20-29,Female,White,True\n"
    (tmp_path / "fairface_label_train.csv").write_bytes(change(table).encode())
    assert [record.caption for record in FairFace(str(tmp_path)).records()] == ["a photo of a white female"]


PAIRS = (
    "jpg_0,jpg_1,caption,label\nimg/a.png,img/b.png,a photo of a doctor,{}\nimg/a.png,img/b.png,a photo of a nurse,{}\n"
)


def test_the_official_table_of_pairs(tmp_path, caplog):
    path = tmp_path / "pairs.csv"
    for change in (lambda t: "\ufeff" + t.replace("\n", "\r\n"), lambda t: t.replace(",", ";")):
        path.write_text(change(PAIRS.format(0, 1)), encoding="utf-8")
        assert read_preferences(path)[0]["label_0"].to_pylist() == [1.0, 0.0]
    path.write_text(PAIRS.format(0.5, 1))
    with caplog.at_level("INFO"):
        assert read_preferences(path)[0]["label_0"].to_pylist() == [0.0]
    assert "dropped 1 ties of 2 rows" in caplog.text
    for labels, said in (
        (("", 1), "column label is empty"),
        ((0, "first"), "line 3: column label is 'first'"),
        ((2, 0), "line 2: column label is '2'"),
    ):
        path.write_text(PAIRS.format(*labels))
        with pytest.raises(TextError, match=f"data.folder: .*pairs.csv, .*{said}"):
            read_preferences(path)
    path.write_text(PAIRS.format(0, 1).replace("img/", "img\\"))
    with pytest.raises(TextError, match=r"line 2: column jpg_0 names .*a Windows path"):
        read_preferences(path)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("caption", None, "row 0: column caption is empty"),
        ("label_0", None, "row 0: column label_0 is empty"),
        ("label_0", 2.0, "row 0: column label_0 is 2.0"),
        ("jpg_1", None, "row 0: column jpg_1 is empty"),
        ("caption", 3, "column caption holds int64, wanted text"),
        ("jpg_0", 1.5, "column jpg_0 holds double, wanted an image file's bytes"),
        ("label_0", "yes", "column label_0 holds string, wanted a number"),
    ],
)
def test_rows_are_checked_when_a_table_is_opened(preferences, column, value, said):
    path = preferences / "pairs.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    same_kind = value is None or isinstance(value, type(values[0]))
    values = [value, *values[1:]] if same_kind else [value] * len(values)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), path)
    with pytest.raises(TextError, match=f"data.folder: .*pairs.parquet.*{said}"):
        read_preferences(preferences)


def test_images_as_bytes_or_both(preferences):
    wanted = None
    path = preferences / "pairs.parquet"
    table = pq.read_table(path)
    raw = [[(preferences / name).read_bytes() for name in table[column].to_pylist()] for column in ("jpg_0", "jpg_1")]
    layouts = [
        [table["jpg_0"].to_pylist(), table["jpg_1"].to_pylist()],
        raw,
        [[{"bytes": value, "path": None} for value in side] for side in raw],
        [[{"bytes": None, "path": name} for name in table[column].to_pylist()] for column in ("jpg_0", "jpg_1")],
    ]
    for layout in layouts:
        changed = table
        for column, values in zip(("jpg_0", "jpg_1"), layout, strict=True):
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if isinstance(values[0], dict) else None
            changed = changed.set_column(changed.column_names.index(column), column, pa.array(values, kind))
        pq.write_table(changed, path)
        module = PopulationPreferences(str(preferences), batch_size=2)
        module.setup("fit")
        found = module.train_pairs[0, 0][1]
        wanted = found if wanted is None else wanted
        assert torch.equal(found, wanted)


def test_a_prompt_table_from_a_spreadsheet(tmp_path):
    text = (REPOSITORY / "experiments/prompts/tiny_eval.csv").read_text()
    path = tmp_path / "prompts.csv"
    wanted = read_prompts(REPOSITORY / "experiments/prompts/tiny_eval.csv")
    for change in (
        lambda t: "\ufeff" + t,
        lambda t: t.replace(",", ";"),
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t + ",,,,\n\n",
    ):
        path.write_bytes(change(text).encode())
        assert read_prompts(path) == wanted
    first, second, rest = text.split("\n", 2)
    path.write_text("\n".join([first, second.replace("a photo of", "a photo of a tall, smiling"), rest]))
    with pytest.raises(TextError, match=r"evaluate.prompts: .*prompts.csv, line 2 has \d+ cells"):
        read_prompts(path)


def test_lines_of_scraped_captions(tmp_path):
    faces(tmp_path / "in", 1)
    rows = [{"image": "in/000.png", "text_english": text} for text in ("one\u2028line", "one\u0085line")]
    text = "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert [record.caption for record in RegionFolder(str(tmp_path)).records()] == ["one\u2028line", "one\u0085line"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"image": "in\\000.png", "text_english": "x"}))
    with pytest.raises(TextError, match=r"line 1: image names .* a Windows path"):
        RegionFolder(str(tmp_path)).records()


# --- images and folders --------------------------------------------------------------------------------


def test_turned_photographs_get_masks_that_fit(tmp_path):
    (image,) = render(draw_scenes(3, range(1), "balanced")).image
    upright = Image.fromarray(image.permute(1, 2, 0).numpy())
    back = {1: None, 3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90}
    (tmp_path / "in").mkdir()
    for orientation, turn in back.items():
        exif = Image.Exif()
        exif[274] = orientation
        stored = upright if turn is None else upright.transpose(turn)
        stored.save(tmp_path / "in" / f"{orientation}.png", exif=exif)
    RegionMasks(str(tmp_path / "out"), str(tmp_path / "in"), TinyDetector(), grow=0).run()
    records = RegionFolder(str(tmp_path / "out")).records()
    found, left_out = usable(records, 1)
    assert len(found) == 4 and not left_out
    samples = [RegionImages(found, 64)[row, 0] for row in range(4)]
    assert samples[0].masks[0, 0].any()
    for sample in samples[1:]:
        assert torch.equal(sample.masks, samples[0].masks) and torch.equal(sample.images, samples[0].images)


def test_a_giant_a_half_and_an_odd_image_are_counted_and_the_others_go_on(tmp_path, caplog, capsys):
    folder = faces(tmp_path / "in", 3)
    Image.new("1", (14_000, 14_000)).save(folder / "panorama.png")
    (folder / "half.png").write_bytes((folder / "000.png").read_bytes()[:1000])
    long = folder / f"{'x' * 246}.png"  # one more ending and no file can be called so
    long.write_bytes((folder / "000.png").read_bytes())
    (folder / "phone.heic").write_bytes(b"")
    RegionMasks(str(tmp_path / "out"), str(folder), TinyDetector()).run()
    assert len(RegionFolder(str(tmp_path / "out")).records()) == 3
    assert "6 images, 3 unreadable" in (said := capsys.readouterr().out) and "1 .heic file (phone.heic)" in said
    assert "panorama.png is too large" in caplog.text and "half.png cannot be read" in caplog.text
    assert "its name is too long" in caplog.text


def test_what_a_mac_leaves_beside_images(tmp_path):
    folder = faces(tmp_path / "in", 3)
    for n in range(3):
        (folder / f"._{n:03}.png").write_bytes(b"\0\5\26\7")
    assert len(AiHub(str(folder)).records()) == 3


def test_thumbnails_beside_originals_are_said(tmp_path):
    faces(tmp_path / "ffhq" / "00000", 2)
    faces(tmp_path / "ffhq" / "thumbnails", 1)
    with pytest.raises(TextError, match=r"Ffhq: number 0 is .*00000/000.png and .*thumbnails/000.png"):
        Ffhq(str(tmp_path / "ffhq")).records()


def test_one_cut_off_image_of_a_hundred_is_left_out_before_the_first_step(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for n in range(100):
        Image.effect_noise((32, 32), n + 10).convert("RGB").save(tmp_path / "in" / f"{n:03}.jpg")
    cut = tmp_path / "in" / "042.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    found, left_out = usable(AiHub(str(tmp_path / "in")).records(), 1)
    assert len(found) == 99 and left_out == {"unreadable": 1} and "042.jpg" in caplog.text


@pytest.mark.parametrize("size", [(96, 96), (250, 187), (100, 150), (24, 24)])
def test_the_segmenter_takes_any_size(tmp_path, size):
    (tmp_path / "in").mkdir()
    (image,) = render(draw_scenes(3, range(1), "balanced")).image
    Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size).save(tmp_path / "in" / "x.png")
    FaceMasks(str(tmp_path / "out"), str(tmp_path / "in"), PointRendParser()).run()
    mask = tmp_path / "out/masks/face/x.png.png"
    assert not mask.exists() or read_image(mask, "mask").shape[-2:] == size[::-1]
    assert mask.exists() or max(size) != 96


# --- preparations ----------------------------------------------------------------------------------------


def test_the_readmes_lines_without_models(checkout, capsys):
    faces(checkout / "in", 1)
    assert run("prepare", "regions", "in") == 1
    assert "MediaPipePeople needs the package mediapipe; install fairanon[eval]" in capsys.readouterr().err
    assert run("prepare", "face_masks", "in") == 1
    assert "models/parsing_bisenet.pth is missing; facexlib's release v0.2.0" in capsys.readouterr().err
    assert run("prepare", "face_masks", "in", "--prepare.init_args.parser", "fairanon.evaluators.PointRendParser") == 0
    assert "1 images, 0 unreadable" in capsys.readouterr().out, "not with the other parser's file"
    shutil.rmtree(checkout / "data")
    assert regions("in/000.png") == 1 and "is a file, not a folder" in capsys.readouterr().err
    assert regions("in", "--prepare.init_args.folder", "in/out") == 1
    assert not (checkout / "data").exists() and not (checkout / "in" / "out").exists()


def test_a_folder_that_moved_along_with_its_images(checkout):
    faces(checkout / "home/photos", 3)
    assert regions("home/photos", "--prepare.init_args.folder", "home/masks") == 0
    (checkout / "home").rename(checkout / "cluster")
    assert all(record.image.exists() for record in RegionFolder("cluster/masks").records())
    assert regions("cluster/photos", "--prepare.init_args.folder", "cluster/masks") == 0, "it is the same folder"
    (checkout / "cluster/photos").rename(checkout / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"metadata.jsonl names images in .*photos, which is not there"):
        RegionFolder("cluster/masks").records()


def test_finished_masks_are_never_made_of_other_images(checkout, capsys):
    faces(checkout / "holiday", 3)
    assert regions("holiday") == 0
    mine = (checkout / "data/regions/metadata.jsonl").read_text()
    faces(checkout / "data/images", 3, seed=4)
    assert regions("data/images") == 1
    assert "data/regions is finished and was made of other images" in capsys.readouterr().err
    assert (checkout / "data/regions/metadata.jsonl").read_text() == mine


# --- surroundings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "abc", "0" * 40])
def test_wandb_without_network_home_or_account(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
    else:
        monkeypatch.setenv("WANDB_API_KEY", key)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    wandb.teardown()  # it has read the environment once
    (logger,) = _wandb_loggers(tmp_path, Described())
    assert logger._offline
    logger.experiment.finish()


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "git" not in versions() and versions()["torch"]


# --- stopping and going on -------------------------------------------------------------------------------


def start(checkout, *words):
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background it is ignored, and children inherit that
    return subprocess.Popen(
        [sys.executable, "-m", "fairanon", *words], cwd=checkout, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def once(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def last(checkout):
    return next(iter(checkout.glob("runs/popalign_gaussian/2*/checkpoints/last.ckpt")), None)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_training_says_where_it_goes_on(checkout, number, code):
    process = start(checkout, *STUDY)
    once(lambda: last(checkout), process)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in said
    assert "fairanon: stopped at step" in said and "the same command goes on from step" in said
    (record,) = checkout.glob("runs/popalign_gaussian/2*/run.json")
    assert not json.loads(record.read_text())["finished"]


@pytest.mark.slow
def test_a_stopped_preparation_goes_on(checkout):
    (checkout / "in").mkdir()
    for n in range(400):
        Image.effect_noise((64, 64), n % 90 + 10).save(checkout / "in" / f"{n:03}.png")
    words = ["prepare", "regions", "in", "--prepare.init_args.detector", "fairanon.evaluators.TinyDetector",
             "--prepare.init_args.folder", "out"]  # fmt: skip
    process = start(checkout, *words)
    once(lambda: len(list(checkout.glob("out/masks/done/*"))) > 5, process)
    assert run(*words) == 1, "two at once: this one says that the other is at work"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said and "stopped; the same command goes on" in said
    done = len(list(checkout.glob("out/masks/done/*.json")))
    assert 5 < done < 400 and not (checkout / "out/metadata.jsonl").exists()


def test_a_damaged_checkpoint_is_named_and_other_runs_damage_does_not_matter(checkout, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    words = [*STUDY, "--trainer.max_steps", "60"]
    monkeypatch.setattr("fairanon.run.training.finish", lambda folder: None)  # as if it had been killed at the end
    assert run(*words) == 0
    checkpoint = last(checkout)
    whole = checkpoint.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        checkpoint.write_bytes(damaged)
        assert run(*words) == 1
        said = capsys.readouterr().err
        assert f"{checkpoint.relative_to(checkout)} is damaged; delete it" in said and "--fresh" in said
    (checkpoint.parent.parent / "run.json").write_text("")
    monkeypatch.undo()
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert run(*words, "--seed_everything", "5") == 0


@pytest.mark.slow
def test_the_same_training_typed_twice(checkout, capsys, monkeypatch):
    process = start(checkout, *STUDY)
    once(lambda: last(checkout), process)
    assert run(*STUDY) == 1
    assert "is being worked on by another process; wait for it, or add --fresh" in capsys.readouterr().err
    process.kill()
    process.communicate()


def test_an_error_that_nobody_foresaw_names_its_traceback(checkout, monkeypatch, capsys):
    def broken(*_):
        raise KeyError("nobody thought of this")

    monkeypatch.setattr("fairanon.run.training.fit", broken)
    assert run(*STUDY) == 1
    said = capsys.readouterr().err
    assert "KeyError" in said and "Traceback" not in said
    (path,) = (checkout / "runs/errors").iterdir()
    assert path.name in said and "nobody thought of this" in path.read_text()
    monkeypatch.setenv("FAIRANON_DEBUG", "1")
    with pytest.raises(KeyError):
        run(*STUDY)
