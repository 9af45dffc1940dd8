"""The whole circle on one checkpoint: inspect, calibrate, plan, export, verify, translate; each step is measured."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nllb_prune.model.source import embedded_text

from .measured import console_script, measure
from .shapes import SHAPES

SOURCE, TARGET = "eng_Latn", "deu_Latn"
TEXTS = ("wake me up at nine am on friday", "what is the weather like today", "play some music")
_SHOWN = 12
"""Last lines of a command's output that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command and what it makes."""

    command: tuple[str, ...]
    makes: tuple[Path, ...] = ()
    """Files and folders that go before the command runs again."""


def circle(
    work: Path,
    shape: str,
    *,
    generating: Sequence[str] = (),
    exporting: Sequence[str] = (),
    translating: Sequence[str] = (),
    sentences: int = 32,
) -> dict[str, Step]:
    """Return the steps by name, in order.

    Args:
        work: Folder for all that they make.
        shape: A name in `SHAPES`.
        generating: Options of `generate` beside the shape and the output.
        exporting: More options of `export`, as in `--dtype bf16`.
        translating: More options of `translate`.
        sentences: Of each of the two directions that are calibrated.
    """
    model, masks, export, statistics = (work / name for name in ("model", "masks.json", "export", "all.safetensors"))
    encoder, decoder = SHAPES[shape].counts
    both = f"{SOURCE}-{TARGET},{TARGET}-{SOURCE}"
    ours, ends = console_script(), ("--source", SOURCE, "--target", TARGET)
    text = ("--text", embedded_text(), "--directions", both, "--sentences", sentences)
    here = (sys.executable, "-m", "eval.shape")
    return {
        "generate": _step(*here, "generate", "--shape", shape, "--output", model, *generating, makes=(model,)),
        "inspect": _step(ours, "inspect", model),
        "calibrate": _step(
            *(ours, "calibrate", model, "--stream", *text, "--output", statistics),
            makes=(statistics, statistics.with_suffix(".work")),
        ),
        "plan": _step(
            *(ours, "plan", statistics, "--counts", f"encoder={encoder},decoder={decoder}", "--output", masks),
            makes=(masks,),
        ),
        "export": _step(
            *(ours, "export", model, "--masks", masks, *ends, "--output", export, *exporting), makes=(export,)
        ),
        "verify": _step(ours, "inspect", export, "--verify"),
        "translate": _step(ours, "translate", export, *TEXTS, *ends, *translating),
    }


def _step(*words: object, makes: tuple[Path, ...] = ()) -> Step:
    return Step(command=tuple(map(str, words)), makes=makes)


def run(work: Path, steps: Mapping[str, Step]) -> dict[str, Any]:
    """Run the steps that are not finished, and return what each took; `circle.json` in the folder keeps it.

    Args:
        work: Folder of an earlier run, or a new one. A step of it whose command is another now is run again, with all
            that follow.
        steps: By name, in order.

    Raises:
        SystemExit: if a step fails; what was measured before it is kept.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / "circle.json"
    before: dict[str, Any] = json.loads(path.read_text("utf-8"))["steps"] if path.exists() else {}
    found: dict[str, Any] = {"machine": machine(), "steps": {}}
    for name, step in steps.items():
        if before.get(name, {}).get("command") != list(step.command):
            before = {}
        found["steps"][name] = before[name] if before else _run(name, step, work)
        _write(path, json.dumps(found, indent=1, ensure_ascii=False))
    return found


def _run(name: str, step: Step, work: Path) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    for each in step.makes:
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)
    load = round(os.getloadavg()[0], 1)
    measured = measure(step.command, log=work / f"{name}.log")
    output = measured.output.splitlines()[-_SHOWN:]
    return {"command": list(step.command), **measured.to_json(), "load": load, "output": output}


def _write(path: Path, content: str) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(content + "\n", encoding="utf-8")
    beside.rename(path)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    names = ("torch", "transformers", "safetensors")
    return {
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **{name: version(name) for name in names},
    }


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of a folder's files, and those that they take on the disk: holes take none."""
    status = [path.stat() for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        "files": len(status),
        "bytes": sum(each.st_size for each in status),
        "disk": sum(each.st_blocks * 512 for each in status),
    }


def markdown(found: Mapping[str, Any]) -> list[str]:
    """Lay out the figures."""
    header = ("step", "time, s", "processor, s", "load before", "read, GB", "written, GB", "peak, GB", "anonymous, GB")
    rows = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, each in found["steps"].items():
        times = f"{each['seconds']:.1f} | {each['processor_seconds']:.1f} | {each['load']}"
        gigabytes = " | ".join(f"{each[what] / 1e9:.2f}" for what in ("read", "written", "peak", "anonymous"))
        rows.append(f"| {name} | {times} | {gigabytes} |")
    return rows


def markdown_sizes(work: Path) -> str:
    """Say how large the model and the export are."""
    parts = []
    for name in ("model", "export"):
        found = sizes(work / name)
        on_disk = f"{found['disk'] / 1e9:.2f} GB on the disk"
        parts.append(f"{name}: {found['bytes'] / 1e9:.2f} GB in {found['files']} files ({on_disk})")
    return "; ".join(parts)
