"""Which file may import what: one way, without circles, and each library in one place."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    {"errors"},
    {"replies"},
    {"upstream"},
    {"config", "authz", "rows", "ledger"},
    {"cache", "authn", "endpoints"},
    {"walk", "health", "status"},
    {"app"},
    {"__main__"},
)


def modules(package: str) -> dict[str, ast.Module]:
    """Dotted name to syntax tree of every module of a package."""
    paths = (ROOT / package).rglob("*.py")
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): ast.parse(p.read_text()) for name, p in dotted.items()}


def imported(tree: ast.Module) -> set[str]:
    """What a module imports: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


GATEWAY = modules("gateway")
IMPORTS = {name: imported(tree) for name, tree in GATEWAY.items()}
# Of `from a.b import c`, the module is `a.b.c` if there is one, else `a.b`.
DEPENDS = {
    name: {found for one in names for found in (one, one.rpartition(".")[0]) if found in GATEWAY}
    for name, names in IMPORTS.items()
}


def importers_of(*libraries: str) -> set[str]:
    """The modules of the gateway that import a library or a part of it."""
    return {
        name
        for name, names in IMPORTS.items()
        if any(
            one == library or one.startswith(f"{library}.")
            for one in names
            for library in libraries
        )
    }


def test_no_module_imports_itself_by_a_detour() -> None:
    order = list(TopologicalSorter(DEPENDS).static_order())
    assert order.index("gateway.errors") < order.index("gateway.walk") < order.index("gateway.app")


def test_imports_go_from_the_later_layers_to_the_earlier() -> None:
    rank = {f"gateway.{name}": index for index, layer in enumerate(LAYERS) for name in layer}
    assert rank.keys() <= GATEWAY.keys()
    upward = {
        (name, other)
        for name in rank
        for other in DEPENDS[name] & rank.keys()
        if rank[other] > rank[name]
    }
    assert upward == set()


def test_what_callers_may_send_is_known_without_the_gateway() -> None:
    for name, tree in modules("schemas").items():
        assert not any(one.startswith("gateway") for one in imported(tree)), name


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("jwt", "gateway.authn"),
        ("cachetools", "gateway.cache"),
        ("cryptography", "gateway.keys"),
        ("redis", "gateway.redis_link"),
    ],
)
def test_a_library_is_known_in_one_file(library: str, home: str) -> None:
    assert importers_of(library) == {home}


def test_the_gateway_runs_without_what_is_not_asked_for() -> None:
    program = "import sys, gateway.server; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "gateway.coherence" in ran.stdout.split()
    assert "redis" not in ran.stdout.split()


def test_only_what_speaks_to_the_ledger_knows_the_client_side_of_aiohttp() -> None:
    server_side = ("aiohttp.web", "aiohttp.typedefs", "aiohttp.streams")
    knowing = {
        name
        for name in importers_of("aiohttp")
        if any(
            one == "aiohttp" or (one.startswith("aiohttp.") and not one.startswith(server_side))
            for one in IMPORTS[name]
        )
    }
    assert knowing == {"gateway.upstream", "gateway.replies"}
