"""The study behind the defaults: all methods in three settings with equal tuning and several seeds, and its tables.

    python -m benchmarks.study --gestures PATH_TO_HAND_GESTURES_RGBD --cifar PATH_TO_CIFAR10

gestures: RGB teacher to depth student, the same ten classes, 10 % of the labels. other_task: the teacher was trained
on five of the gestures and the student learns the other five, so there are no logits to distil. compression: RGB to
RGB, large to small, all labels, trials of 1,500 steps and runs of 15 epochs. The weight of each method is the best of
TRIALS on the validation split (one seed); the range is extended if the best one is the first or the last. The test
split is evaluated once, with fixed weights. Finished runs are kept: to resume, run the same command again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.study_data import CORES, pack_cifar, pack_gestures
from benchmarks.study_methods import DEFAULT, FEATURES, FORMS, JOINED, LOGITS, PAPER, POOLED, TASK, WCORD, Losses
from benchmarks.together import train_together
from pipeline import config as configs
from pipeline.common.files import write_atomic
from pipeline.config import Config
from pipeline.evaluate import evaluate
from pipeline.runs.compare import compare
from pipeline.train import train

STUDENTS = 16
"""Number of students that one process trains in parallel."""

TRIALS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Factors on a method's usual weight to try."""
BELOW, BEYOND = (0.03, 0.01), (30.0, 100.0)
"""Further factors, tried one after another as long as the smallest or largest factor is the best."""

FORM_SEEDS = 3
SETTINGS = ("gestures", "other_task", "compression")


@dataclass(frozen=True)
class Setting:
    """One experiment.

    Attributes:
        name: Name.
        student: Config of the student.
        teacher: Folder, config and overrides of the teacher.
        student_overrides: Overrides of the student.
    """

    name: str
    student: str
    teacher: tuple[str, ...]
    student_overrides: tuple[str, ...]
    logits: bool
    """Whether teacher and student have the same classes."""
    seeds: int
    longer: tuple[str, ...] = ()
    """Additional overrides of runs on the test split."""
    left_out: tuple[str, ...] = ()
    """Methods without runs on the test split, to save time."""
    forms: bool = True
    """Whether FORMS are also trained."""

    def config(self, out: Path, run: Path, losses: Losses, seed: int, split: str) -> Config:
        teacher = f"{{run: {out / self.teacher[0]}}}" if losses != TASK else "null"
        overrides = (f"run={run}", f"seed={seed}", f"teacher={teacher}", f"evaluation.split={split}")
        own = (f"losses={json.dumps(losses)}", *self.student_overrides, *(self.longer if split == "test" else ()))
        return configs.load(self.student, (*overrides, *own))

    def methods(self) -> dict[str, Losses]:
        return (LOGITS if self.logits else {}) | FEATURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gestures", type=Path, required=True, help="folder with index.csv, hand_rgb/ and hand_depth/")
    parser.add_argument("--cifar", type=Path, required=True, help="folder with {train,test}/<class>/*.jpg")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    options = parser.parse_args()
    out: Path = options.out.resolve()
    pack_gestures(options.gestures.resolve(), out / "gestures_data")
    pack_cifar(options.cifar.resolve(), out / "cifar_data")
    settings = [s for s in all_settings(out) if s.name in options.settings]
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        done = [pool.submit(teach, out / s.teacher[0], s.teacher[1], s.teacher[2:]) for s in settings]
        wait(done)
        while trials := [submit(pool, left) for s in settings if (left := tuning(s, out))]:
            wait(job for jobs in trials for job in jobs)
        print_tuning(settings, out)
        chosen = choose(settings, out)
        finals = {s.name: final_methods(s, chosen) for s in settings}
        wait(
            [
                job
                for seed in range(max(s.seeds for s in settings))
                for s in settings
                if seed < s.seeds
                for job in submit(pool, runs(s, out, finals[s.name], seed))
            ]
        )
        for s in settings:
            table(s, out, list(finals[s.name]), s.seeds)
        tried = [s for s in settings if s.forms]
        wait([job for seed in range(FORM_SEEDS) for s in tried for job in submit(pool, runs(s, out, FORMS, seed))])
        for s in tried:
            table(s, out, ["labels", *FORMS], FORM_SEEDS)


def all_settings(out: Path) -> list[Setting]:
    folder = Path(__file__).parent / "configs"
    gestures, cifar = f"data.shards={out / 'gestures_data'}", f"data.shards={out / 'cifar_data'}"
    gesture_student, gesture_teacher = str(folder / "gestures_student.yaml"), str(folder / "gestures_teacher.yaml")
    return [
        Setting(
            "gestures", gesture_student, ("gestures_teacher", gesture_teacher, gestures), (gestures,), True, seeds=5
        ),
        Setting(
            "other_task",
            gesture_student,
            ("other_task_teacher", gesture_teacher, gestures, "data.label=taught"),
            (gestures, "data.label=untaught"),
            False,
            seeds=5,
        ),
        Setting(
            "compression",
            str(folder / "cifar_student.yaml"),
            ("cifar_teacher", str(folder / "cifar_teacher.yaml"), cifar),
            (cifar,),
            True,
            seeds=3,
            longer=("train.steps=4688",),
            left_out=("wcord without positions", "crd + kd", "info_nce + kd", "relational_kl + kd", "paper"),
            forms=False,
        ),
    ]


def teach(run: Path, config: str, overrides: Sequence[str]) -> None:
    """Train and evaluate one network, unless it is finished."""
    if not (run / "results.json").exists():
        train(configs.load(config, [f"run={run}", *overrides]), resume=True)
        evaluate(run)


def tuning(setting: Setting, out: Path) -> list[Config]:
    """The unfinished trials on the validation split."""
    trials = {
        _trial(method, factor): {name: keywords | {"weight": keywords["weight"] * factor}}
        for method, losses in setting.methods().items()
        for name, keywords in losses.items()
        for factor in factors(setting, out, method)
    }
    folder = out / setting.name / "tuning"
    return [
        setting.config(out, folder / name, TASK | losses, 0, "val")
        for name, losses in (trials | WCORD).items()
        if not (folder / name / "results.json").exists()
    ]


def factors(setting: Setting, out: Path, method: str) -> list[float]:
    """TRIALS and, once they are finished, further factors as long as the outermost one is the best."""
    tried = list(TRIALS)
    below, beyond = list(BELOW), list(BEYOND)
    while all((out / setting.name / "tuning" / _trial(method, f) / "results.json").exists() for f in tried):
        best = max(tried, key=lambda f: score(setting, out, _trial(method, f)))
        if best == tried[-1] and beyond:
            tried.append(beyond.pop(0))
        elif best == tried[0] and below:
            tried.insert(0, below.pop(0))
        else:
            break
    return tried


def _trial(method: str, factor: float) -> str:
    return f"{method}_x{factor:g}"


def score(setting: Setting, out: Path, name: str) -> float:
    """Top-1 accuracy of a trial on the validation split."""
    path = out / setting.name / "tuning" / name / "results.json"
    return float(json.loads(path.read_bytes())["student/top1"])


def print_tuning(settings: Sequence[Setting], out: Path) -> None:
    """Print the accuracy of every trial as Markdown."""
    columns = sorted({*BELOW, *TRIALS, *BEYOND})
    for s in settings:
        print(f"\n## {s.name}: top-1 % on the validation split\n")
        print(f"| usual weight times | {' | '.join(f'{factor:g}' for factor in columns)} |")
        print(f"| --- |{' ---: |' * len(columns)}")
        for method in s.methods():
            tried = factors(s, out, method)
            found = [f"{100 * score(s, out, _trial(method, f)):.1f}" if f in tried else "" for f in columns]
            print(f"| {method} | {' | '.join(found)} |")
    print(f"\n| wcord | {' | '.join(s.name for s in settings)} |\n| --- |{' ---: |' * len(settings)}")
    for form in WCORD:
        print(f"| {form} | {' | '.join(f'{100 * score(s, out, form):.1f}' for s in settings)} |")


def choose(settings: Sequence[Setting], out: Path) -> dict[str, dict[str, Losses]]:
    """Setting -> method -> the losses with the best student on the validation split, and the default `wcord`."""
    chosen: dict[str, dict[str, Losses]] = {}
    for setting in settings:
        best_form = max(WCORD, key=lambda form: score(setting, out, form))
        own = chosen[setting.name] = {
            "wcord": WCORD[DEFAULT],
            "wcord without positions": WCORD[POOLED],
            "wcord tuned": WCORD[best_form],
        }
        for method, losses in setting.methods().items():
            tried = factors(setting, out, method)
            best = max(tried, key=lambda factor: score(setting, out, _trial(method, factor)))
            own[method] = {name: kw | {"weight": kw["weight"] * best} for name, kw in losses.items()}
    write_atomic(out / f"chosen_{'_'.join(chosen)}.json", json.dumps(chosen, indent=1).encode())
    return chosen


def final_methods(setting: Setting, chosen: Mapping[str, Mapping[str, Losses]]) -> dict[str, Losses]:
    """Name -> losses in addition to the task loss. If KD applies, feature losses are also combined with it."""
    own = dict(chosen[setting.name])
    if own["wcord tuned"] == own["wcord"]:
        del own["wcord tuned"]
    joined = {f"{method} + kd": own[method] | LOGITS["kd"] for method in JOINED if setting.logits and method in own}
    methods = {"labels": {}, **own, **joined, "paper": PAPER}
    return {name: losses for name, losses in methods.items() if name not in setting.left_out}


def runs(setting: Setting, out: Path, methods: Mapping[str, Losses], seed: int) -> list[Config]:
    return [
        setting.config(out, _run(out, setting, name, seed), TASK | losses, seed, "test")
        for name, losses in methods.items()
    ]


def submit(pool: ProcessPoolExecutor, students: list[Config]) -> list[Any]:
    """Submit jobs of about equal size with at most STUDENTS students each."""
    jobs = -(-len(students) // STUDENTS)
    return [pool.submit(train_together, students[i::jobs]) for i in range(jobs)]


def wait(jobs: Iterable[Any]) -> None:
    for job in jobs:
        job.result()


def table(setting: Setting, out: Path, methods: Sequence[str], seeds: int) -> None:
    """Print the table of methods as Markdown, compared with training on labels only and with variants of WCoRD."""
    found = [_run(out, setting, name, seed) for name in methods for seed in range(seeds)]
    baselines = ["labels", *(name for name in ("wcord", "wcord without positions", "wcord + kd") if name in methods)]
    for baseline in baselines:
        print_table(found, out / setting.name / f"against_{baseline.replace(' ', '_')}", baseline)


def print_table(runs: Sequence[Path], folder: Path, baseline: str) -> None:
    print(f"\n## {folder}\n\n{compare(runs, folder, baseline=baseline).markdown()}", flush=True)


def _run(out: Path, setting: Setting, method: str, seed: int) -> Path:
    return out / setting.name / f"{method}_s{seed}"


if __name__ == "__main__":
    main()
