"""Install Chromium, which tests and benchmarks look at pages with, from the system's packages.

The system's Python may run this: standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ON_MACOS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# A network that is not there is given up soon.
APT = ("apt-get", "-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20")
# The commands of each package manager.
MANAGERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "apt-get": ((*APT, "update"), (*APT, "install", "-y", "--no-install-recommends", "chromium")),
    "dnf": (("dnf", "install", "-y", "chromium"),),
    "brew": (("brew", "install", "--cask", "chromium"),),
}
STDERR = 2  # its number: what the package manager says is no result of this command
BY_USERS = ("brew",)  # the others need root


def main() -> int:
    """Install Chromium unless it is there; returns an exit status."""
    found = chromium()
    if found is None:
        manager = next(filter(shutil.which, MANAGERS), None)
        if manager is None:
            return _refuse(f"none of {', '.join(MANAGERS)} is here; install Chromium as this system does it")
        before = () if manager in BY_USERS or os.geteuid() == 0 else ("sudo", "-n")
        if before and shutil.which("sudo") is None:
            return _refuse(f"{manager} needs root; ask for `{' '.join(MANAGERS[manager][-1])}`")
        for command in MANAGERS[manager]:
            if subprocess.call([*before, *command], stdout=STDERR):
                return _refuse(f"`{' '.join([*before, *command])}` failed; install Chromium by hand")
        found = chromium()
    if found is None:
        return _refuse("Chromium was installed, but none is in PATH; put it there")
    print(f"{found}: the browser for tests")
    return 0


def chromium() -> str | None:
    """The path of Chromium, or of a browser like it."""
    return next(filter(None, (*map(shutil.which, NAMES), *filter(os.path.exists, ON_MACOS))), None)


def _refuse(problem: str) -> int:
    print(f"error: no browser: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
