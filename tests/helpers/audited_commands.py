"""Program that runs several commands in one process, for `audited.py`.

The only argument is a JSON list of commands, each a list of words. The command `load-export FOLDER`
loads an exported folder from Python. Prints the exit statuses as a JSON list.
"""

import json
import sys
from pathlib import Path

from adautomix.cli import main
from adautomix.errors import AdAutoMixError
from adautomix.runs.export import load_exported


def status_of(words: list[str]) -> int:
    """Run one command and return its exit status."""
    try:
        if words[0] == "load-export":
            load_exported(Path(words[1]))
        else:
            main(words)
    except AdAutoMixError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    statuses = [status_of(words) for words in json.loads(sys.argv[1])]
    print(f"\nSTATUSES {json.dumps(statuses)}")
