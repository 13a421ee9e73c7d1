#!/usr/bin/python3
"""Fails if a crate of a Cargo.lock was yanked: withdrawn from the registry that it is from.

  check-yanked.py CARGO.LOCK...

The registry's index has the mark, and cargo reads it, though it says nothing of it. So cargo resolves what stands beside each
file, without writing there, with a home of its own that is empty before: what is in its cache then is what the registry says now.
Where cargo cannot be asked, as without a network, prints `==> yanked crates: NOT CHECKED: WHY` and exits 0. CARGO is the cargo to
ask; it may be several words. Its configuration is the user's own.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import tomllib

# Four hundred crates take some seconds; a network that swallows everything shall not hold a check up for long.
PATIENCE = 180


class NotChecked(Exception):
    """Why the registry could not be asked."""


def locked(lock):
    """The crates in that Cargo.lock that come from a registry, as (name, version)."""
    packages = tomllib.loads(lock.read_text(encoding="utf-8")).get("package", [])
    from_registry = (package for package in packages if package.get("source", "").startswith(("registry+", "sparse+")))
    return {(package["name"], package["version"]) for package in from_registry}


def resolve(lock, home):
    """Has cargo, with that home, read what the registry says of all crates in `lock`."""
    command = shlex.split(os.environ.get("CARGO") or "cargo")
    command += ["update", "--workspace", "--dry-run", "--manifest-path", str(lock.with_name("Cargo.toml"))]
    environment = os.environ | {"CARGO_HOME": str(home), "CARGO_NET_RETRY": "1", "CARGO_HTTP_TIMEOUT": "20"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotChecked(f"cargo did not end within {PATIENCE} s") from error
    if done.returncode != 0:
        raise NotChecked("; ".join(line.strip() for line in done.stderr.splitlines() if line.strip()))


def marks(home):
    """What cargo keeps of the index in that home: whether each (name, version) is yanked.

    A file for each crate: a head, then for each version its number and the index's own JSON, all ended by zero bytes.
    """
    found = {}
    for file in home.glob("registry/index/*/.cache/**/*"):
        if file.is_file():
            for part in file.read_bytes().split(b"\0"):
                if part.startswith(b"{"):
                    entry = json.loads(part)
                    found[entry["name"], entry["vers"]] = entry["yanked"]
    return found


def home_like_the_users(folder):
    """A home for cargo in `folder` with the user's configuration and nothing else."""
    users = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo").absolute()
    for name in ("config.toml", "config", "credentials.toml", "credentials"):
        if (users / name).is_file():
            (folder / name).symlink_to(users / name)
    return folder


def check(locks):
    """The crates in `locks` that are yanked, and how many there are in all."""
    with tempfile.TemporaryDirectory(prefix="resumed-yanked-") as folder:
        home = home_like_the_users(pathlib.Path(folder))
        for lock in locks:
            resolve(lock, home)
        found = marks(home)
    crates = set().union(*(locked(lock) for lock in locks))
    unknown = sorted(crates - found.keys())
    if unknown:
        name, version = unknown[0]
        raise NotChecked(f"cargo keeps nothing of {len(unknown)} crates that this script understands, such as {name} {version}")
    return sorted(crate for crate in crates if found[crate]), len(crates)


def main(arguments):
    locks = [pathlib.Path(argument).absolute() for argument in arguments]
    try:
        yanked, count = check(locks)
    except NotChecked as why:
        print(f"==> yanked crates: NOT CHECKED: {why}")
        return 0
    for name, version in yanked:
        print(f"check-yanked: {name} {version} was yanked from its registry: cargo update --package {name}", file=sys.stderr)
    print(f"==> yanked crates: {len(yanked)} of {count}")
    return 1 if yanked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
