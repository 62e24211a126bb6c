"""The command line: words and recipes to typed values, help, refusals, and what users read of errors."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import cli
from vit import commandline
from vit.commandline import current_config, run_command, verb_options
from vit.foundation import UserError

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class OptimOptions:
    """How the weights move.

    Args:
        lr: learning rate at the peak.
        momentum: share that is kept.
        steps: where the rate drops, such as
            [10, 20].
    """

    lr: float = 0.25
    momentum: float | None = None
    steps: list[int] = field(default_factory=lambda: [30])


@dataclass(frozen=True)
class WeightOptions:
    """The weights.

    Args:
        pretrained: a checkpoint.
        frozen: keep them.
    """

    pretrained: str | None = None
    frozen: bool = False


@dataclass(frozen=True)
class ModelOptions(WeightOptions):
    """The model.

    Args:
        pretrained: a checkpoint of a model.
        image_size: pixels, one number or [height, width].
        pool: what the head reads.
    """

    image_size: int | list[int] | None = None
    pool: Literal["class", "mean"] | None = None


calls: list[dict[str, Any]] = []


def train(
    model: ModelOptions,
    optim: OptimOptions,
    *,
    run: str,
    seed: int = 0,
    device: Literal["auto", "cpu"] = "auto",
    overwrite: bool = False,
) -> None:
    """Teach a model.

    Example: vit train --config toy/short --run runs/a

    Args:
        model: the model.
        optim: how the weights move.
        run: folder of the run.
        seed: of everything random.
        device: where to compute.
        overwrite: write over files.
    """
    calls.append(locals() | {"yaml": current_config()})


def explain(model: str, images: list[str], optim: OptimOptions, *, out: str, method: str = "rollout") -> None:
    """Show where a model looked.

    Example: vit explain m.pt photos --method rollout --out maps

    Args:
        model: a checkpoint.
        images: files or folders.
        out: folder for the maps.
        method: how to explain.
    """
    calls.append(locals())


def failing(error: BaseException) -> dict[str, Callable[..., None]]:
    def fail() -> None:
        """Fail.

        Example: vit fail
        """
        raise error

    return {"fail": fail}


VERBS = {"train": train, "explain": explain}


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the shipped recipes, of which there are two. The working folder is empty."""
    folder = tmp_path / "configs"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "short.yaml").write_text("optim:\n  lr: 1e-4\n  momentum: 0.5\nseed: 3\n")
    (folder / "toy" / "long.yaml").write_text("optim: {momentum: 0.75}\n")
    monkeypatch.setattr(commandline, "RECIPE_FOLDERS", [tmp_path / "absent", folder])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def run(line: str | list[str], verbs: dict[str, Callable[..., None]] = VERBS) -> int:
    return run_command(verbs, line.split() if isinstance(line, str) else line)


def called(line: str | list[str]) -> dict[str, Any]:
    assert run(line) == 0
    return calls[-1]


def refused(line: str | list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed for a line that must not be run."""
    assert run(line) == 2
    assert not calls
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) <= 5
    assert "Traceback" not in printed.err
    assert "usage" not in printed.err.lower()
    return printed.err


def recipe(text: str, name: str = "r.yaml") -> str:
    Path(name).write_text(text)
    return name


# Words


def test_words_become_typed_values() -> None:
    values = called("train --run a --optim.lr 1e-4 --seed=-7 --device cpu --model.pool mean --overwrite")
    assert values["optim"] == OptimOptions(lr=1e-4)
    assert values["model"] == ModelOptions(pool="mean")
    assert (values["run"], values["seed"], values["device"], values["overwrite"]) == ("a", -7, "cpu", True)


@pytest.mark.parametrize(
    "line",
    [
        "--out o --optim.lr 2 m a.jpg b.jpg",
        "m --out o a.jpg --optim.lr 2 b.jpg",
        "m a.jpg b.jpg --optim.lr=2 --out=o",
    ],
)
def test_options_stand_before_between_and_after_positionals(line: str) -> None:
    values = called(f"explain {line}")
    assert (values["model"], values["images"], values["out"]) == ("m", ["a.jpg", "b.jpg"], "o")
    assert values["optim"].lr == 2.0


@pytest.mark.parametrize("word", ["null", "2024", "1e-4", "true", "a: b", "[x", "*.jpg", "{a}", "C:\\a", "é b"])
def test_text_stays_as_it_was_written(word: str) -> None:
    values = called(["explain", word, word, word, "--out", word])
    assert (values["model"], values["images"], values["out"]) == (word, [word, word], word)


@pytest.mark.parametrize(("text", "value"), [("112", 112), ("[112,96]", [112, 96]), ("null", None)])
def test_union_of_number_and_list(text: str, value: object) -> None:
    assert called(f"train --run a --model.image_size {text}")["model"].image_size == value
    path = recipe(f"model:\n  image_size: {text}\n")
    assert called(f"train --run a --config {path}")["model"].image_size == value


def test_a_flag_takes_only_true_or_false() -> None:
    assert called("train --overwrite false --run a")["overwrite"] is False
    assert called("train --overwrite true --run a")["overwrite"] is True
    assert called("train --overwrite=false --run a")["overwrite"] is False

    def look(images: list[str], *, strict: bool = False) -> None:
        """Look."""
        calls.append(locals())

    assert run("look --strict a.jpg", {"look": look}) == 0
    assert calls[-1] == {"images": ["a.jpg"], "strict": True}


def test_the_last_of_equal_options_counts() -> None:
    assert called("train --run a --seed 1 --seed 2")["seed"] == 2


def test_default_lists_are_not_shared() -> None:
    assert called("train --run a")["optim"].steps is not called("train --run b")["optim"].steps


def test_environment_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vit"])
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("SEED", "VIT_SEED", "VIT_TRAIN__SEED", "VALUE", "VIT_VALUE"):
        monkeypatch.setenv(name, "no number")
    values = called("train --run a --optim.lr 1")
    assert (values["seed"], values["optim"].lr) == (0, 1.0)


# Mistakes in words


@pytest.mark.parametrize(
    ("line", "named", "near"),
    [
        ("train --run a --optim.l 3", "--optim.l", "--optim.lr"),
        ("train --run a --lr 3", "--lr", "--optim.lr"),
        ("train --run a --model.image-size 3", "--model.image-size", "--model.image_size"),
        ("train --run a --see 3", "--see", "--seed"),
        ("train --run a --poo mean", "--poo", "--model.pool"),
        ("train --run a --optim 3", "--optim", "--optim.lr"),
        ("train --run a --optim.lr.x=3", "--optim.lr.x=3", "--optim.lr"),
        ("train --run a --confg r.yaml", "--confg", "--config"),
        ("train --run a -s 3", "-s", ""),
        ("train --run a --debug=1", "--debug=1", "--debug"),
    ],
)
def test_unknown_option(line: str, named: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(line, capsys)
    assert text.startswith(f"vit train: unknown option {named!r}")
    assert f"did you mean {near!r}?" in text or not near
    assert "vit train --help" in text


@pytest.mark.parametrize(
    ("line", "where", "got", "allowed"),
    [
        ("--optim.lr fast", "--optim.lr", "'fast'", "NUMBER"),
        ("--optim.lr null", "--optim.lr", "'null'", "NUMBER"),
        ("--seed 1.5", "--seed", "'1.5'", "INTEGER"),
        ("--device gpu", "--device", "'gpu'", "auto|cpu"),
        ("--model.pool max", "--model.pool", "'max'", "class|mean or null"),
        ("--overwrite=maybe", "--overwrite", "'maybe'", "true|false"),
        ("--model.image_size big", "--model.image_size", "'big'", "INTEGER or [INTEGER, ...] or null"),
        ("--optim.steps x.yaml", "--optim.steps", "'x.yaml'", "[INTEGER, ...]"),
    ],
)
def test_wrong_type(line: str, where: str, got: str, allowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text("[1, 2]")  # a file of the right type is still not read
    text = refused(f"train --run a {line}", capsys)
    assert text.splitlines()[0].startswith(f"vit train: {where} takes {allowed}; got {got}")


def test_the_nearest_choice_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused("train --run a --device atuo", capsys)
    assert text.splitlines()[0] == "vit train: --device takes auto|cpu; got 'atuo' (did you mean 'auto'?)"


def test_endless_value_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(refused(["train", "--run", "a", "--seed", "9\n" * 5000], capsys)) < 400
    assert len(refused(["train", "--run", "a", "--" + "x\n" * 5000], capsys)) < 400


def test_missing_values_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "IMAGES and --out must be given" in refused("explain m", capsys)
    assert "--run needs a value: TEXT" in refused("train --seed 1 --run", capsys)
    assert "--run needs a value" in refused("train --run --seed 1", capsys)


def test_word_too_many(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "unexpected word 'stray'" in refused("train --run a stray", capsys)
    (tmp_path / "config.yaml").touch()
    told = refused(f"train --run a {tmp_path}", capsys)
    assert f"A run is continued by: --config {tmp_path / 'config.yaml'} --resume" in told


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused("explian m --out o", capsys)
    assert "unknown verb 'explian' (did you mean 'explain'?)" in text
    assert "The verbs are: train, explain" in text


# Recipes


def test_words_win_over_recipes_wherever_they_stand() -> None:
    for line in ("--optim.lr 1 --config toy/short", "--config toy/short --optim.lr 1"):
        values = called(f"train {line} --run a")
        assert values["optim"] == OptimOptions(lr=1.0, momentum=0.5)
        assert values["seed"] == 3


def test_later_recipes_win() -> None:
    first = called("train --config toy/short --config toy/long --run a")
    second = called("train --config toy/long --config toy/short --run a")
    assert first["optim"] == OptimOptions(lr=1e-4, momentum=0.75)
    assert second["optim"] == OptimOptions(lr=1e-4, momentum=0.5)


def test_numbers_in_recipes_have_their_type() -> None:
    optim = called("train --config toy/short --run a")["optim"]
    assert optim.lr == 1e-4
    assert isinstance(optim.lr, float)


def test_recipe_by_path_with_nulls_and_empty_groups() -> None:
    path = recipe("model:\noptim:\n  momentum: null\n  steps: [1, 2]\nrun: 2024-01-31\nseed: 4\n")
    values = called(f"train --config toy/short --config {path}")
    assert values["optim"] == OptimOptions(lr=1e-4, momentum=None, steps=[1, 2])
    assert (values["run"], values["seed"], values["model"]) == ("2024-01-31", 4, ModelOptions())


def test_recipe_of_a_windows_editor() -> None:
    Path("r.yaml").write_bytes(b"\xef\xbb\xbfseed: 5\r\nrun: caf\xc3\xa9\r\n")
    values = called("train --config r.yaml")
    assert (values["seed"], values["run"]) == (5, "café")


def test_empty_recipe_changes_nothing() -> None:
    assert called(f"train --run a --config {recipe('# nothing')}")["optim"] == OptimOptions()


def test_positionals_in_a_recipe() -> None:
    path = recipe("model: m\nimages: [a, b]\nout: o\n")
    assert called(f"explain --config {path}")["images"] == ["a", "b"]
    assert called(f"explain --config {path} other")["model"] == "other"


def test_recipes_in_the_package_come_first(tmp_path: Path) -> None:
    inside = tmp_path / "absent"
    inside.mkdir()
    (inside / "mine.yaml").write_text("seed: 9")
    assert list(commandline.shipped_recipes()) == ["mine"]
    assert called("train --run a --config mine")["seed"] == 9


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    text = refused("train --run a --config toy/shrt", capsys)
    assert "'toy/shrt' (did you mean 'toy/short'?)" in text
    assert "toy/long, toy/short" in text
    assert "no file or recipe 'gone.yaml'" in refused("train --run a --config gone.yaml", capsys)
    assert "can't read" in refused(["train", "--config", "x" * 5000], capsys)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("optim:\n  l: 3\n", "r.yaml: unknown key 'optim.l' (did you mean 'optim.lr'?)"),
        ("lr: 3\n", "r.yaml: unknown key 'lr' (did you mean 'optim.lr'?)"),
        ("optim: 3\n", "r.yaml: unknown key 'optim' (did you mean 'optim.lr'?)"),
        ("seed: 1\noptim: {lr: [\n", "r.yaml, line 3: "),
        ("seed: 1\nseed: 2\n", "r.yaml, line 2: the key 'seed' is given twice"),
        ("? [a]\n: 1\n", "r.yaml, line 1: "),
        ("optim:\n  lr: fast\n", "r.yaml: optim.lr takes NUMBER; got 'fast'"),
        ("seed: null\n", "r.yaml: seed takes INTEGER; got 'null'"),
        ("device: null\n", "r.yaml: device takes auto|cpu; got 'null'"),
        ("seed: {a: 1}\n", "r.yaml: seed takes INTEGER; got"),
        ("- seed\n", "r.yaml holds no options"),
        ("seed: 1\n---\nseed: 2\n", "r.yaml"),
        ("seed: \x07\n", "r.yaml"),
        ("[" * 100_000, "nested too deeply"),
        ("# " + "x" * 1_000_000, "larger than a megabyte"),
    ],
)
def test_mistakes_in_recipes(text: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wanted in refused(f"train --run a --config {recipe(text)}", capsys)


def test_checkpoint_is_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("weights.pth").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    assert "not text in UTF-8" in refused("train --run a --config weights.pth", capsys)


# The resolved configuration


def test_printed_config_can_be_fed_back(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "--config", "toy/short", "--run", "null", "--model.image_size", "[112, 96]"]
    line += ["--model.pretrained", "1e-4"]
    values = called(line)
    assert run([*line, "--print_config"]) == 0
    assert len(calls) == 1
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["optim"] == {"lr": 1e-4, "momentum": 0.5, "steps": [30]}
    again = called(f"train --config {recipe(printed)}")
    assert again | {"yaml": ""} == values | {"yaml": ""}  # which names the recipe that it came from
    assert yaml.safe_load(again["yaml"]) == yaml.safe_load(values["yaml"])


def test_config_can_be_printed_before_everything_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain --print_config m") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"] == "m"
    assert "out" not in printed


def test_a_verb_knows_its_config() -> None:
    assert current_config() is None
    values = called("train --run a --seed 5")
    assert yaml.safe_load(values["yaml"]) == {
        "model": {"pretrained": None, "frozen": False, "image_size": None, "pool": None},
        "optim": {"lr": 0.25, "momentum": None, "steps": [30]},
        "run": "a",
        "seed": 5,
        "device": "auto",
        "overwrite": False,
    }
    assert current_config() is None


# Nothing in words or recipes can run code

PAYLOADS = [
    "model:\n  class_path: poison.Poison\n",
    "model:\n  class_path: poison.Poison\n  init_args: {}\n",
    'model: {"class\\u005fpath": poison.Poison}\n',
    "model.class_path: poison.Poison\n",
    "optim:\n  steps:\n  - class_path: poison.Poison\n",
    "model:\n  init_args: {pretrained: x}\n",
    "seed: !!python/object/apply:os.system ['touch marker']\n",
    "seed: !!python/object/new:poison.Poison []\n",
    "seed: !!python/name:poison.Poison ''\n",
    "%TAG !p! tag:yaml.org,2002:python/\n---\nseed: !p!module:poison ''\n",
    "seed: !anything 3\n",
    "seed: !<tag:yaml.org,2002:python/module:poison> ''\n",
]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that appears when the module `poison` is imported."""
    marker = Path("marker").resolve()
    Path("poison.py").write_text(f"open({str(marker)!r}, 'w')\nclass Poison:\n    pass\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return marker


@pytest.mark.parametrize("payload", PAYLOADS)
def test_recipe_that_names_code(payload: str, poison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(f"train --run a --config {recipe(payload)}", capsys)
    assert "r.yaml" in text
    assert "refused" in text
    assert not poison.exists()
    assert "poison" not in sys.modules


@pytest.mark.parametrize(
    "words",
    [
        ["--model.class_path", "poison.Poison"],
        ["--model", '{"class_path": "poison.Poison"}'],
        ["--model=poison.Poison"],
        ["--model.pretrained", '{"class_path": "poison.Poison"}'],
        ["--model.pretrained={class_path: poison.Poison}"],
        ["--optim.steps", "[{class_path: poison.Poison}]"],
        ["--optim.steps", "!!python/object/apply:os.system ['touch marker']"],
        ["--optim.lr=!!python/object/apply:os.system ['touch marker']"],
        ["--run", "!!python/object/apply:os.system ['touch marker']"],
        ["--optim.steps", "[&a !!python/module:poison ''"],
        ["--seed", "!x 3"],
        ["--config", "r.yaml"],
        ["--print_config", "--config", "r.yaml"],
    ],
)
def test_words_that_name_code(words: list[str], poison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(PAYLOADS[1])
    refused(["train", "--run", "a", *words], capsys)
    assert not poison.exists()
    assert "poison" not in sys.modules


def test_the_payloads_would_bite(poison: Path) -> None:
    """Shows that the tests above can fail: with what we avoid, the marker appears."""
    yaml.unsafe_load(PAYLOADS[6])
    assert poison.exists()


def test_image_whose_name_looks_like_a_tag(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write ./ before it" in refused("explain m !best.jpg --out o", capsys)
    assert called("explain m ./!best.jpg --out o")["images"] == ["./!best.jpg"]


def test_recipe_that_would_grow(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    start = time.perf_counter()
    assert "anchors and aliases" in refused(f"train --run a --config {recipe(chr(10).join(lines))}", capsys)
    assert time.perf_counter() - start < 2


def test_values_are_never_read_from_files_or_nets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", connect)
    recipe("lr: 3", "x.yaml")
    recipe("3", "seed.txt")
    assert "unknown option '--optim'" in refused("train --run a --optim x.yaml", capsys)
    assert "got '@seed.txt'" in refused("train --run a --seed @seed.txt", capsys)
    assert "got 'seed.txt'" in refused("train --run a --seed seed.txt", capsys)
    assert "no file or recipe" in refused("train --run a --config http://127.0.0.1:9/r.yaml", capsys)
    assert "got 'http" in refused("train --run a --optim.steps http://127.0.0.1:9/r.yaml", capsys)
    assert called("train --run @seed.txt")["run"] == "@seed.txt"
    assert called("explain m @seed.txt --out o")["images"] == ["@seed.txt"]


# Help


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "Teach a model." in text
    assert "Show where a model looked." in text
    assert text.count("Example:") == 1
    assert run([]) == 2
    assert capsys.readouterr().out == text
    assert run("-h") == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("vit ")


def test_help_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain m --nonsense --help") == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    assert text.startswith("Usage: vit explain MODEL IMAGES... --out TEXT [options]\n\nShow where a model")
    assert "Example: vit explain m.pt photos --method rollout --out maps" in text
    assert "--optim.lr NUMBER learning rate at the peak (default: 0.25)" in flat
    assert "--optim.momentum NUMBER share that is kept" in flat
    assert "--optim.steps [INTEGER, ...] where the rate drops, such as [10, 20] (default: [30])" in flat
    assert "--method TEXT how to explain (default: rollout)" in flat
    assert "--out TEXT folder for the maps (required)" in flat
    assert "MODEL a checkpoint" in flat
    assert "--optim CONFIG" not in text

    assert run("train -h") == 0
    flat = " ".join(capsys.readouterr().out.split())
    assert "optim: how the weights move --optim.lr" in flat
    assert "--model.pretrained TEXT a checkpoint of a model --model.frozen keep them --model.image_size" in flat
    assert "--device auto|cpu where to compute (default: auto)" in flat
    assert "--overwrite write over files model: the model" in flat
    assert "--seed INTEGER of everything random (default: 0)" in flat
    assert "--print_config print" in flat


def test_overview_of_the_real_verbs_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", cli.VERBS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(f"  {verb} ") for line in lines) for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_the_real_verbs(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{verb} --help", cli.VERBS) == 0
    text = capsys.readouterr().out
    assert f"Example: vit {verb} " in text
    assert len(text.splitlines()) < 200
    assert max(map(len, text.splitlines())) <= 100
    undescribed = [option.name for option in verb_options(cli.VERBS[verb]) if not option.help]
    assert not undescribed


# Errors of a verb


def test_mistake_that_the_user_can_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail", failing(UserError("The folder x is empty.\nGive another."))) == 1
    assert capsys.readouterr().err == "vit fail: The folder x is empty.\nGive another.\n"
    assert run("fail", failing(UserError("\n".join("abcdefgh")))) == 1
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_unexpected_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail", failing(KeyError("first\nsecond" * 9))) == 1
    text = capsys.readouterr().err
    assert text.startswith("vit fail: KeyError: ")
    assert "run again with --debug" in text
    assert "Traceback" not in text
    assert len(text.splitlines()) <= 5
    assert run("fail", failing(ValueError("one\ntwo"))) == 1
    assert "two" not in capsys.readouterr().err
    assert run("fail", failing(ValueError("x" * 9999))) == 1
    assert len(capsys.readouterr().err) < 500


def test_refusal_by_the_system_names_the_file_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere" / "file"
    with pytest.raises(OSError, match="No such file") as caught:
        missing.read_bytes()
    assert run("fail", failing(caught.value)) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"vit fail: the system refused {missing}: No such file or directory."
    assert "free disk space" in second


@pytest.mark.parametrize("line", ["fail --debug", "--debug fail"])
def test_debug_shows_the_traceback(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line, failing(ZeroDivisionError("x"))) == 1
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert "raise error" in text


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA is full"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: 9 bytes"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_out_of_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail", failing(error)) == 1
    text = capsys.readouterr().err
    assert "out of memory" in text
    assert all(remedy in text for remedy in ("batch size", "bf16", "accumulate"))
    assert len(text.splitlines()) <= 5


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail", failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "vit fail: interrupted.\n"


def test_reader_that_has_gone() -> None:
    """The output goes into a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "cli.py", "--help"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": ""},  # so that something is left for the exit
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode == 141


def test_help_imports_nothing_slow() -> None:
    """And so answers at once; the time itself depends on how busy the machine is, the modules do not."""
    script = "import sys, cli; cli.main(['--help']); cli.main(['train', '--help']); print(*sys.modules)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert "vit.commandline" in loaded
    assert not loaded & {"torch", "numpy", "lightning", "timm", "torchvision", "albumentations", "cv2"}


def test_the_config_names_its_recipes_and_hands_them_on(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("optim: {lr: 0.5}\n")
    (tmp_path / "two.yaml").write_text("seed: 3\n")
    first = called(f"train --run a --config {tmp_path / 'one.yaml'} --config {tmp_path / 'two.yaml'}")["yaml"]
    header = [f"# recipe: {tmp_path / name}.yaml" for name in ("one", "two")]
    assert first.splitlines()[:2] == header
    (tmp_path / "config.yaml").write_text(first)
    again = called(f"train --config {tmp_path / 'config.yaml'}")["yaml"]
    assert again == first
