"""What is distilled and what is drawn from it, for each data set."""

import shlex
from dataclasses import dataclass, field

SEEDS = (0, 1, 2)
SAMPLES = {"fashion-mnist": 10_000, "emoji": 1500}
IMAGES = {"fashion-mnist": 20_000, "emoji": 3786}
STEPS = {
    "fashion-mnist": {"alternating": (8, 4, 2, 1), "instant": (8, 4)},
    "emoji": {"alternating": (8, 2), "instant": (8,)},
}
KERNELS = {"fashion-mnist": ("renoise", "ddim"), "emoji": ()}
GUIDANCE = {"fashion-mnist": (0.1, 0.5, 1.0, 3.0), "emoji": ()}
FIRST, GUIDED_STEPS, NOISE = "alternating-8-0", 16, (0.1, 0.2)

TRAINING = {
    "fashion-mnist": {
        "common": ["--network", "uvit-small", "--teacher-updates", "25000", "--schedule", "karras"],
        "alternating": ["--updates", "800", "--batch", "64"],
        "instant": ["--updates", "300", "--batch", "128"],
    },
    "emoji": {
        "common": ["--network", "uvit-small", "--teacher-updates", "20000", "--schedule", "karras"],
        "alternating": ["--updates", "800", "--batch", "64"],
        "instant": ["--updates", "300", "--batch", "128"],
    },
}
SEARCH = {
    "cosine": ["--schedule", "cosine"],
    "flow": ["--schedule", "flow"],
    "edm": ["--weight", "edm"],
    "rate-3e-4": ["--learning-rate", "3e-4"],
    "paper": ["--learning-rate", "3e-4", "--auxiliary-rate", "1", "--b1", "0"],
    "batch-256": ["--learning-rate", "3e-4", "--batch", "256"],
    "long": ["--updates", "2400"],
    "long-3e-4": ["--updates", "2400", "--learning-rate", "3e-4"],
    "long-renoise": ["--updates", "2400", "--learning-rate", "3e-4", "--kernel", "renoise"],
    "long-2": ["--updates", "2400", "--learning-rate", "3e-4", "--k", "2"],
    "long-1": ["--updates", "2400", "--learning-rate", "3e-4", "--k", "1"],
    "adaptive-1": ["--updates", "2400", "--learning-rate", "1e-3", "--k", "1", "--weight", "adaptive"],
    "edm-1": ["--updates", "2400", "--learning-rate", "1e-3", "--k", "1", "--weight", "edm"],
    "long-instant": ["--algorithm", "instant", "--batch", "128", "--updates", "900"],
}


@dataclass(frozen=True)
class Drawing:
    """Samples of one network of a run, in some steps, with its own sampler or another."""

    run: str
    k: int
    model: str = "student"
    sampler: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's where there is one of it; else with what is drawn how."""
        if self.model == "student":
            return self.run
        how = "".join(f", {name} {value}" for name, value in self.sampler.items())
        of = "" if self.run == FIRST else f" of {self.run}"
        return f"{self.model}{of}, {self.k} steps{how}"


def runs(data: str) -> dict[str, list[str]]:
    """The arguments of every `momentax distill`, by the folder of the run; all have the first one's teacher."""
    of_seed = [
        {f"{name}-{k}-{seed}": _arguments(data, name, k, seed) for name, ks in STEPS[data].items() for k in ks}
        for seed in SEEDS
    ]
    return of_seed[0] | _kernels(data) | _guided(data) | of_seed[1] | of_seed[2] | _searched(data)


def command(data: str, name: str) -> str:
    """The command line of a run."""
    return shlex.join(["momentax", "distill", *runs(data)[name], "--output", f"runs/{data}/{name}"])


def drawings(data: str) -> list[Drawing]:
    """The teacher in several steps, with more noise and with none; then every student in its own."""
    noise = [{"noise": gamma} for gamma in NOISE]
    teacher = [Drawing(FIRST, k, "teacher") for k in (8, GUIDED_STEPS, 64)]
    teacher += [Drawing(FIRST, 8, "teacher", {"kernel": "ddim"})]
    teacher += [Drawing(FIRST, k, "teacher", how) for k in (8, 64) for how in noise]
    students = [Drawing(run, _steps(told)) for run, told in runs(data).items()]
    cosine = [Drawing("search-cosine", k, "teacher") for k in (8, 64)] if data == "fashion-mnist" else []
    guided = [Drawing(f"alternating-8-0-guided-{scale:g}", GUIDED_STEPS, "teacher") for scale in GUIDANCE[data]]
    many = [Drawing(FIRST, k, "teacher", how) for k in (256, 1024) for how in ({}, {"noise": 0.1})]
    return teacher + students + cosine + guided + many


def _steps(told: list[str]) -> int:
    """What a run is told of k, last."""
    return int(dict(zip(told[::2], told[1::2], strict=True))["--k"])


def _kernels(data: str) -> dict[str, list[str]]:
    return {
        f"alternating-8-{seed}-{name}": _arguments(data, "alternating", 8, seed, "--kernel", name)
        for seed in SEEDS
        for name in KERNELS[data]
    }


def _guided(data: str) -> dict[str, list[str]]:
    return {
        f"{algorithm}-8-0-guided-{scale:g}": _arguments(data, algorithm, 8, 0, "--guidance", f"{scale:g}")
        for scale in GUIDANCE[data]
        for algorithm in ("alternating", "instant")
    }


def _searched(data: str) -> dict[str, list[str]]:
    """Some settings of the first run's changed."""
    searched = SEARCH if data == "fashion-mnist" else {}
    return {f"search-{name}": _arguments(data, "alternating", 8, 0, *changed) for name, changed in searched.items()}


def _arguments(data: str, algorithm: str, k: int, seed: int, *further: str) -> list[str]:
    own = ["--algorithm", algorithm, *TRAINING[data][algorithm], "--samples", "16"]
    return ["--data", data, *TRAINING[data]["common"], "--k", str(k), "--seed", str(seed), *own, *further]
