"""What do the records say?

    python benchmarks/tables.py [NAME ...]

prints the tables of this folder's README, in Markdown, from the records in `docs/results/`.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Record = dict[str, Any]


def floor(told: Record) -> str:
    """Counts over the floor's, by network and update."""
    columns = ("flops", "networks", "bytes", "memory", "forwards")
    rows = [[row["network"], row["update"], *(f"{row[name]:.3f}" for name in columns)] for row in told["rows"]]
    return table(["network", "update", *columns], rows)


def jvp(told: Record) -> str:
    """Rates, and the JVP over the other two: times, and operations in brackets."""
    rates, others = ("forward", "gradient", "jvp"), ("jvp / forward", "jvp / gradient")
    rows = [
        [
            *(str(row[name]) for name in ("network", "batch", "dtype")),
            *(f"{row['examples/s'][name]:.1f}" for name in rates),
            *(f"{row['FLOP/s'][name] / 1e9:.2f}" for name in rates),
            *(f"{row[name]['median']:.2f} ({row[name]['flops']:.2f})" for name in others),
        ]
        for row in told["rows"]
    ]
    shown = [f"{name}/s" for name in rates] + [f"{name}, GFLOP/s" for name in rates]
    return table(["network", "batch", "dtype", *shown, *others], rows)


def naive(told: Record) -> str:
    """What is closed over, over momentax."""
    rows = [
        [
            *(row[name] for name in ("network", "update", "kind")),
            *(f"{row[name]:.2f}" for name in ("compile", "program", "flops")),
            *(f"{row['step'][name]:.3f}" for name in ("median", "best")),
        ]
        for row in told["rows"]
    ]
    return table(["network", "update", "", "compile", "program", "operations", "step", "step, best"], rows)


def torch_compare(told: Record) -> str:
    """PyTorch's time over momentax's; in brackets of the best rounds."""
    kinds = [kind for kind in ("eager", "compiled") if kind in told["rows"][0]]
    rows = [
        [str(row["width"]), row["update"], *(f"{row[kind]['median']:.2f} ({row[kind]['best']:.2f})" for kind in kinds)]
        for row in told["rows"]
    ]
    return table(["width", "update", *kinds], rows)


def sampler(told: Record) -> str:
    """Ratios of times, medians of the rounds."""
    columns = ("steps / evaluations", "draws / evaluations", "many / few")
    rows = [
        [row["network"], *(f"{row[name]['median']:.3f}" for name in columns), f"{row['samples/s']:.1f}"]
        for row in told["rows"]
    ]
    few, many = told["steps"]
    shown = [f"{few} steps / {few} evaluations", "of it noise", f"{many} steps / {few}", "samples/s"]
    return table(["network", *shown], rows)


def scaling(told: Record) -> str:
    """Collectives as lowered and, in brackets, as compiled; MiB."""
    kinds = ("all_gather", "reduce_scatter", "all_reduce")
    rows = [
        [
            *(str(row[name]) for name in ("network", "spread", "update", "devices")),
            *(_collectives(row, kind) for kind in kinds),
            *(_mebibytes(size) for size in (sum(row["sent"].values()), row["held"])),
            *(_mebibytes(row[name]) if name in row else "" for name in ("results", "temporary")),
        ]
        for row in told["rows"]
    ]
    sizes = ["sent", "held", "results", "temporary"]
    return table(["network", "", "update", "devices", *(kind.replace("_", "-") for kind in kinds), *sizes], rows)


def startup(told: Record) -> str:
    """Compile times over that of the network's gradient, and traces of three updates."""
    rows = [
        [row["network"], row["update"], f"{row['seconds']:.2f}", f"{row['over its gradient']:.2f}", str(row["traces"])]
        for row in told["rows"]
    ]
    return table(["network", "update", "compile, s", "over the gradient", "traces"], rows)


def compile(told: Record) -> str:
    """Instructions by step and number of arrays, the factor of the last doubling, CPU seconds of the least and most."""
    counts = sorted({row["leaves"] for row in told["rows"]})
    steps = list(dict.fromkeys(row["step"] for row in told["rows"]))
    found = {(row["step"], row["leaves"]): row for row in told["rows"]}
    rows = []
    for step in steps:
        sizes = [found[step, count]["instructions"] for count in counts]
        seconds = [found[step, count]["CPU seconds"] for count in (counts[0], counts[-1])]
        shown = [f"{size:,}" for size in sizes]
        rows.append([step, *shown, f"{sizes[-1] / sizes[-2]:.2f}", *(f"{of:.1f}" for of in seconds)])
    ends = [f"CPU s, {count}" for count in (counts[0], counts[-1])]
    return table(["step", *(f"{count} arrays" for count in counts), "growth", *ends], rows)


def nu(told: Record) -> str:
    """Distances by where nu is from."""
    rows = [[name, f"{value:.3f}"] for name, value in told["frechet_distance"].items()]
    return table(["nu", "Frechet distance"], rows)


def joint(told: Record) -> str:
    """Distances of the seeds, by algorithm and length."""
    found: dict[Any, list[float]] = {}
    for row in told["rows"]:
        found.setdefault((row["algorithm"], row["updates"], row["forwards"]), []).append(row["frechet_distance"])
    rows = [
        [name, f"{updates:,}", f"{forwards:,}", f"{statistics.mean(of):.3f} ± {statistics.stdev(of):.3f}"]
        for (name, updates, forwards), of in found.items()
    ]
    return table(["algorithm", "updates", "forward passes of a batch", "Frechet distance"], rows)


def few_steps(told: Record) -> str:
    """Distances by steps and by what was changed: student, and teacher in brackets."""
    steps = sorted({row["k"] for row in told["rows"]})
    changes = list(dict.fromkeys(_change(row) for row in told["rows"]))
    found = {(row["k"], _change(row)): f"{row['student']:.3f} ({row['teacher']:.3f})" for row in told["rows"]}
    rows = [[change, *(found[k, change] for k in steps)] for change in changes]
    return table(["", *(f"{k} step{'s' * (k > 1)}" for k in steps)], rows)


def students(told: Record) -> str:
    """Distances of teacher and student in as many steps, and their ratio, by data, prediction and schedule."""

    def shown(row, k):
        teacher, student = row["teacher"][k], row["student"][k]
        return [f"{teacher:.3g}", f"{student:.3g}", f"{student / teacher:.2f}"]

    names = ("problem", "prediction", "schedule")
    rows = [
        [*(row[name] for name in names), *shown(row, "4"), *shown(row, "8"), f"{row['teacher']['64']:.3g}"]
        for row in told["rows"]
    ]
    columns = [f"{of}, {k} steps" if of != "ratio" else of for k in (4, 8) for of in ("teacher", "student", "ratio")]
    return table([*names, *columns, "teacher, 64 steps"], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


def _change(row: Record) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in row["changed"].items()) or "as it is"


def _collectives(row: Record, kind: str) -> str:
    compiled = f" ({row['compiled'][kind]})" if "compiled" in row else ""
    return f"{row['collectives'][kind]}{compiled}"


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f}"


TABLES: dict[str, Callable[[Record], str]] = {
    of.__name__: of
    for of in (floor, jvp, naive, torch_compare, sampler, scaling, startup, compile, nu, joint, few_steps, students)
}


def recorded() -> dict[str, str]:
    """The table of every benchmark that has a record."""
    paths = {name: RESULTS / f"{name}.json" for name in TABLES}
    return {name: TABLES[name](json.loads(path.read_text())) for name, path in paths.items() if path.exists()}


if __name__ == "__main__":
    chosen = sys.argv[1:]
    print("\n\n".join(f"{name}\n\n{of}" for name, of in recorded().items() if not chosen or name in chosen))
