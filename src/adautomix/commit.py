"""The commit of this package's source code, which records of figures name."""

import shutil
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit that runs, marked where its code was changed; None outside of a checkout."""
    package = Path(__file__).parent
    if shutil.which("git") is None or git(package, "ls-files", "--error-unmatch", ".") is None:
        return None
    changed = git(package, "diff", "--quiet", "HEAD", "--", ".") is None
    return f"{git(package, 'rev-parse', '--short=12', 'HEAD')}{'+changes' if changed else ''}"


def git(folder: Path, *words: str) -> str | None:
    """The output of a git command in a folder; None if it fails."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
