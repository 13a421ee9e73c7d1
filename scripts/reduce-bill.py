#!/usr/bin/env python3
"""Reduces a bill of materials to the crates that are linked, and fails unless it has each of them.

usage: cargo tree --edges normal --prefix none --no-dedupe --package CRATE | scripts/reduce-bill.py BILL.cdx.json

cargo-cyclonedx reads `cargo metadata`, where a crate has the features that anything in the workspace asks for, on any system: it
lists crates that were never compiled. Writes the bill in place.
"""

import json
import sys


def linked(lines):
    """Name and version of each crate of a registry in the output of `cargo tree`."""
    found = set()
    for line in lines:
        words = line.split()
        # The workspace's own crates have their path behind the version.
        if len(words) >= 2 and words[1].startswith("v") and " (/" not in line:
            found.add((words[0], words[1][1:]))
    return found


def is_of_registry(part):
    """Whether a component is a crate from a registry, and not one of the workspace."""
    url = part.get("purl", "")
    return url.startswith("pkg:cargo/") and "download_url=file" not in url


def main():
    path = sys.argv[1]
    wanted = linked(sys.stdin)
    with open(path, encoding="utf-8") as file:
        bill = json.load(file)
    kept, gone = [], set()
    for part in bill.get("components", []):
        if is_of_registry(part) and (part["name"], part["version"]) not in wanted:
            gone.add(part["bom-ref"])
        else:
            kept.append(part)
    bill["components"] = kept
    bill["dependencies"] = [
        {**entry, "dependsOn": [ref for ref in entry.get("dependsOn", []) if ref not in gone]}
        if "dependsOn" in entry
        else entry
        for entry in bill.get("dependencies", [])
        if entry["ref"] not in gone
    ]
    missing = wanted - {(part["name"], part["version"]) for part in kept}
    if missing or not wanted:
        names = ", ".join(" ".join(one) for one in sorted(missing))
        sys.exit(f"reduce-bill: {path} lacks {names or 'everything: cargo tree named no crate'}")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(bill, file, indent=2, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
