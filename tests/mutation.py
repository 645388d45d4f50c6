"""Which mutants of the core the tests kill, in an hour on two cores.

    git clone . ../copy && cd ../copy && pip install mutmut
    python tests/mutation.py

mutmut makes the mutants and finds the tests that reach each; ``[tool.mutmut]`` in pyproject.toml
says of what. Then it would start pytest for every mutant, which takes longer than the tests.
Here a session that has collected all tests is forked for every mutant instead. The tests that
killed its neighbours go first, then the quick ones; the first that fails ends it.

Results are added to mutants/results.jsonl, so that an interrupted run continues.
The kinds of survivors are in docs/mutation.md.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from zlib import crc32

import pytest

COPY, RESULTS = Path("mutants"), Path("results.jsonl")
PROCESSES = 2
SECONDS = 30  # of tests that a survivor is tried on; the slowest of them are left out
SETTINGS = {"OPENBLAS_NUM_THREADS": "1", "PY_IGNORE_IMPORTMISMATCH": "1", "PYTHONPATH": "."}


class Mutants:
    """A plugin of pytest that runs its share of the mutants instead of the tests."""

    def __init__(self, share: int) -> None:
        self.share = share

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        stats = json.loads(Path("mutmut-stats.json").read_text())
        seconds, reached = stats["duration_by_test"], stats["tests_by_mangled_function_name"]
        items = {item.nodeid: item for item in session.items}
        killers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        longest = max(items.keys() & seconds.keys(), key=seconds.get)
        run([items[longest]])  # so that what it imports and caches is there in every fork
        for mutant in self.mutants():
            function = mutant.rpartition("__mutmut_")[0]
            tests = [name for name in reached.get(function, ()) if name in items]
            tests.sort(key=lambda name: (-killers[function][name], seconds[name]))
            while sum(map(seconds.get, tests)) > SECONDS:
                tests.pop()
            limit = 20 + 10 * sum(map(seconds.get, tests))
            result, killer = forked(mutant, [items[name] for name in tests], limit)
            killers[function][killer] += 1
            with RESULTS.open("a") as file:
                file.write(json.dumps({"mutant": mutant, "result": result, "by": killer}) + "\n")
        return True

    def mutants(self) -> list[str]:
        """Those of this share that are not done."""
        lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        done = {json.loads(line)["mutant"] for line in lines}
        found = [
            name
            for file in sorted(Path("refseq2seq").rglob("*.meta"))
            for name in json.loads(file.read_text())["exit_code_by_key"]
        ]
        return [m for m in found if m not in done and crc32(m.encode()) % PROCESSES == self.share]


def forked(mutant: str, tests: list[pytest.Item], limit: float) -> tuple[str, str]:
    """What became of a mutant, and the test that killed it."""
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        from mutmut.mutation.trampoline import set_mutant_under_test

        set_mutant_under_test(mutant)
        run(tests, writer)
        os._exit(0)
    os.close(writer)
    deadline, status = time.monotonic() + 3 * limit, None
    while status is None and time.monotonic() < deadline:
        ended, code = os.waitpid(process, os.WNOHANG)
        status = code if ended else None
        time.sleep(0 if ended else 0.005)
    if status is None:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    killer = os.read(reader, 4096).decode()
    os.close(reader)
    return ("survived" if status == 0 else "killed" if killer else "timeout"), killer


def run(tests: list[pytest.Item], writer: int | None = None) -> None:
    """Run tests; at the first that fails write its name and end the process."""

    class FirstFailure:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
            failed = call.excinfo and not call.excinfo.errisinstance(pytest.skip.Exception)
            if failed and writer is not None:
                os.write(writer, item.nodeid.encode())
                os._exit(1)

    if tests:
        tests[0].config.pluginmanager.register(FirstFailure())
    for test, after in zip(tests, [*tests[1:], None], strict=True):
        test.ihook.pytest_runtest_protocol(item=test, nextitem=after)


def main() -> None:
    if len(sys.argv) > 1:  # a share, in a process of its own
        selected = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
        arguments = selected["pytest_add_cli_args"] + selected["pytest_add_cli_args_test_selection"]
        pytest.main(["-q", *arguments], plugins=[Mutants(int(sys.argv[1]))])
        return
    first = "refseq2seq.masks.x_causal_mask__mutmut_1"  # to make all, mutmut must run one
    subprocess.run(["mutmut", "run", first], env=os.environ | {"PYTHONPATH": "."}, check=True)
    program, environment = [sys.executable, Path(__file__).resolve()], os.environ | SETTINGS
    shares = [
        subprocess.Popen([*program, str(i)], cwd=COPY, env=environment) for i in range(PROCESSES)
    ]
    for share in shares:
        share.wait()
    lines = (COPY / RESULTS).read_text().splitlines()
    print(Counter(json.loads(line)["result"] for line in lines))


if __name__ == "__main__":
    main()
