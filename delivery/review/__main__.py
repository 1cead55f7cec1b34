"""`python -m delivery.review`; see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from delivery.review.environment import CannotTell, Charts, Environment, Tree, read_environments
from delivery.review.guards import refusals
from delivery.review.words import describe, difference

ORDER = {"dev": 0, "staging": 1, "prod": 2}


@dataclass(frozen=True)
class Review:
    environment: str
    changes: list[str]
    refused: list[str]
    difference: str


@dataclass(frozen=True)
class Layout:
    title: str
    section: str
    name: str
    line: str

    def paragraph(self, name: str, lines: list[str]) -> str:
        return "\n".join([self.name.format(name), *(self.line.format(line) for line in lines)])


TERMINAL = Layout("{}", "{}", "{}", "  {}")
MARKDOWN = Layout("# {}", "## {}", "**{}**\n", "- {}")


def review(name: str, before: Environment | None, after: Environment | None) -> Review:
    if before and after:
        changes, text = describe(before, after), difference(before, after)
        changes = changes or (
            ["the same values in another order, which Kubernetes may take differently"] if text else []
        )
    elif after:
        least, most = after.pods
        changes, text = [f"new environment, {least} to {most} pods, model {after.value('model.name')}"], ""
    else:
        changes, text = ["environment gone"], ""
    # What stands as it stood is not this merge's to answer for.
    refused = refusals(before, after) if changes or text else []
    return Review(name, changes, refused, text)


def as_text(reviews: list[Review]) -> str:
    return "\n\n".join(laid_out(reviews, TERMINAL)) + "\n"


def as_markdown(reviews: list[Review]) -> str:
    folded = [
        f"<details><summary>{found.environment}, as rendered</summary>\n\n```diff\n{found.difference}\n```\n\n</details>"
        for found in reviews
        if found.difference
    ]
    return "\n\n".join([*laid_out(reviews, MARKDOWN), *folded]) + "\n"


def laid_out(reviews: list[Review], layout: Layout) -> list[str]:
    """Paragraphs: what changes, by environment, then what is refused."""
    changes = [layout.paragraph(found.environment, found.changes) for found in reviews if found.changes]
    refused = [layout.paragraph(found.environment, found.refused) for found in reviews if found.refused]
    paragraphs = [layout.title.format("What the merge changes"), *(changes or ["Nothing in any environment."])]
    if refused:
        count = sum(len(found.refused) for found in reviews)
        paragraphs.append(layout.section.format(f"Refused, for {count} reason{'s' if count > 1 else ''}"))
    return paragraphs + refused


def as_json(reviews: list[Review]) -> str:
    document = {
        "refused": any(found.refused for found in reviews),
        "environments": [asdict(found) for found in reviews],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def review_all(root: Path, base: str, helm: str) -> list[Review]:
    with tempfile.TemporaryDirectory() as folder:
        charts = Charts(helm, Path(folder))
        before = read_environments(Tree(root, base), charts)
        after = read_environments(Tree(root), charts)
    names = sorted({*before, *after}, key=lambda name: (ORDER.get(name, 3), name))
    return [review(name, before.get(name), after.get(name)) for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m delivery.review")
    parser.add_argument("base")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        reviews = review_all(Path.cwd(), given.base, os.environ.get("HELM", "helm"))
        text, markdown, document = as_text(reviews), as_markdown(reviews), as_json(reviews)
    except CannotTell as error:
        text, document = f"Cannot be told: {error}\n", ""
        markdown = f"# What the merge changes\n\n{text}"
    for path, content in ((given.markdown, markdown), (given.json, document)):
        if path and content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    print(text, end="")
    return 2 if not document else int(any(found.refused for found in reviews))


if __name__ == "__main__":
    sys.exit(main())
