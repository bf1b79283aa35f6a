"""`python train.py compare`: every variant with every seed, each run in a process of its own, then the report.

All runs are checked before the first one starts, so that a slip in the last variant costs nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from errors import InputError
from experiments.arguments import Arguments, parse


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 where a run failed, 2 where it was refused its input, 130/143 after a signal."""
    arguments = parse(list(argv or []))
    # Imported after the parsing: --help and most mistakes must answer at once.
    from experiments.pool import Pool

    pool = Pool(arguments.jobs)
    jobs = plan(arguments)
    code = pool.run(jobs)
    if code < 128:
        from experiments.report import build

        print(f"report: {build(arguments.out)}")
    return code


@dataclass(frozen=True)
class Job:
    """One run: what follows `train.py fit`, its directory, and the comparison that it belongs to."""

    comparison: str
    label: str
    seed: int
    out: Path
    argv: tuple[str, ...]
    steps: int
    finished: bool

    @property
    def name(self) -> str:
        """How progress names it."""
        return f"{self.label} seed={self.seed}"


def plan(arguments: Arguments) -> list[Job]:
    """Check every variant with every seed and prepare the corpus once; seeds outermost, so pairs finish early.

    Raises InputError for anything that a run would refuse, a variant given twice, or a directory of another run.
    """
    from data.corpus import Corpus
    from data.options import PrepareOptions
    from data.prepare import prepare
    from data.windows import Layout
    from models.attention import label
    from training import cli
    from training.run_directory import RunDirectory

    labels = [label(spec) for spec in arguments.attentions]
    doubled = sorted({name for name in labels if labels.count(name) > 1})
    if doubled:
        raise InputError(f"--attention: {doubled[0]} is given twice")
    ground = next(folder for folder in (arguments.out, *arguments.out.absolute().parents) if folder.exists())
    if not ground.is_dir():
        raise InputError(f"--out {arguments.out} cannot be written: {ground} is not a directory")
    jobs, config = [], {}
    for seed in arguments.seeds:
        for spec, name in zip(arguments.attentions, labels, strict=True):
            out = arguments.out / name / f"seed={seed}"
            argv = (
                *(word for file in arguments.configs for word in ("--config", str(file))),
                *(f"--model.attention={_flow(spec)}", f"--seed_everything={seed}", f"--out={out}"),
                *arguments.overrides,
            )
            checked = cli.plan(list(argv))
            config = checked.config
            finished = RunDirectory(out).enter(config, checked.split)
            if checked.split.world > 1 and arguments.jobs > 1:
                raise InputError(
                    f"--jobs {arguments.jobs}: runs of {checked.split.world} ranks each take all devices; give --jobs 1"
                )
            jobs.append(Job(str(arguments.out), name, seed, out, argv, config["trainer"]["max_steps"], finished))
    if not all(job.finished for job in jobs):
        data, network = config["data"], config["model"]["network"]  # the same for all runs
        options = PrepareOptions(**{field.name: data[field.name] for field in fields(PrepareOptions)})
        layout = Layout(data["documents"], data["bos"])
        Corpus(prepare(options)).check_network(network["vocab_size"], network["context"], layout)
    return jobs


def _flow(spec: str | dict[str, Any]) -> str:
    """A specification on one line, as YAML reads it back."""
    return spec if isinstance(spec, str) else json.dumps(spec)
