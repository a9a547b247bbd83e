"""What is distilled and what is drawn from it, for each data set."""

from dataclasses import dataclass, field

SEEDS = (0, 1, 2)
STEPS = {
    "fashion-mnist": {"alternating": (8, 4, 2, 1), "instant": (8, 4)},
    "emoji": {"alternating": (8, 2), "instant": (8,)},
}
GUIDANCE = {"fashion-mnist": (0.1, 0.5, 1.0, 3.0), "emoji": ()}
FIRST = "alternating-8-0"

TRAINING = {
    "fashion-mnist": {
        "teacher": ["--teacher-updates", "12000"],
        "alternating": ["--updates", "2000", "--batch", "64"],
        "instant": ["--updates", "800", "--batch", "256"],
    },
    "emoji": {
        "teacher": ["--teacher-updates", "8000"],
        "alternating": ["--updates", "1600", "--batch", "64"],
        "instant": ["--updates", "640", "--batch", "256"],
    },
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
        {f"{algorithm}-{k}-{seed}": (algorithm, k, seed, []) for algorithm, ks in STEPS[data].items() for k in ks}
        for seed in SEEDS
    ]
    kernels = {f"alternating-8-0-{name}": ("alternating", 8, 0, ["--kernel", name]) for name in ("renoise", "ddim")}
    guided = {
        f"{algorithm}-8-0-guided-{scale:g}": (algorithm, 8, 0, ["--guidance", f"{scale:g}"])
        for scale in GUIDANCE[data]
        for algorithm in ("alternating", "instant")
    }
    plan = of_seed[0] | kernels | guided | of_seed[1] | of_seed[2]
    return {name: _arguments(data, *told) for name, told in plan.items()}


def drawings(data: str) -> list[Drawing]:
    """The teacher in several steps, with more noise and with none; then every student in its own."""
    noise = [{"noise": gamma} for gamma in (0.1, 0.2, 0.3)]
    teacher = [Drawing(FIRST, k, "teacher") for k in (8, 64)]
    teacher += [Drawing(FIRST, 8, "teacher", {"kernel": "ddim"})]
    teacher += [Drawing(FIRST, k, "teacher", how) for k in (8, 64) for how in noise]
    students = [Drawing(run, int(run.split("-")[1])) for run in runs(data)]
    guided = [Drawing(f"alternating-8-0-guided-{scale:g}", 64, "teacher") for scale in GUIDANCE[data]]
    long = [Drawing(FIRST, k, "teacher", how) for k in (256, 1024) for how in ({}, {"noise": 0.1})]
    return teacher + students + guided + long


def _arguments(data: str, algorithm: str, k: int, seed: int, further: list[str]) -> list[str]:
    told = ["--data", data, *TRAINING[data]["teacher"], "--algorithm", algorithm, "--k", str(k), "--seed", str(seed)]
    return [*told, *TRAINING[data][algorithm], "--samples", "64", *further]
