"""sglang.launch_server with a key for those who ask, which neither its command line nor its log tells.

    python keyed.py FILE ARGUMENT...

FILE holds the key. SGLang logs all its arguments, and so this key: here it is blackened. Standard library only: it is
started by its path.
"""

import logging
import runpy
import sys
from pathlib import Path


def main() -> None:
    key = Path(sys.argv[1]).read_text()
    make = logging.getLogRecordFactory()

    def blackened(*arguments, **keywords) -> logging.LogRecord:
        record = make(*arguments, **keywords)
        if key in (message := record.getMessage()):
            record.msg, record.args = message.replace(key, "***"), ()
        return record

    logging.setLogRecordFactory(blackened)
    sys.argv = ["sglang.launch_server", *sys.argv[2:], f"--api-key={key}"]  # one word: a key may begin with a dash
    sys.path.pop(0)  # this file's folder, which hides others behind its own names
    runpy.run_module("sglang.launch_server", run_name="__main__")


if __name__ == "__main__":
    main()
