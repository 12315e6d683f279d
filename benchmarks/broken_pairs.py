"""Students on pairs of which a fraction is mismatched, with `data.pairs: correct` and `noisy`.

python -m benchmarks.broken_pairs --data FOLDER --settings gestures --levels 0 0.2 0.4 0.6 0.8 --seeds 10

FOLDER is that of the suite, as are settings, teachers and weights of the methods. Finished students are kept: to
resume, run the same command again. At the end, it prints for each setting the scores on the test split, the differences
between noisy and correct, and how well the mismatched pairs were found.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from sklearn.metrics import roc_auc_score

from benchmarks.suite.__main__ import CORES, there, wait
from benchmarks.suite.jobs import MEASURES, fitting, teach
from benchmarks.suite.regret import Scores, cell, print_rows, scores
from benchmarks.suite.settings import Broken, Losses, Setting, load_settings
from benchmarks.together import train_together
from pipeline.config import Config
from pipeline.packing.recipes.plan import safe_key
from pipeline.runs.compare import paired_difference
from pipeline.runs.pairs_file import read_pairs

METHODS = ("kd", "dist", "regression", "info_nce", "wcord", "wcord + kd", "wcord + dist")
NOISY = ", noisy"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--out", type=Path, default=Path("runs/broken_pairs"))
    parser.add_argument("--settings", nargs="+", default=["gestures"], help="settings of the suite with whole pairs")
    parser.add_argument("--field", default="rgb", help="field that mismatched pairs take from another pair")
    parser.add_argument("--levels", nargs="+", type=float, default=[0, 0.4, 0.8], help="fractions of mismatched pairs")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="methods of benchmarks/suite/methods.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=CORES)
    options = parser.parse_args(arguments)
    data, out = options.data.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    kinds = yaml.safe_load((Path(__file__).parent / "suite" / "methods.yaml").read_text())
    methods = {name: (kinds["rivals"] | kinds["ours"])[name] for name in options.methods}
    settings = {
        (name, level): (setting.model_copy(update={"broken": broken(level, options.field)}), out / folder(name, level))
        for name, setting in load_settings(options.settings).items()
        if there(setting, data, out)
        for level in options.levels
    }
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        teachers = {setting.whole(own): (setting, data, own) for setting, own in settings.values()}
        wait([pool.submit(teach, *teacher) for teacher in teachers.values()])
        wait([pool.submit(setting.pack, data, own) for setting, own in settings.values()])
        jobs = [(*one, methods, seed) for seed in range(options.seeds) for one in settings.values()]
        wait([pool.submit(run, *job) for job in jobs])
    for name in dict.fromkeys(name for name, _ in settings):
        own = {level: settings[name, level] for level in options.levels}
        print_tables(name, own, data, options.seeds)


def broken(level: float, field: str) -> Broken | None:
    return Broken(share=level, field=field) if level else None


def folder(name: str, level: float) -> str:
    return f"{name}_{round(100 * level)}"


def run(setting: Setting, out: Path, methods: dict[str, Losses], seed: int) -> None:
    """Train and evaluate the unfinished students of one seed in parallel."""
    torch.set_num_threads(1)
    configs = []
    for name, losses in fitting(setting, methods).items():
        if losses:
            configs.append(setting.student_config(out, name, losses, seed))
        if name in methods:
            configs.append(_noisy(setting.student_config(out, f"{name}{NOISY}", losses, seed)))
    train_together(configs, MEASURES[setting.measure])


def _noisy(config: Config) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"pairs": "noisy"})})


def print_tables(name: str, settings: Mapping[float, tuple[Setting, Path]], data: Path, seeds: int) -> None:
    """Print scores, differences and the detection of mismatched pairs of one setting; a column per level."""
    found = {level: scores(out, seeds, "test") for level, (_, out) in settings.items()}
    methods = list(dict.fromkeys(method for own in found.values() for method in own))
    methods.sort(key=lambda method: (method not in ("labels", "untrained"), method))
    noisy = [method for method in methods if method.endswith(NOISY)]
    levels = [f"{level:.0%} mismatched" for level in settings]
    print(f"\n### {name}, {next(iter(settings.values()))[0].measure}\n")
    print_rows(
        ["method", *levels], [[method, *(cell(own.get(method)) for own in found.values())] for method in methods]
    )
    print("\nDifference between `noisy` and `correct`, in points.\n")
    print_rows(["method", *levels], [[_base(m), *(_gain(own, m) for own in found.values())] for m in noisy])
    print("\nArea under the ROC curve of mismatched against correct pairs; in brackets the fractions of mismatched and")
    print("of correct pairs that were judged mismatched at the end.\n")
    detected = [[_base(m), *(_detected(*one, m, data, seeds) for one in settings.values())] for m in noisy]
    print_rows(["method", *levels], detected)


def _base(method: str) -> str:
    return method.removesuffix(NOISY)


def _gain(own: Scores, method: str) -> str:
    if method not in own or _base(method) not in own:
        return "-"
    pairs = [(own[method][seed], own[_base(method)][seed]) for seed in sorted(own[method].keys())]
    difference = paired_difference([a - b for a, b in pairs], False)
    interval = "" if difference.low is None else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    return f"{difference.mean:+.1f}{interval}"


def _detected(setting: Setting, out: Path, method: str, data: Path, seeds: int) -> str:
    rows = setting._splits(data, out)["train"][: setting.pairs]
    count = round(setting.broken.share * len(rows)) if setting.broken else 0
    wrong = {safe_key(row["id"]) for row in rows[:count]}
    areas, shares = [], []
    for seed in range(seeds):
        if pairs := read_pairs(out / f"{method}_seed{seed}"):
            mismatched = torch.tensor([pair.key in wrong for pair in pairs])
            matches = torch.tensor([pair.matches for pair in pairs])
            if 0 < count < len(pairs):
                areas.append(roc_auc_score(mismatched, -matches))
            judged = (matches <= 0.5).float()
            shares.append((judged[mismatched].mean(), judged[~mismatched].mean()))
    if not shares:
        return "-"
    area = f"{sum(areas) / len(areas):.2f} " if areas else ""
    bad, good = (float(torch.stack(column).mean()) for column in zip(*shares, strict=True))
    return f"{area}({'' if not count else f'{bad:.0%} and '}{good:.0%})"


if __name__ == "__main__":
    main()
