"""Edits and checks which image each environment runs: the digest and version in its values file.

    environments.py deploy FOLDER DIGEST VERSION     write them into the first environment
    environments.py promote FOLDER FROM              copy them to the environment after FROM
    environments.py check FOLDER BASE                refuse an image that skipped an environment
    environments.py digests FOLDER                   print the digest of every image, for a scan

An environment is FOLDER/<name>/values.yaml. A file is edited by the line, so that its comments stay; whatever does not look as
expected is refused, not guessed. Needs nothing but Python.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ORDER = ("dev", "staging", "prod")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
VERSION = re.compile(
    r"[0-9A-Za-z_][0-9A-Za-z._-]{0,127}"
)  # what a tag may be: OCI distribution 1.1, "Pulling manifests"


class Refused(Exception):
    pass


@dataclass(frozen=True)
class Image:
    digest: str
    tag: str

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.digest):
            raise Refused(f"image.digest must be sha256: and 64 digits, not '{self.digest}'")
        if not VERSION.fullmatch(self.tag):
            raise Refused(f"image.tag must be a version, not '{self.tag}'")


def values_file(folder: Path, environment: str) -> Path:
    if environment not in ORDER:
        raise Refused(f"there is no environment '{environment}': {', '.join(ORDER)}")
    path = folder / environment / "values.yaml"
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    return path


def find_value(text: str, key: str) -> tuple[int, int]:
    """Where in the text the value of `image.<key>` is, with its quotes."""
    block = re.search(r"^image:[ \t]*(?:#.*)?\n((?:[ \t].*\n|#.*\n|\n)+)", text, re.MULTILINE)
    lines = list(re.finditer(rf"^  {key}: *([^#\s]*)", block[1], re.MULTILINE)) if block else []
    if not block or len(lines) != 1:
        raise Refused(f"needs a block 'image:' with one line '  {key}: …'")
    return block.start(1) + lines[0].start(1), block.start(1) + lines[0].end(1)


def read_value(text: str, key: str) -> str:
    start, end = find_value(text, key)
    return text[start:end].strip("\"'")


def read_image(path: Path) -> Image:
    text = path.read_text()
    try:
        return Image(read_value(text, "digest"), read_value(text, "tag"))
    except Refused as fault:
        raise Refused(f"{path}: {fault}") from None


def write_image(path: Path, image: Image) -> None:
    text = path.read_text()
    try:
        for key, value in (("digest", image.digest), ("tag", image.tag)):
            start, end = find_value(text, key)
            text = f'{text[:start]}"{value}"{text[end:]}'
    except Refused as fault:
        raise Refused(f"{path}: {fault}") from None
    path.write_text(text)


def deploy(folder: Path, digest: str, version: str) -> str:
    write_image(values_file(folder, ORDER[0]), Image(digest, version))
    return f"{ORDER[0]}: {version}, {digest}"


def promote(folder: Path, source: str) -> str:
    read_from = values_file(folder, source)
    if source == ORDER[-1]:
        raise Refused(f"{source} is the last environment")
    if git("status", "--porcelain", "--", str(read_from)):
        raise Refused(f"{read_from} is not committed: nothing runs it yet")
    target = ORDER[ORDER.index(source) + 1]
    image = read_image(read_from)
    write_image(values_file(folder, target), image)
    return f"{source} → {target}: {image.tag}, {image.digest}"


def check(folder: Path, base: str) -> str:
    """Every changed image must have run one environment earlier before BASE, or here: a way back is always open."""
    faults = []
    for before, environment in itertools.pairwise(ORDER):
        path = values_file(folder, environment)
        digest = read_image(path).digest
        paths = [str(path), str(values_file(folder, before))]
        if not git("log", "--format=%h", f"-S{digest}", base, "--", *paths):
            faults.append(
                f"{environment}: {digest} did not run in {before} before; `make promote FROM={before}` copies what does"
            )
    if faults:
        raise Refused("\n".join(faults))
    return "each image ran one environment earlier"


def digests(folder: Path) -> str:
    return "\n".join(sorted({read_image(values_file(folder, environment)).digest for environment in ORDER}))


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


VERBS: dict[str, Callable[..., str]] = {"deploy": deploy, "promote": promote, "check": check, "digests": digests}


def main(arguments: list[str]) -> int:
    verb, folder, *rest = arguments
    try:
        print(VERBS[verb](Path(folder), *rest))
    except Refused as fault:
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
