"""Runs side by side, as their folders tell of them."""

from pathlib import Path

import pytest
import yaml

import cli
from vit.foundation import UserError
from vit.training.runs import differing, find_runs, read_run, run_table


def make(
    folder: Path, *, top1: list[float], losses: tuple[float, ...] = (0.7,) * 3, lr: float = 1e-4, seed: int = 0,
    device: str = "cpu", times: bool = True, recipe: str = "classify/finetune", data: str = "photos",
) -> Path:  # fmt: skip
    folder.mkdir(parents=True)
    trainer = {"max_epochs": 5, "max_time": None}
    options = {"data": {"root": data}, "optim": {"lr": lr}, "trainer": trainer, "seed": seed, "device": device}
    (folder / "config.yaml").write_text(f"# recipe: {recipe}\n{yaml.safe_dump(options)}")
    lines = ["epoch,step,lr,train_loss_step,train_loss_epoch,val_loss,val_top1"]
    for epoch, value in enumerate(top1, 1):
        lines += [f"{epoch},{epoch * 10},0.1,0.5,,,", f"{epoch},{epoch * 10},,,0.5,{losses[epoch - 1]},{value}"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if times:
        rows = [f"{n},{n * 1500.4},{rate}" for n, rate in enumerate((30.0, 90.0, 31.0)[: len(top1)], 1)]
        (folder / "times.csv").write_text("\n".join(["epoch,seconds,images_per_second", *rows]) + "\n")
    return folder


def test_a_row_says_what_a_run_was_and_came_to(tmp_path: Path) -> None:
    runs = [
        read_run(make(tmp_path / "a", top1=[0.5, 0.7, 0.6])),
        read_run(make(tmp_path / "b", top1=[0.25], lr=1e-3, device="cuda", times=False, recipe="my.yaml")),
        read_run(make(tmp_path / "c", top1=[], times=False)),
    ]
    assert differing(runs) == ["optim.lr"]  # the device makes no other run
    _, columns, rows = run_table(runs)
    assert columns[1:] == ["recipe", "best", "in epoch", "last", "epochs", "images/s", "time", "options that differ"]
    assert rows[0] == [
        "a", "classify/finetune", "70.0%", "2", "60.0%", "3/5", "31.0", "1:15:01", "optim.lr=0.0001",
    ]  # fmt: skip
    assert rows[1][1:] == ["my.yaml", "25.0%", "1", "25.0%", "1/5", "", "", "optim.lr=0.001"]
    assert rows[2][2:6] == ["", "", "", "0/5"]


def test_patches_of_the_default_size_are_those_of_16_pixels_that_were_written_out(tmp_path: Path) -> None:
    runs = []
    for name, patch_size, pretrained in (("a", 16, None), ("b", None, None), ("c", 16, "x"), ("d", None, "x")):
        config = make(tmp_path / name, top1=[0.5]) / "config.yaml"
        model = {"model": {"patch_size": patch_size, "pretrained": pretrained}}
        config.write_text(config.read_text(encoding="utf-8") + yaml.safe_dump(model), encoding="utf-8")
        runs.append(read_run(config.parent))
    assert differing(runs[:2]) == []
    assert differing(runs[2:]) == ["model.patch_size"]  # of a checkpoint it is the checkpoint's


def test_runs_on_other_data_say_so(tmp_path: Path) -> None:
    runs = [read_run(make(tmp_path / name, top1=[0.5], data=name)) for name in ("gulls", "terns")]
    assert [row[-1] for row in run_table(runs)[2]] == ["data.root=gulls", "data.root=terns"]


def test_of_equal_epochs_that_of_the_lower_loss_is_the_best_as_the_model_folder_is(tmp_path: Path) -> None:
    assert read_run(make(tmp_path / "a", top1=[0.5, 0.7, 0.7], losses=(0.9, 0.8, 0.6))).best == 2


def test_a_row_that_a_kill_cut_off_does_not_count(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", top1=[0.5, 0.7])
    with (folder / "metrics.csv").open("a") as file:
        file.write("3,30,,,0.5,0.6")
    assert read_run(folder).values == (0.5, 0.7)


def test_epochs_without_a_speed_do_not_count_in_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", top1=[0.5, 0.7])
    (folder / "times.csv").write_text("epoch,seconds,images_per_second\n1,10.0,\n2,20.0,30.0\n")
    assert read_run(folder).images_per_second == 30


def test_of_an_option_that_most_runs_have_the_same_only_the_others_tell(tmp_path: Path) -> None:
    rates = {"a": 1e-4, "b": 1e-4, "c": 1e-3, "d": 1e-4}
    runs = [read_run(make(tmp_path / name, top1=[0.5], lr=lr)) for name, lr in rates.items()]
    title, _, rows = run_table(runs)
    assert [row[-1] for row in rows] == ["", "", "optim.lr=0.001", ""]
    assert "what most have: optim.lr=0.0001" in title


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.yaml", b"a: [1"), ("config.yaml", b"- 1"), ("metrics.csv", b"\xff\xfe\0"), ("times.csv", b"epoch\n1\n")],
)
def test_a_damaged_run_is_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: bytes
) -> None:
    make(tmp_path / "a", top1=[0.5])
    (make(tmp_path / "b", top1=[0.25]) / file).write_bytes(content)
    assert cli.main(["runs", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "50.0%" in told.out
    assert f"{tmp_path / 'b'} is not a readable run" in told.err
    assert cli.main(["runs", str(tmp_path / "b")]) == 1


def test_of_a_loss_the_lowest_is_the_best(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", top1=[])
    (folder / "metrics.csv").write_text("epoch,step,val_loss\n1,10,0.9\n2,20,0.5\n3,30,0.6\n")
    assert run_table([read_run(folder)])[2][0][2:5] == ["loss 0.5000", "2", "loss 0.6000"]


def test_runs_are_found_below_a_folder_each_once(tmp_path: Path) -> None:
    for name in ("a", "folds/fold_1", "folds/fold_2"):
        make(tmp_path / name, top1=[0.5])
    assert [path.name for path in find_runs([str(tmp_path / "folds"), str(tmp_path)])] == ["fold_1", "fold_2", "a"]
    with pytest.raises(UserError, match=r"There is no folder .*fold \(did you mean 'folds'"):
        find_runs([str(tmp_path / "fold")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        find_runs([str(tmp_path / "empty")])


def test_the_verb_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a", top1=[0.5, 0.7])
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "70.0%" in capsys.readouterr().out
