"""Stages and their progress: each once, in order, and again from where a kill left them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from backhaul.client.errors import ClientError
from backhaul.demo.display import Display, size
from backhaul.demo.errors import DemoFolderWrong, DemoTaken, ProgressDamaged, StageFailed, StageUnknown
from backhaul.demo.lifecycle import STAGES, Wish, clean, holding, run_demo
from backhaul.demo.plan import Plan
from backhaul.demo.progress import FILE, Progress
from backhaul.demo.stages import Run, Stage, run_stages


def make_run(folder: Path, printed: io.StringIO | None = None) -> Run:
    """A run without an operator: the stages of these tests need none."""
    progress = Progress(folder, as_root=False)
    if progress.exists:
        progress.load()
    console = Console(file=printed or io.StringIO(), width=200)
    return Run(Plan(folder, as_root=False), cast(Any, None), progress, Display(console))


def counting(folder: Path, name: str, then: Any = None) -> Stage:
    def act(_: Run) -> str:
        with (folder / "acts").open("a") as file:
            file.write(name + "\n")
        if then is not None:
            then()
        return f"{name} happened"

    return Stage(name, f"doing {name}", act)


def acts(folder: Path) -> list[str]:
    return (folder / "acts").read_text().split()


def test_each_stage_runs_once_and_says_one_line(tmp_path: Path) -> None:
    stages, printed = [counting(tmp_path, "one"), counting(tmp_path, "two")], io.StringIO()
    run_stages(stages, make_run(tmp_path, printed))
    run_stages(stages, make_run(tmp_path, printed))
    assert acts(tmp_path) == ["one", "two"]
    assert printed.getvalue().count("one happened") == printed.getvalue().count("two happened") == 1


def test_until_stops_after_its_stage_and_a_later_run_goes_on(tmp_path: Path) -> None:
    stages = [counting(tmp_path, name) for name in ("one", "two", "three")]
    run_stages(stages, make_run(tmp_path), until="two")
    assert acts(tmp_path) == ["one", "two"]
    run_stages(stages, make_run(tmp_path))
    assert acts(tmp_path) == ["one", "two", "three"]


def test_a_failed_stage_is_repeated_and_names_its_reason(tmp_path: Path) -> None:
    def fail() -> None:
        raise ClientError("BH-X", "the reason", "")

    with pytest.raises(StageFailed, match="the reason"):
        run_stages([counting(tmp_path, "one"), counting(tmp_path, "two", fail)], make_run(tmp_path))
    run_stages([counting(tmp_path, "one"), counting(tmp_path, "two")], make_run(tmp_path))
    assert acts(tmp_path) == ["one", "two", "two"]


def test_an_unknown_stage_is_refused_before_anything_happens(tmp_path: Path) -> None:
    with pytest.raises(StageUnknown, match="set-up, protected"):
        run_demo(Wish(tmp_path / "demo", until="nowhere"), Display())
    assert not (tmp_path / "demo").exists()


def test_a_killed_run_finds_its_facts(tmp_path: Path) -> None:
    source = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from demo.test_stages import counting, make_run
from backhaul.demo.stages import Stage, run_stages
folder = Path({str(tmp_path)!r})
def die(run):
    run.progress.note(made="it")
    os.kill(os.getpid(), signal.SIGKILL)
run_stages([counting(folder, "one"), Stage("two", "dying", die)], make_run(folder))
"""
    done = subprocess.run([sys.executable, "-c", source], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, "the fault happened"
    run = make_run(tmp_path)
    assert (list(run.progress.noted.done), run.progress.fact("made")) == (["one"], "it")
    run_stages([counting(tmp_path, "one"), counting(tmp_path, "two")], run)
    assert acts(tmp_path) == ["one", "two"]


def test_a_damaged_progress_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ProgressDamaged):
        Progress(tmp_path, as_root=False).load()


def test_one_demo_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(DemoTaken):
        clean(tmp_path)


def test_what_is_no_demo_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(DemoFolderWrong, match="not empty"):
        run_demo(Wish(tmp_path), Display())
    with pytest.raises(DemoFolderWrong, match="nothing of it is removed"):
        clean(tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_folder_with_a_demo_wants_resume(tmp_path: Path) -> None:
    Progress(tmp_path, os.geteuid() == 0).begin()
    with pytest.raises(DemoFolderWrong, match="holds a demo already"):
        run_demo(Wish(tmp_path), Display())


def test_the_stages_have_names_of_their_own() -> None:
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (512, 2048, 3 << 20, 5 << 30)] == ["512 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]
