"""What was run, and how it was made."""

from __future__ import annotations

from collections.abc import Iterator

from natal.reading.report.document import Facts, Section
from natal.reading.report.view import LARGE, View
from natal.reading.wording import moments, network, number, training
from natal.study import Setting
from natal.wording import listed, plural


def what_was_run(view: View) -> Section:
    """Return the study's grid, its networks, its training and its tasks."""
    return Section("What was run", (Facts(tuple(_grid(view))),))


def _grid(view: View) -> Iterator[tuple[str, str]]:
    results, study = view.results, view.study
    networks = [(study.networks, "network")] if len(study.networks) > 1 else []
    size = [(study.tasks, "task"), *networks, (study.strategies, "strategy"), (study.sparsities, "sparsity")]
    grid = " x ".join(plural(len(things), noun) for things, noun in [*size, (study.seeds, "seed")])
    yield "runs", f"{len(results.runs)} of {len(study.runs())}: {grid}"
    yield "seeds", listed(study.seeds)
    if study.hidden is not None:
        yield (
            "network",
            f"one hidden layer of {study.hidden} ReLU neurons; biases are never pruned or counted",
        )
    else:
        for facts in results.networks.values():
            yield "network", f"{network(facts)}; engine {facts.engine}"
        yield (
            "pruned",
            "weights of linear and convolution layers; other parameters are never pruned or counted",
        )
    yield "training", training(study.training)
    if results.tried:
        rates = ", ".join(f"{rate:g}" for rate in sorted({a.row.learning_rate or 0 for a in results.tried}))
        yield "rates", f"{rates}, chosen per strategy and level on validation rows; see LEARNING RATES"
    elif study.hidden is None:
        yield from _rates_used(view)
    for name, task in results.tasks.items():
        rows = ", ".join(f"{task[f'{part}_rows']} {part}" for part in ("fit", "val", "test"))
        yield name, f"rows: {rows}; {task.metric}, chance {number(task.chance)}"


def _rates_used(view: View) -> Iterator[tuple[str, str]]:
    """Yield the learning rates, each with the settings that use it if there are several."""
    used: dict[float, list[Setting]] = {}
    for setting, rate in {run.setting: run.learning_rate for run in view.results.runs}.items():
        if rate is not None:
            used.setdefault(rate, []).append(setting)
    for rate, settings in used.items():
        tasks = list(dict.fromkeys(setting.task for setting in settings))
        every = len(settings) == len(tasks) * len(view.study.networks)
        names = tasks if every else [view.words(setting) for setting in settings]
        yield "rate", f"{rate:g}" + f" on {', '.join(names)}" * (len(used) > 1)


def how_it_was_made(view: View) -> Section:
    """Return each strategy's recipe, and the manifest."""
    return Section("How it was made", (Facts(tuple(_making(view))),))


def _making(view: View) -> Iterator[tuple[str, str]]:
    study, results, manifest = view.study, view.results, view.results.manifest

    def made(*names: str) -> str:
        return ", ".join(f"{name.removesuffix('_version')} {manifest.get(name)}" for name in names)

    for recipe in study.strategies:
        control = f", control {recipe.control}" if recipe.control else ""
        scores = f"{recipe.criterion} scores, {recipe.scope} scope, by {recipe.removed}"
        yield recipe.name, f"{scores}{moments(recipe)}{control}"
    trainings = len({run.key for run in results.runs} | {a.row.key for a in results.tried})
    shared = (
        f"strategies share the dense one of each {view.noun} and seed" if study.share else "none is shared"
    )
    yield "trainings", f"{trainings}; {shared}"
    yield "software", made("natal_version", "torch_version", "numpy_version", "python_version")
    yield "hardware", made("platform", "processor", "device", "workers", "threads")
    determinism = "on" if manifest.get("deterministic") else "OFF"
    yield "arithmetic", f"{made('engine', 'dtype')}, deterministic algorithms {determinism}"
    yield "wall time", f"{number(manifest.get('elapsed_seconds'), '.1f')} s of training"
    yield "study hash", str(manifest.get("study_hash"))
    if view.large:
        yield (
            "files",
            f"results.json and runs.csv are written for up to {LARGE:,} runs; of more, `natal export DIR --json` and "
            "`--csv` write them",
        )
    yield "again", "`natal run study.toml --out again` beside this report runs the same study"
