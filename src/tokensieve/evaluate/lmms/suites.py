"""The papers' suites as groups of lmms-eval's tasks, and tasks on files of one's own.

    lmms-eval --include_path "$(python -m tokensieve.evaluate.lmms.suites)" --tasks NAME ...
    python -m tokensieve.evaluate.lmms.suites chartqa=rows.parquet --out tasks

The first says where the groups lie; the second writes tasks that read local parquet in the
benchmark's own layout, with its own questions and metrics.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from tokensieve.errors import ConfigError, MissingPackageError, TokensieveError
from tokensieve.fields import check_names
from tokensieve.files import write_text

GROUPS = Path(__file__).parent / "groups"
TASKS = {
    "docvqa_val": "docvqa/docvqa_val.yaml",
    "chartqa": "chartqa/chartqa.yaml",
    "infovqa_val": "infovqa/infovqa_val.yaml",
    "textvqa_val": "textvqa/textvqa_val.yaml",
    "mmbench_en_dev": "mmbench/mmbench_en_dev.yaml",
    "mmbench_cn_dev": "mmbench/mmbench_cn_dev.yaml",
    "ai2d": "ai2d/ai2d.yaml",
    "gqa": "gqa/gqa.yaml",
    "mmmu_val": "mmmu/mmmu_val.yaml",
    "mmstar": "mmstar/mmstar.yaml",
    "scienceqa_img": "scienceqa/scienceqa_img.yaml",
    "vizwiz_vqa_val": "vizwiz_vqa/vizwiz_vqa_val.yaml",
    "pope": "pope/pope.yaml",
    "mme": "mme/mme.yaml",
    "vqav2_val": "vqav2/vqav2_val.yaml",
    "activitynetqa": "activitynetqa/activitynetqa_generation.yaml",
    "seedbench": "seedbench/seedbench.yaml",
    "nextqa_oe_test": "nextqa/nextqa_oe_test.yaml",
    "nextqa_mc_test": "nextqa/nextqa_mc_test.yaml",
    "egoschema_subset": "egoschema/egoschema_subset.yaml",
    "longvideobench_val_v": "longvideobench/longvideobench_val_v.yaml",
    "refcoco_bbox_rec_val": "refcoco/refcoco_bbox_rec_val.yaml",
    "mathvista_testmini_format": "mathvista/mathvista_testmini_format.yaml",
    "mathvision_test": "mathvision/mathvision_test.yaml",
    "seedbench_2_plus": "seedbench_2_plus/seedbench_2_plus.yaml",
    "ocrbench": "ocrbench/ocrbench.yaml",
    "mia_bench": "mia_bench/mia_bench.yaml",
    "hallusion_bench_image": "hallusion_bench/hallusion_bench_image.yaml",
}


def local_task(name: str, rows: Path, root: Path) -> str:
    """YAML of the task `local_NAME`: that of lmms-eval at `root`, reading `rows`.

    Raises `ConfigError` for files that are not there, `UnknownNameError` for a task.
    """
    check_names("task", [name], TASKS)
    own = root / "tasks" / TASKS[name]
    for file in (own, rows):
        if not file.is_file():
            raise ConfigError(f"Expected a file at {file}. Got none. Check the path.")
    return (
        f"include: {own.resolve()}\ntask: local_{name}\ndataset_path: parquet\n"
        f"dataset_name: null\ndataset_kwargs:\n  data_files:\n    local: {rows.resolve()}\n"
        "test_split: local\n"
    )


def installed() -> Path:
    """The folder of lmms-eval. Raises `MissingPackageError` where it is not installed."""
    found = importlib.util.find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError(
            "Expected the package lmms-eval. Got none. pip install 'tokensieve[eval]'."
        )
    return Path(next(iter(found.submodule_search_locations)))


def main(arguments: list[str] | None = None) -> None:
    """Say where the groups lie, or write tasks on local rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", nargs="*", metavar="TASK=FILE", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--out", type=Path, default=Path("tasks"), help="folder of written tasks")
    options = parser.parse_args(arguments)
    if not options.rows:
        sys.stdout.write(f"{GROUPS}\n")
        return
    for told in options.rows:
        name, equals, file = told.partition("=")
        if not equals:
            raise ConfigError(f"Expected TASK=FILE. Got '{told}'. Name a parquet file of rows.")
        text = local_task(name, Path(file), installed())
        write_text(options.out / f"local_{name}.yaml", text)
        sys.stdout.write(f"local_{name}\n")


if __name__ == "__main__":
    try:
        main()
    except TokensieveError as error:
        sys.exit(f"tokensieve: {error}")
