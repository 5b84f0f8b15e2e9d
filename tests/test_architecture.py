"""The layers and boundaries: which modules and libraries a module may import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import ratebridge

PACKAGE = Path(ratebridge.__file__).parent

# From the bottom up. A module imports from the layers below its own, and from what its own
# layer lists before it.
LAYERS = [
    ["version", "errors", "headers", "dates", "conversion", "backoff", "budget", "euro"],
    ["link.address", "link.framing"],
    ["signals", "link.upgrade", "names", "proxies"],
    ["messages", "rates", "shapes"],
    ["history", "plausibility"],
    ["parsers", "settings"],
    ["link.tls", "link.dial", "link.stream", "link.link"],
    ["reporting.stats", "reporting.logs", "reporting.observer"],
    ["outbox"],
    ["providers.source", "providers.registry", "providers.transport", "providers.http"],
    ["providers.*"],
    ["providers.chain", "providers.ahead"],
    ["bridge"],
    ["session"],
    ["supervisor"],
    ["operating.trail"],
    ["operating.audit"],
    ["operating.overview", "operating.metrics", "operating.status", "operating.notify"],
    ["app"],
    ["api"],
    ["fakes.port", "fakes.feed", "fakes.rates"],
    ["fakes.*"],
    ["commands.options"],
    ["commands.*"],
    ["command_line"],
    ["cli"],
]

# The boundaries: a library, and the only modules that may import it.
BOUNDARIES: dict[str, set[str]] = {
    "asyncio": set(),
    "trio_websocket": {"link.link"},
    "wsproto": {"link.link", "fakes.feed"},
    "h11": {
        *("link.upgrade", "link.dial", "link.link", "fakes.rates"),
        *("providers.transport", "providers.http", "operating.status"),
    },
    "httpx": {"providers.transport", "providers.http"},
    "python_socks": {"link.dial"},
    "structlog": {"reporting.logs", "commands.demo"},
    "dotenv": {"settings"},
    "prometheus_client": {"operating.metrics"},
    "currency_converter": {"history"},
}

# What is slow to import and optional for the running service.
HEAVY = {"httpx", "python_socks", "prometheus_client", "operating.status", "currency_converter"}

# What a package exports, and the module that it comes from.
EXPORTED = {"link.Address": "link.address", "link.Link": "link.link", "link.open_link": "link.link"}

PURE = {
    *("errors", "dates", "conversion", "backoff", "messages", "rates", "shapes"),
    *("headers", "budget", "euro", "plausibility"),
    *("link.address", "link.framing", "proxies"),
}


@attrs.frozen
class Import:
    """`name` is a module of ours without the package's name, or a library's top level."""

    name: str
    ours: bool
    names: tuple[str, ...]
    for_types_only: bool
    late: bool  # done by a function, when it runs


def imports_of(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(PACKAGE).parts[:-1]
    typing_only: set[ast.AST] = set()
    in_functions: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing_only.update(ast.walk(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            in_functions.update(ast.walk(node))
    for node in ast.walk(tree):
        when = node in typing_only, node in in_functions
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name.partition(".")[0], False, (), *when)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            names = tuple(alias.name for alias in node.names)
            module = ".".join(part for part in base if part)
            if (PACKAGE / Path(*base)).is_dir():  # from .package import module, or what it exports
                for name in names:
                    found = f"{module}.{name}".strip(".")
                    yield Import(EXPORTED.get(found, found), True, (), *when)
            else:
                yield Import(module, True, names, *when)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield Import(node.module.partition(".")[0], False, (), *when)


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}
IMPORTS = {name: list(imports_of(path)) for name, path in MODULES.items()}


NAMED = {name for layer in LAYERS for name in layer}


def layer_name(module: str) -> str:
    """What stands for a module in `LAYERS`: itself, or its package's `*`, as for any source."""
    return module if module in NAMED else f"{module.rpartition('.')[0]}.*"


def test_every_module_has_its_layer():
    assert {layer_name(module) for module in MODULES} == NAMED


def test_imports_go_down_the_layers():
    """So there is no circle of them."""
    place = {name: at for at, name in enumerate(name for layer in LAYERS for name in layer)}
    upward = [
        (name, found.name)
        for name, found_here in IMPORTS.items()
        for found in found_here
        if found.ours
        and not found.for_types_only
        and found.name in MODULES
        and place[layer_name(found.name)] >= place[layer_name(name)]
    ]
    assert upward == []


@pytest.mark.parametrize("library", BOUNDARIES)
def test_a_library_is_imported_by_its_boundary_only(library):
    assert BOUNDARIES[library] == {
        name for name, found in IMPORTS.items() if any(i.name == library for i in found)
    }


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_pure_modules_are_pure(module):
    shell = {"trio", *BOUNDARIES, "socket", "ssl", "os", "time", "random", "logging", "pathlib"}
    allowed = {"os"} if module == "link.framing" else set()  # the entropy of the masks
    assert {i.name for i in IMPORTS[module]} & shell <= allowed


def test_no_module_uses_anothers_private_names():
    assert [
        (name, private)
        for name, found in IMPORTS.items()
        for i in found
        for private in i.names
        if i.ours and private.startswith("_") and private != "__version__"
    ] == []


def test_the_service_starts_without_optional_imports():
    reached, to_do = set(), ["app"]
    while to_do:
        at_once = [i for i in IMPORTS[to_do.pop()] if not i.late and not i.for_types_only]
        to_do += [i.name for i in at_once if i.name in IMPORTS and i.name not in reached]
        reached |= {i.name for i in at_once}
    assert {"link.link", "trio_websocket", "structlog"} < reached
    assert not reached & HEAVY


@pytest.mark.parametrize("module", MODULES)
def test_no_member_of_a_class_hides_a_type_that_the_class_names(module):
    """From 3.14 on annotations are looked up late, and a member comes before a global name."""
    for found in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(found, ast.ClassDef):
            fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
            used = {n.id for f in fields for n in ast.walk(f.annotation) if isinstance(n, ast.Name)}
            assert not used & {ast.unparse(field.target) for field in fields}
