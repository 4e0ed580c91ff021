"""The rules of the house: data flows one way, plugins see public names only, nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mhe

ROOT = Path(__file__).parents[1]
CORE = ROOT / "harness" / "mhe"
PLUGINS = sorted(
    path for path in [*(ROOT / "plugins").iterdir(), *(ROOT / "tasks").iterdir()] if (path / "__init__.py").is_file()
)
HEAVY = {"torch", "transformers", "vllm", "peft", "numpy", "ray", "datasets", "bitsandbytes", "accelerate", "PIL"}

# A module imports only from those above it (see docs/decisions/0001-order-of-modules.md).
ORDER = """
errors values digests entity_taggers
documents.migrations documents.base documents.task documents.model documents.run documents.measurement
documents.checkpoint documents.pipeline documents.board documents validation
protocols backend_abilities hookspecs plugins task_files catalog images image_folders image_hashes subsets samples
prompting answers fingerprints
environment run_key run_folder provenance checkpoints model_names
statistics score_files remembered_profiles scoring usual_scoring
text_rows predictions references text_pairs
efficiency engines.local engines run_plan evaluation
agreement backend_checks measuring
training_data validation_scores processes pipelines jobs pipeline_runs previews audit boards
scored_folders compared_runs compared_values comparison testing cli
""".split()  # noqa: SIM905 - a list of lines reads as the order it is


def modules_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    assert found, f"no module in {folder}"
    return found


def imports_of(path: Path, *, runtime_only: bool = False) -> list[str]:
    """Dotted names of all modules that a file imports, `from mhe.a import b` as `mhe.a`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if runtime_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    names = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
            if node.module == "mhe":
                names += [f"mhe.{alias.name}" for alias in node.names]
    return names


def place_in_order(module: str) -> int | None:
    """The position of a core module (`mhe.boards.rank` is at `boards`), None for `mhe` itself."""
    name = module.removeprefix("mhe").lstrip(".")
    while name:
        if name in ORDER:
            return ORDER.index(name)
        name = name.rpartition(".")[0]
    return None


def test_core_modules_import_only_from_above():
    seen = 0
    for path in modules_of(CORE):
        name = ".".join(("mhe", *path.relative_to(CORE).with_suffix("").parts)).removesuffix(".__init__")
        here = place_in_order(name)
        if here is None:
            assert name == "mhe", f"{name} has no place in ORDER"
            continue
        for other in imports_of(path, runtime_only=True):
            if other.startswith("mhe.") and (place := place_in_order(other)) is not None:
                assert place <= here, f"{name} imports {other}, which comes after it"
                seen += 1
    assert seen > 100, "the walk found too few imports to mean anything"


def test_the_core_names_no_plugin():
    for path in modules_of(CORE):
        strangers = [name for name in imports_of(path) if name.startswith("mhe_")]
        assert not strangers, f"{path} imports {strangers}"


def test_core_and_registration_import_nothing_heavy_at_the_top():
    registrations = [plugin / "__init__.py" for plugin in PLUGINS]
    assert len(registrations) >= 5
    for path in [*modules_of(CORE), *registrations]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = [name for name in names if name.split(".")[0] in HEAVY]
            assert not heavy, f"{path} imports {heavy} at its top"


def test_plugins_use_public_names_only():
    """`mhe_hf` is the one plugin whose public names others may use: those that its `__init__` lists."""
    seen = 0
    for plugin in PLUGINS:
        for path in modules_of(plugin):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    pairs = [(alias.name, "") for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    pairs = [(node.module or "", alias.name) for alias in node.names]
                else:
                    continue
                for module, name in pairs:
                    top = module.split(".")[0]
                    if not (top == "mhe" or top.startswith("mhe_")) or top == plugin.name:
                        continue
                    seen += 1
                    where = f"{path.relative_to(ROOT)} imports {module}.{name}"
                    if top == "mhe":
                        assert module in ("mhe", "mhe.testing"), where
                        assert not name or name in mhe.__all__ or module == "mhe.testing", where
                    else:
                        assert top == "mhe_hf", f"{where}: plugins share nothing but mhe_hf"
                        assert not any(part.startswith("_") for part in [*module.split("."), name]), where
    assert seen > 20


def test_public_names_are_sorted_and_exist():
    assert mhe.__all__ == sorted(mhe.__all__)
    for name in mhe.__all__:
        assert getattr(mhe, name) is not None
    assert set(mhe._HOME_OF) | {"__version__"} == set(mhe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Secret'"):
        _ = mhe.Secret


@pytest.mark.parametrize(
    "command", [["--help"], ["show", "tasks"], ["show", "models"], ["eval", "--help"]], ids=" ".join
)
def test_light_commands_import_nothing_heavy(command):
    code = (
        "import sys\n"
        "from mhe.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as done: code = done.code\n"
        f"heavy = sorted(set(sys.modules) & {HEAVY!r})\n"
        "print('HEAVY', heavy, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr


def test_every_module_imports_alone_and_without_warnings():
    names = []
    for path in modules_of(CORE):
        name = ".".join(path.relative_to(ROOT / "harness").with_suffix("").parts).removesuffix(".__init__")
        names.append(name)
    assert len(names) > 40
    # One fresh interpreter a module is slow; a fork of a bare one is as good.
    code = (
        "import importlib, os, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "for name in sys.argv[1:]:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        try: importlib.import_module(name); os._exit(0)\n"
        "        except BaseException as error: print(name, repr(error), flush=True); os._exit(1)\n"
        "    os.waitpid(pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_files_and_functions_stay_short():
    long = []
    for folder in [CORE, *PLUGINS]:
        for path in modules_of(folder):
            text = path.read_text(encoding="utf-8")
            if text.count("\n") > 400:
                long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 60:
                    # A click command's signature is its list of options.
                    body = (node.end_lineno or 0) - node.body[0].lineno
                    if body > 60:
                        long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert not long, "\n".join(long)


def test_the_wheel_holds_our_packages_and_their_data(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    import zipfile

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"mhe", *(plugin.name for plugin in PLUGINS)}
    assert sum(name.endswith("task.yaml") for name in names) >= 7
    assert any(name.endswith("py.typed") for name in names)
    assert any(name.endswith(".safetensors") for name in names), "the embedded model travels with the package"
