"""A real browser that can reach nothing but this machine."""

import asyncio
import shutil

from tests.conftest import missing


async def chromium(*arguments: str) -> bytes:
    """Run a headless Chromium; return what it writes to its standard output."""
    program = shutil.which("chromium")
    if program is None:
        missing("chromium is not installed (apt-get install chromium)")
    # Every name but the loopback's is unknown to it: what the page would fetch from elsewhere could not come.
    browser = await asyncio.create_subprocess_exec(
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=2000",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        out, _ = await browser.communicate()
    return out
