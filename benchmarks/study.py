"""The study behind the defaults: every method in three settings, tuned alike, over seeds; its tables.

    python -m benchmarks.study --gestures PATH_TO_HAND_GESTURES_RGBD --cifar PATH_TO_CIFAR10

gestures: RGB teacher to depth student, the same ten classes, a tenth of the labels. other_task: the teacher knows five
of the gestures, the student has to learn the other five, so there are no logits to distil. compression: RGB to RGB,
big to small, all labels, trials of 1,500 steps and runs of 15 epochs. Each method's weight is the best of TRIALS of
them on the validation split (one seed), and of ones beyond where the best is the first or the last; the test split is
looked at once, with weights fixed. Finished runs are kept: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.together import train_together
from pipeline import config as configs
from pipeline.compare import compare
from pipeline.config import Config
from pipeline.evaluate import evaluate
from pipeline.pack import pack
from pipeline.recipes import manifest
from pipeline.shards import write_atomic
from pipeline.train import train

Losses = dict[str, dict[str, Any]]

CORES = os.cpu_count() or 1
STUDENTS = 16
"""Students that one process trains side by side."""

RELATIONAL_KL = "benchmarks.relational_kl:RelationalKL"
GRADIENT_NORM = "benchmarks.gradient_norm:GradientNormWCoRD"
TASK: Losses = {"cross_entropy": {}}
TRIALS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Factors of a method's usual weight that are tried."""
BELOW, BEYOND = (0.03, 0.01), (30.0, 100.0)
"""Factors tried, one after the other, where the best is the least or the largest so far."""

LOGITS: dict[str, Losses] = {
    "kd": {"kd": {"weight": 3.0}},
}
FEATURES: dict[str, Losses] = {
    "crd": {"crd": {"weight": 0.8, "negatives": 1024}},
    "info_nce": {"info_nce": {"weight": 0.5}},
    "regression": {"cosine": {"weight": 3.0}},
    "fitnet": {"fitnet": {"weight": 100.0}},
    "relational_kl": {RELATIONAL_KL: {"weight": 3.0}},
}
JOINED = ("wcord", "wcord tuned", *FEATURES)
"""Methods that are also tried together with KD at its usual weight: at the hundredfold, which can be the best for KD
alone, it outweighs what it is joined with."""


def _wcord(global_weight: float, local_weight: float, relational: float, positions: float = 0.0) -> Losses:
    form: Losses = {"wcord": {"global_weight": global_weight, "local_weight": local_weight, "relational": relational}}
    return form | ({"position_transport": {"weight": positions, "layer": -2}} if positions else {})


WCORD: dict[str, Losses] = {
    "plain": _wcord(0.5, 2, 0.0),
    "plain_heavy": _wcord(1.5, 6, 0.0),
    "relational": _wcord(0.5, 2, 1.5),
    "relational_light": _wcord(0.5, 2, 0.45),
    "heavy_relational_light": _wcord(1.5, 6, 0.15),
    "local_heavy": _wcord(0.5, 6, 0.0),
    "local_heavy_relational_light": _wcord(0.5, 6, 0.15),
    **{f"local_heavy_positions_{p:g}": _wcord(0.5, 6, 0.0, p) for p in (2.0, 6.0, 20.0)},
    **{f"local_heavy_relational_light_positions_{p:g}": _wcord(0.5, 6, 0.15, p) for p in (2.0, 6.0, 20.0)},
    "local_heavy_relational_positions_20": _wcord(0.5, 6, 0.45, 20),
    "local_heavier_relational_light_positions_20": _wcord(0.5, 18, 0.15, 20),
    "all_heavier_relational_light_positions_60": _wcord(1.5, 18, 0.15, 60),
}
"""The relational part has `local_weight * relational` of the whole."""

DEFAULT, POOLED = "local_heavy_relational_light_positions_20", "local_heavy_relational_light"
"""`wcord` with its defaults and transport between positions, one and the same in every setting, of the best by the sum
over the validation splits; and `wcord` alone."""

PAPER: Losses = {
    "global_contrast": {"weight": 0.8, "link": "linear", "discount": False},
    "local_transport": {"weight": 0.05, "space": "shared", "anchor": 1.0, "iterations": 10, "epsilon": 0.05},
}
GLOBAL, LOCAL = {"weight": 0.5}, {"weight": 2.0}
FORMS: dict[str, Losses] = {
    "global": {"global_contrast": GLOBAL},
    "global linear": {"global_contrast": GLOBAL | {"link": "linear"}},
    "global linear sum": {"global_contrast": GLOBAL | {"link": "linear", "weighting": "sum"}},
    "global bounded": {"global_contrast": GLOBAL | {"link": "bounded"}},
    "global log_bounded": {"global_contrast": GLOBAL | {"link": "log_bounded"}},
    "global cosine critic": {"global_contrast": GLOBAL | {"critic": "cosine"}},
    "global no discount": {"global_contrast": GLOBAL | {"discount": False}},
    "global queue 0": {"global_contrast": GLOBAL | {"queue": 0}},
    "global queue 256": {"global_contrast": GLOBAL | {"queue": 256}},
    "global queue 4096": {"global_contrast": GLOBAL | {"queue": 4096}},
    "global bank 1024": {"global_contrast": GLOBAL | {"queue": 0, "bank": 1024}},
    "global fixed temperature": {"global_contrast": GLOBAL | {"learn_temperature": False}},
    "local": {"local_transport": LOCAL},
    "local anchor 0": {"local_transport": LOCAL | {"anchor": 0.0}},
    "local anchor 1": {"local_transport": LOCAL | {"anchor": 1.0}},
    "local shared": {"local_transport": LOCAL | {"space": "shared"}},
    "local raw": {"local_transport": LOCAL | {"space": "raw"}},
    "local euclidean": {"local_transport": LOCAL | {"cost": "euclidean"}},
    "local squared_euclidean": {"local_transport": LOCAL | {"cost": "squared_euclidean"}},
    "local penalty 0.5": {"local_transport": LOCAL | {"marginal_penalty": 0.5}},
    "local unrolled": {"local_transport": LOCAL | {"plan_gradient": "unrolled"}},
    "local implicit": {"local_transport": LOCAL | {"plan_gradient": "implicit"}},
    "local iterations 5": {"local_transport": LOCAL | {"iterations": 5}},
    "local iterations 100": {"local_transport": LOCAL | {"iterations": 100}},
    "local epsilon 0.02": {"local_transport": LOCAL | {"epsilon": 0.02}},
    "local epsilon 0.5": {"local_transport": LOCAL | {"epsilon": 0.5}},
    "local epsilon relative": {"local_transport": LOCAL | {"relative_epsilon": True}},
    "local epsilon from 1": {"local_transport": LOCAL | {"start_epsilon": 1.0, "anneal_steps": 250}},
    "local relational": {"local_transport": LOCAL | {"relational": 1.5}},
    "global + local": {"global_contrast": GLOBAL, "local_transport": LOCAL},
    "wcord without positions": WCORD[POOLED],
    "wcord by gradient norm": {GRADIENT_NORM: {}},
}
"""The terms one by one, each with one thing changed, at the weights of the form `plain`, and `wcord` with its weights
fixed or by gradient norm."""

FORM_SEEDS = 3
SETTINGS = ("gestures", "other_task", "compression")


@dataclass(frozen=True)
class Setting:
    """One experiment. student: its config. teacher: the config and overrides of the network that teaches it."""

    name: str
    student: str
    teacher: tuple[str, ...]
    student_overrides: tuple[str, ...]
    logits: bool
    """Whether teacher and student share the classes."""
    seeds: int
    longer: tuple[str, ...] = ()
    """Overrides of the runs that are measured on the test split, which the trials do without."""
    left_out: tuple[str, ...] = ()
    """Methods that are not measured on the test split, for the time that they take."""
    forms: bool = True
    """Whether FORMS are trained as well."""

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


def pack_gestures(source: Path, out: Path) -> None:
    """Labels: the class, the class if it is one of the five that the other task's teacher knows, and the class if it is
    not. Split by session: in a clip a person shows all gestures, in front of one background. Of the clips that all
    three people have, one is the test and one the validation split."""
    rows = list(csv.DictReader((source / "index.csv").open()))
    taught = set(sorted({row["class"] for row in rows})[::2])
    for row in rows:
        row["split"] = {"clip03": "test", "clip04": "val"}.get(row["clip"], "train")
        row["taught"], row["untaught"] = (row["class"], "") if row["class"] in taught else ("", row["class"])
    plan = manifest.plan(
        _write_table(out.with_suffix(".csv"), rows),
        {"rgb": f"{source}/hand_rgb/{{id}}.jpg", "depth": f"{source}/hand_depth/{{id}}.png"},
        labels=["class", "taught", "untaught"],
        group="{subject}/{class}/{clip}",
        split="split",
    )
    pack(plan, out, workers=CORES)


def pack_cifar(source: Path, out: Path) -> None:
    """The last fifth of every class's training images is the validation split."""
    rows = []
    for split in "train", "test":
        for folder in sorted((source / split).iterdir()):
            files = sorted(folder.iterdir())
            for number, file in enumerate(files):
                held_out = split == "train" and number >= 0.8 * len(files)
                rows.append({"rgb": str(file), "class": folder.name, "split": "val" if held_out else split})
    plan = manifest.plan(_write_table(out.with_suffix(".csv"), rows), {"rgb": "rgb"}, labels=["class"], split="split")
    pack(plan, out, workers=CORES)


def _write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def teach(run: Path, config: str, overrides: Sequence[str]) -> None:
    """Train and evaluate one network, unless that is done."""
    if not (run / "results.json").exists():
        train(configs.load(config, [f"run={run}", *overrides]), resume=True)
        evaluate(run)


def tuning(setting: Setting, out: Path) -> list[Config]:
    """The trials, on the validation split, that are yet to be made."""
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
    """TRIALS and, as far as those before them are done, factors beyond for as long as the outermost one is the best."""
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
    """The top-1 accuracy of a trial on the validation split."""
    path = out / setting.name / "tuning" / name / "results.json"
    return float(json.loads(path.read_bytes())["student/top1"])


def print_tuning(settings: Sequence[Setting], out: Path) -> None:
    """Print every trial's accuracy as Markdown."""
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
    """Setting -> method -> the losses whose student was best on the validation split, and the default `wcord`."""
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
    """Name -> losses beside the task's own; features joined with KD where there is a KD."""
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
    """Jobs of at most STUDENTS students, of about equal size."""
    jobs = -(-len(students) // STUDENTS)
    return [pool.submit(train_together, students[i::jobs]) for i in range(jobs)]


def wait(jobs: Iterable[Any]) -> None:
    for job in jobs:
        job.result()


def table(setting: Setting, out: Path, methods: Sequence[str], seeds: int) -> None:
    """Print the table of methods as Markdown, against the labels alone and against forms of WCoRD."""
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
