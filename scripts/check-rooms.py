#!/usr/bin/env python3
"""Holds the rooms of src/ to the arrows of scripts/rooms.txt, their door to what comes through it, and files to 700 lines.

usage: scripts/check-rooms.py             look, and say what does not hold
       scripts/check-rooms.py --actual    print the arrows that there are
       scripts/check-rooms.py --self-test show that it sees what it is there for

No room uses another that the table does not name, and no file that has a line of its own there another than that line names; what
is pure touches no socket, file, task, clock, recorder or global; the arrows go round in no circle; docs/architecture.md shows the
same table, and says of each room what it is. What is there for tests alone may use what it likes. What src/internals.rs hands out
of the rooms is named by something that is built beside the library.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = "scripts/rooms.txt"
MOST_LINES = 700

# The door to the rooms, and what comes through it: packages and crates beside the library.
DOOR = "src/internals.rs"
BESIDE = ("tests", "benches", "debian", "src/main.rs")

# What a pure room keeps away from: paths, as they stand in the sources once groups are written out.
IMPURE = [
    (r"\btokio(_util)?\b", "tokio"),
    (r"\b(metrics|tracing)::", "a recorder or a log"),
    (r"\bstd::(fs|net|os|process|thread|env|io::std\w+)\b", "the system"),
    (r"\b(nix|getrandom)::|\bopenssl::rand\b", "the system"),
    (r"\bInstant::now\b|\bSystemTime\b|\bSystemClock\b|\bNanoseconds\b", "a clock"),
    (r"\brandom::(random|system|fill|try_fill)\b", "the kernel's randomness"),
    (r"\bRandomState\b", "the process's hash keys"),
    (r"\bstatic\s+(mut\s+)?\w+\s*:[^;=]*\b(Mutex|RwLock|Atomic\w+|OnceLock|LazyLock|OnceCell|RefCell)\b", "a global"),
]
# Where the table's word is not the whole truth, with the reason.
EXCUSED = {
    # The session cache's index is keyed, so that no client can choose IDs that collide. Where a session lies in memory depends
    # on the keys, and nothing that the cache answers.
    ("sessions", "the process's hash keys"),
}


def without_comments(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"(?m)//[^\n]*$", "", text)


def end_of_block(text, start):
    """Where the block that opens at or after `start` ends; a `;` before it ends it, too."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place + 1
        elif text[place] == ";" and depth == 0:
            return place + 1
    return len(text)


def without_tests(text):
    """Without items under `#[cfg(test)]`, and the names of modules in other files that are under it."""
    names = set()
    while True:
        found = re.search(r"#\[cfg\(test\)\]\s*", text)
        if not found:
            return text, names
        start = found.end()
        module = re.match(r"(?:#\[[^\]]*\]\s*)*(?:pub(?:\(\w+\))?\s+)?mod\s+(\w+)\s*;", text[start:])
        if module:
            names.add(module[1])
        text = text[: found.start()] + text[end_of_block(text, start) :]


def written_out(text):
    """Every path in `text`, with the groups of `use` written out."""
    paths = []

    def walk(prefix, group):
        depth, part, parts = 0, "", []
        for char in group:
            if char == "," and depth == 0:
                parts.append(part)
                part = ""
                continue
            depth += {"{": 1, "}": -1}.get(char, 0)
            part += char
        for one in [*parts, part]:
            one = one.strip()
            if not one:
                continue
            inner = re.match(r"([\w:]*?)(?:::)?\{(.*)\}$", one, flags=re.S)
            if inner:
                walk([*prefix, *filter(None, inner[1].split("::"))], inner[2])
            else:
                paths.append("::".join([*prefix, *filter(None, re.split(r"::", one.split(" as ")[0].strip()))]))

    for use in re.finditer(r"\buse\s+([^;]+);", text):
        walk([], use[1])
    paths += re.findall(r"\b(?:crate|super|self)(?:::\w+)+", text)
    return paths


def files_of(room):
    folder, file = ROOT / "src" / room, ROOT / "src" / f"{room}.rs"
    return ([file] if file.exists() else []) + (sorted(folder.rglob("*.rs")) if folder.is_dir() else [])


def sources_of(room):
    """The files of a room and what in them is no test."""
    read = {file: without_tests(without_comments(file.read_text(encoding="utf-8"))) for file in files_of(room)}
    hidden = set()
    for file, (_, names) in read.items():
        at = file.parent if file.name in ("mod.rs", f"{room}.rs") and file.parent.name != "src" else file.with_suffix("")
        at = file.parent if file.name == "mod.rs" else at
        for name in names:
            hidden |= {at / f"{name}.rs", at / name}
    return {f: t for f, (t, _) in read.items() if not any(f == h or h in f.parents for h in hidden)}


def depth_of(file):
    """How many modules lie between the root of the crate and what stands in `file`, itself included."""
    parts = list(file.relative_to(ROOT / "src").with_suffix("").parts)
    return len(parts) - (1 if parts[-1] == "mod" else 0)


def arrows_in(file, text, rooms):
    used, faults = set(), []
    for path in written_out(text):
        parts = path.split("::")
        if parts[0] == "super":
            ups = next((place for place, part in enumerate(parts) if part != "super"), len(parts))
            # Within a module that is written into the file this leads less far: then it is no room that is named.
            if ups >= depth_of(file) and ups < len(parts) and parts[ups] in rooms:
                used.add(parts[ups])
            continue
        if parts[0] != "crate" or len(parts) < 2:
            continue
        if parts[1] in rooms:
            used.add(parts[1])
        else:
            faults.append(f"names crate::{parts[1]} by the façade at the root: name the room that it is in")
    return used, faults


def impurities(text, room):
    found = []
    together = text + "\n" + "\n".join(path + "::" for path in written_out(text))
    for pattern, what in IMPURE:
        hit = re.search(pattern, together)
        if hit and (room, what) not in EXCUSED:
            found.append(f"{what} ({hit[0].strip()})")
    return found


def all_rooms():
    names = {path.stem for path in (ROOT / "src").iterdir() if path.suffix == ".rs" or path.is_dir()}
    return sorted(names - {"internals", "lib", "main", "temporary"})


def read_table():
    """Of each room, and of each file with a line of its own: whether it is pure, and which rooms it may use."""
    rooms, files = {}, {}
    for line in (ROOT / TABLE).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, uses = line.partition(":")
        words = name.split()
        (files if "/" in words[0] else rooms)[words[0]] = ("pure" in words[1:], set(uses.split()))
    return rooms, files


def rule_of(file, room, rooms, files):
    """What the table says of a file: the line of its own, or of the file that it is a module of, if there is one; else the room's."""
    place = file.relative_to(ROOT / "src").with_suffix("")
    return next((files[str(one)] for one in (place, *place.parents) if str(one) in files), rooms[room])


def faults_in(file, text, room, rule, names):
    """What in a file of `room` the table does not allow."""
    pure, allowed = rule
    shown = file.relative_to(ROOT)
    used, bad = arrows_in(file, text, names)
    faults = [f"{shown} {fault}" for fault in bad]
    faults += [
        f"{shown} uses crate::{other}, which {TABLE} does not allow: move what is shared, or show there why it must"
        for other in sorted(used - allowed - {room})
    ]
    if pure:
        faults += [f"{shown} is of what is pure, and touches {what}" for what in impurities(text, room)]
    return faults


def handed_out(door):
    """The names that the door's text hands out; what a `*` stands for is not among them."""
    return {path.split("::")[-1] for path in written_out(without_comments(door).replace("crate::", ""))} - {"*", "self"}


def unused_door():
    files = [file for place in BESIDE for file in ([ROOT / place] if place.endswith(".rs") else (ROOT / place).rglob("*.rs"))]
    named = set(re.findall(r"\w+", " ".join(without_comments(file.read_text(encoding="utf-8")) for file in files)))
    names = handed_out((ROOT / DOOR).read_text(encoding="utf-8"))
    return [f"{DOOR} hands out {name}, which nothing beside the library names" for name in sorted(names - named)]


def circle(rooms):
    state = {}

    def visit(room, way):
        if state.get(room) == "done":
            return None
        if room in way:
            return [*way[way.index(room) :], room]
        for used in sorted(rooms.get(room, (False, set()))[1]):
            found = visit(used, [*way, room])
            if found:
                return found
        state[room] = "done"
        return None

    for room in rooms:
        found = visit(room, [])
        if found:
            return found
    return None


def look():
    faults = []
    rooms, files = read_table()
    names = set(all_rooms())
    faults += [f"{TABLE} names {room}, which is no room of src/" for room in rooms if room not in names]
    faults += [f"src/{room} has no line in {TABLE}" for room in sorted(names - set(rooms))]
    faults += [
        f"{TABLE} names {name}, which is no file of src/"
        for name in files
        if not any((ROOT / "src" / f"{name}{rest}").exists() for rest in (".rs", "/mod.rs"))
    ]
    for room in rooms:
        for file, text in sources_of(room).items():
            faults += faults_in(file, text, room, rule_of(file, room, rooms, files), names)
    faults += unused_door()
    found = circle(rooms)
    if found:
        faults.append(f"the arrows of {TABLE} go round: {' uses '.join(found)}")
    for folder in ("src", "ats-plugin/src", "session-offer/src"):
        for file in sorted((ROOT / folder).rglob("*.rs")):
            text = file.read_text(encoding="utf-8")
            tests = re.search(r"(?m)^#\[cfg\(test\)\]\n(?:#\[.*\]\n)*(?:pub(?:\(\w+\))? )?mod \w+ \{", text)
            lines = text[: tests.start()].count("\n") if tests else text.count("\n")
            if lines > MOST_LINES and file.name != "tests.rs":
                faults.append(f"{file.relative_to(ROOT)} has {lines} lines before its tests; {MOST_LINES} are accepted: part what it holds")
    table = [line for line in (ROOT / TABLE).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    book = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- rooms -->\n```text\n(.*?)\n```\n<!-- end -->", book, flags=re.S)
    if not shown or shown[1].splitlines() != table:
        faults.append(f"docs/architecture.md does not show {TABLE} between its marks")
    rows = re.search(r"\n\| room \| what it is .*\n\| --- .*\n((?:\|.*\n)+)", book)
    described = set(re.findall(r"`([^`]+)`", " ".join(row.split("|")[1] for row in rows[1].splitlines()))) if rows else set()
    faults += [f"docs/architecture.md does not say what the room {room} is" for room in rooms if room not in described]
    return faults


def actual():
    names = set(all_rooms())
    for room in sorted(names):
        used = set()
        for file, text in sources_of(room).items():
            used |= arrows_in(file, text, names)[0]
        print(f"{room}: {' '.join(sorted(used - {room}))}".rstrip())


def self_test():
    """Each of these once passed, or could."""
    names = set(all_rooms())
    own = ROOT / "src/farm/own.rs"
    arrow = {
        "use crate::bus::Link;": "bus",
        "use crate::{\n    bus::Link,\n    node::{Node, core::{Effect}},\n};": "node",
        "use super::super::bus::Link;": "bus",
        "fn f() { crate::bus::backoff::first() }": "bus",
    }
    for text, room in arrow.items():
        assert room in arrows_in(own, without_comments(text), names)[0], text
    assert arrows_in(own, "use crate::RabbitMq;", names)[1], "a name of the façade"
    assert arrows_in(own, "use crate::internals::bus::Link;", names)[1], "the door, from within"
    assert handed_out("pub mod a {\n    pub use crate::a::b::{C, d};\n    pub use crate::e::*; // f\n}") == {"C", "d"}
    rooms = {"node": (False, {"farm", "metrics"})}
    files = {"node/core": (True, {"farm"})}
    for text, place, noticed in (
        ("use crate::metrics::LEADER;", "core", True),
        ("use tokio::fs;", "core", True),
        ("use tokio::fs;", "core/saving", True),
        ("use crate::farm::Farm;", "core", False),
        ("use crate::metrics::LEADER;", "driver", False),
        ("use tokio::fs;", "driver", False),
    ):
        file = ROOT / f"src/node/{place}.rs"
        assert bool(faults_in(file, text, "node", rule_of(file, "node", rooms, files), names)) == noticed, (place, text)
    for text in (
        "use std::{fs, net};",
        "use std::{\n    collections::HashMap,\n    fs::{self, File},\n};",
        "use tokio as t;",
        "fn f() { let now = crate::clock::SystemClock::start(); }",
        "fn f() { crate::random::system() }",
        "use std::{hash::BuildHasher, hash::RandomState};",
        "static X: std::sync::Mutex<u8> = std::sync::Mutex::new(0);",
        "use tokio::fs;",
        "fn f() { std::time::Instant::now(); }",
    ):
        assert impurities(without_comments(text), "farm"), text
    for text in ("// use tokio::fs;", "use std::collections::HashMap;", "/// [`tokio`]\nfn f() {}", "use crate::clock::{Now, millis};"):
        assert not impurities(without_comments(text), "farm"), text
    text, hidden = without_tests("mod a;\n#[cfg(test)]\nmod b;\n#[cfg(test)]\nmod tests { fn f() { {} } }\nfn g() {}\n")
    assert hidden == {"b"} and "fn g" in text and "fn f" not in text, text
    assert circle({"a": (True, {"b"}), "b": (True, {"c"}), "c": (True, {"a"})}) == ["a", "b", "c", "a"]
    assert circle({"a": (True, {"b", "c"}), "b": (True, {"c"}), "c": (True, set())}) is None


def main():
    if sys.argv[1:] == ["--actual"]:
        return actual()
    self_test()
    if sys.argv[1:] == ["--self-test"]:
        return None
    faults = look()
    for fault in faults:
        print(f"check-rooms: {fault}", file=sys.stderr)
    return sys.exit(1) if faults else None


if __name__ == "__main__":
    main()
