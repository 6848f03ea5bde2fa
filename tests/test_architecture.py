"""The rooms of the house: who may import whom."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import chainrule

ROOT = Path(chainrule.__file__).parent
ALLOWED = {  # room: the rooms of the package that it may import
    "core": set(),
    "files.py": set(),
    "strict.py": {"files"},
    "kernels": {"files"},
    "images.py": {"core"},
    "pictures.py": {"core", "files", "images"},
    "prefixes.py": {"core"},
    "pages": set(),
    "progress.py": set(),
    "processes.py": set(),
    "layers": {"core", "kernels"},
    "tokenizers": {"core", "layers", "kernels"},
    "priors": {"core", "layers", "kernels"},
    "upscaling": {"core", "kernels", "tokenizers"},
    "text": {"core"},
    "decoding": {"core"},
    "network.py": set(),
    "data": {"files", "network"},
    "saving": {"core", "files", "kernels", "network", "progress", "strict", "text"},
    "pipeline.py": {"core", "decoding", "images", "prefixes", "saving", "text"},
    "adapters.py": {"core", "layers", "pipeline", "saving", "strict"},
    "larger.py": {"core", "pipeline"},
    "variation.py": {"core", "decoding", "pipeline"},
    "scorers": {"core", "images", "layers", "network", "text"},
    "drawing.py": {
        "decoding", "files", "images", "larger", "pictures", "pipeline", "saving", "strict", "upscaling", "variation",
        "zoo",
    },
    "bulk.py": {"decoding", "drawing", "files", "pictures", "pipeline", "processes", "strict"},
    "zoo.py": {"adapters", "core", "files", "pipeline", "saving", "scorers", "strict", "upscaling"},
    "evaluation": {
        "core", "data", "decoding", "files", "kernels", "pipeline", "processes", "progress", "saving", "scorers",
        "strict", "zoo",
    },
    "compression": {"core", "files", "kernels", "pipeline", "progress", "saving", "strict"},
    "sizes.py": {"core", "layers", "strict"},
    "recipe.py": {"core", "strict"},
    "official": {"core", "files", "pipeline", "priors", "strict", "text", "tokenizers", "zoo"},
    "training": {
        "adapters", "core", "data", "decoding", "evaluation", "files", "images", "kernels", "layers", "pipeline",
        "prefixes", "processes", "progress", "recipe", "saving", "scorers", "strict", "text", "tokenizers", "upscaling",
        "zoo",
    },
    "timeline": {
        "core", "data", "decoding", "evaluation", "files", "images", "pages", "pictures", "pipeline", "saving",
        "strict", "tokenizers", "training", "upscaling", "zoo",
    },
    "planning": {"core", "data", "recipe", "sizes", "strict", "training"},
    "fitting": {
        "core", "data", "evaluation", "files", "images", "pages", "pictures", "pipeline", "planning", "recipe",
        "saving", "strict", "timeline", "training", "zoo",
    },
    "catalogue.py": {"core", "evaluation", "saving", "strict", "zoo"},
    "serving": {
        "core", "data", "decoding", "drawing", "evaluation", "files", "images", "larger", "pictures", "pipeline",
        "strict", "variation", "zoo",
    },
    "cli": {
        "bulk", "catalogue", "compression", "core", "data", "decoding", "drawing", "evaluation", "files", "fitting",
        "images", "larger", "official", "pictures", "pipeline", "planning", "processes", "progress", "recipe", "saving",
        "scorers", "serving", "sizes", "strict", "timeline", "training", "variation", "zoo",
    },
    "__main__.py": {"cli"},
    "__init__.py": {
        "catalogue", "compression", "evaluation", "fitting", "images", "official", "pipeline", "saving", "serving",
        "sizes", "training", "variation", "zoo",
    },
}  # fmt: skip
MODULES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Rooms of the package that a module imports, and modules beside it as "room/module"."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [target] if node.module else [(*base, alias.name) for alias in node.names]
            found |= {"/".join(name[:2]) for name in names if name}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chainrule."):
            found.add("/".join(node.module.split(".")[1:3]))
        elif isinstance(node, ast.Import):
            found |= {
                "/".join(alias.name.split(".")[1:3]) for alias in node.names if alias.name.startswith("chainrule.")
            }
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_in_their_rooms(path):
    room = path.relative_to(ROOT).parts[0]
    rooms = {name.split("/")[0] for name in imported(path)}
    assert room in ALLOWED, f"{room} is a new room: say in this table what it may import"
    assert rooms - {room, "__version__"} <= ALLOWED[room]
    if room not in ("cli", "serving", "__main__.py", "__init__.py"):
        assert not rooms & {"cli", "serving"}
    if path.parent == ROOT / "training" / "engine":
        assert rooms - {"training"} <= {"files", "images", "kernels"}, "the engine knows no task and no data"
    if room in ("priors", "tokenizers"):
        beside = {name for name in imported(path) if name.startswith(f"{room}/")}
        assert all(name.split("/")[1].startswith("_") for name in beside), (
            "one paper, one file: shared blocks belong in layers"
        )


def test_no_task_imports_another():
    """What tasks share lives in modules of its own, which define no recipe."""
    files = sorted((ROOT / "training" / "tasks").glob("*.py"))
    tasks = {path.stem for path in files if "(Recipe, kind=" in path.read_text(encoding="utf-8")}
    assert {"classifier", "prior", "reranker", "tokenizer", "upscaler"} <= tasks
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        beside = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1}
        assert not beside & tasks, path.name


def imported_at_start(path: Path) -> set[Path]:
    """Modules of the package that a module needs before it is complete: imports outside functions and type checking."""
    base, found = path.parent, set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = base.joinpath(*[".."] * (node.level - 1), *(node.module or "").split(".")).resolve()
        for name in node.names:
            for module in (folder / name.name, folder):
                files = [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()]
                if files:
                    found.add(files[0])
                    break
    return found - {path}


def test_no_modules_import_one_another():
    order = TopologicalSorter({path: imported_at_start(path) for path in MODULES}).static_order()
    assert set(order) == set(MODULES)  # a circle raises CycleError, which names it
