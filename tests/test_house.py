"""The house: arrows one way, Flower in its rooms only, no drawers, and the five files that explain the system."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "privacy": {"privacy"},
    "shared_models": {"shared_models"},
    "client": {"client", "privacy", "shared_models"},
    "server": {"server", "privacy", "shared_models"},
    "simulations": {"simulations", "client", "server", "privacy", "shared_models"},
}
FLOWER = {
    "client/forwarder.py",
    "client/node_probe.py",
    "client/supernode.py",
    "server/flower_exchange.py",
    "server/server_app.py",
    "server/superlink.py",
    "simulations/benchmarks/secure_aggregation.py",
}
PRIVACY_FLAT = {"sampling", "clipping", "noise", "accounting"}
"""These know nothing of each other but the generator; `client.local_round` composes them. Two have rooms below."""


def imports(source: str) -> set[str]:
    """Full names of all modules that *source* imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
    return found


def product_files() -> list[Path]:
    return [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]


def wrong_arrows(room: str, source: str) -> set[str]:
    """Rooms that a file of *room* imports and may not."""
    return {name.split(".")[0] for name in imports(source)} & (set(ALLOWED) | {"tests"}) - ALLOWED[room]


@pytest.mark.slow
def test_arrows_point_one_way() -> None:
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in product_files()
        if (found := wrong_arrows(path.relative_to(ROOT).parts[0], path.read_text(encoding="utf-8")))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("room", "planted"),
    [
        ("server", "from client.site import Site"),
        ("client", "import server.round_loop"),
        ("privacy", "def late():\n    from shared_models import study"),
        ("shared_models", "import privacy.noise as noise"),
        ("client", "from simulations import runner"),
    ],
)
def test_a_planted_arrow_is_found(room: str, planted: str) -> None:
    assert wrong_arrows(room, planted)


@pytest.mark.slow
def test_flower_is_named_only_in_its_launchers_the_forwarder_and_its_exchange() -> None:
    naming = {
        str(path.relative_to(ROOT))
        for path in product_files()
        if any(name.split(".")[0] == "flwr" for name in imports(path.read_text(encoding="utf-8")))
    }
    assert naming <= FLOWER


@pytest.mark.slow
def test_sites_and_round_loop_run_without_flower() -> None:
    """No import chain from the agent or the round loop reaches Flower."""
    seen: set[str] = set()
    queue = ["client.site", "client.agent", "server.round_loop", "server.run", "simulations.local_exchange"]
    while queue:
        name = queue.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if name in seen or not path.exists():
            continue
        seen.add(name)
        found = imports(path.read_text(encoding="utf-8"))
        assert not any(module.split(".")[0] == "flwr" for module in found), name
        queue += [module for module in found if module.split(".")[0] in ALLOWED]
    assert "privacy.ledger" in seen


def test_the_parts_of_privacy_do_not_know_each_other() -> None:
    for part in PRIVACY_FLAT:
        found = imports((ROOT / "privacy" / f"{part}.py").read_text(encoding="utf-8"))
        others = {name for name in found if name.startswith("privacy.")} - {"privacy.randomness"}
        if part == "clipping":
            others = {name for name in others if not name.startswith("privacy.ghost.")}
        if part == "noise":
            others -= {"privacy.noise_blocks"}
        assert not others, part


def test_ghost_clipping_knows_nothing_of_the_rest_of_privacy() -> None:
    for path in (ROOT / "privacy" / "ghost").glob("*.py"):
        found = {name for name in imports(path.read_text(encoding="utf-8")) if name.startswith("privacy.")}
        assert all(name.startswith("privacy.ghost.") for name in found), path.name


def test_there_are_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager"}
    assert not [path for path in product_files() if path.stem in drawers]


def test_tests_are_flat_and_no_package() -> None:
    tests = ROOT / "tests"
    assert not (tests / "__init__.py").exists()
    assert not [path for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_the_readme_names_the_five_files_that_explain_the_system() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Five files", 1)[1].split("\n## ", 1)[0]
    named = re.findall(r"^\d\. \[`([^`]+)`\]", section, flags=re.MULTILINE)
    assert len(named) == 5
    assert all((ROOT / name).is_file() for name in named), named


@pytest.mark.slow
def test_public_modules_and_functions_have_docstrings() -> None:
    """Every module of the product says what it is; the linter checks its public names."""
    missing = [
        path for path in product_files() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not missing


@pytest.mark.slow
def test_the_command_lines_begin_without_what_takes_seconds_to_import() -> None:
    program = (
        "import sys, client.command, server.command, simulations.command\n"
        "print(sorted({'torch', 'scipy', 'dp_accounting', 'opacus', 'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
