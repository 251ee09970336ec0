"""The arrows: cli → flows → {stages, store}; inside stages: stage → editing → editors → backbones → diffusion."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cli", "flows", "stages", "store", "pocket")
MAY = {  # room → rooms that it may import
    "cli": {"flows", "stages", "store", "pocket"},
    "flows": {"stages", "store", "pocket"},
    "stages": {"store"},
    "store": set(),
    "pocket": {"stages"},
}
FLOORS = ("diffusion", "backbones", "editors", "editing")  # inside stages, lowest first; stage files are above them
LEAVES = ("media", "measures")
FILES = sorted(path for room in ROOMS for path in ([ROOT / "cli.py"] if room == "cli" else (ROOT / room).rglob("*.py")))


def module_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as an absolute dotted name (with the imported names)."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> list[list[str]]:
    return [name.split(".") for name in imported(path) if name.split(".")[0] in ROOMS]


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_walk() -> None:
    assert {module_of(path)[0] for path in FILES} == set(ROOMS)
    assert "stages.diffusion.ddim.NoiseLevels" in imported(ROOT / "stages/backbones/__init__.py"), "relative ones too"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_rooms(path: Path) -> None:
    room = module_of(path)[0]
    for name in ours(path):
        assert name[0] == room or name[0] in MAY[room], f"{place(path)} imports {'.'.join(name)}"
        if room == "stages" and name[0] == "store":
            assert name[1] in ("schemas", "errors"), f"{place(path)}: of the store, stages know its data types alone"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_only_flows_knows_prefect(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert "prefect" not in tops or module_of(path)[0] == "flows"
    if module_of(path)[0] not in ("store",):
        assert "zarr" not in tops, "the store alone writes Zarr"


STAGES = sorted(path for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", sorted((ROOT / "stages").rglob("*.py")), ids=place)
def test_inside_stages(path: Path) -> None:
    own = [*module_of(path), ""]
    inner = [name for name in ours(path) if name[0] == "stages"]
    if own[1] in LEAVES:
        assert all(name[1] == own[1] for name in inner), f"{own[1]} is a leaf"
        return
    for name in inner:
        if path in STAGES:
            assert name[1] not in {stage.stem for stage in STAGES}, f"{place(path)} imports the stage {name[1]}"
            assert name[1] != "media" or path.stem in ("decode_frames", "read_masks"), "they read files"
        else:
            assert name[1] in FLOORS, f"{place(path)} imports {'.'.join(name)}"
            assert FLOORS.index(name[1]) <= FLOORS.index(own[1]), f"{place(path)} imports {'.'.join(name)} above it"


@pytest.mark.parametrize("path", STAGES, ids=place)
def test_a_stage_is_a_module_with_four_names(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {
        target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
        if isinstance(target, ast.Name)
    }  # fmt: skip
    assert {"VERSION", "Spec", "outputs", "run"} <= names
