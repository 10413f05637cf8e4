"""Firefox without a screen, driven over WebDriver BiDi: Debian has no geckodriver."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds, for a start or an answer


@contextmanager
def started(program: str, profile: Path) -> Iterator["Firefox"]:
    """A Firefox with an empty page, which ends with the context.

    Args:
        program: its path.
        profile: an empty folder.
    """
    command = [program, "--headless", "--remote-debugging-port=0", "--profile", str(profile)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Firefox(address(profile, process))
    finally:
        process.terminate()
        process.wait(PATIENCE)


def address(profile: Path, process: "subprocess.Popen[bytes]") -> str:
    """Where a Firefox that has just been started listens: it writes that into its profile."""
    file, until = profile / "WebDriverBiDiServer.json", time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert process.poll() is None, f"firefox ended with status {process.returncode}"
        if file.is_file() and (text := file.read_text()):
            server = json.loads(text)
            return f"ws://{server['ws_host']}:{server['ws_port']}/session"
        time.sleep(0.1)
    raise TimeoutError(f"firefox did not listen within {PATIENCE} s")


class Firefox:
    """The page of a Firefox.

    Args:
        url: of its BiDi session.
    """

    def __init__(self, url: str) -> None:
        import websocket  # of websocket-client

        self.console: list[str] = []  # messages and errors of the page so far
        self._socket = websocket.create_connection(url, timeout=PATIENCE, suppress_origin=True)
        self._sent = 0
        self.command("session.new", capabilities={})
        self.command("session.subscribe", events=["log.entryAdded"])
        (page,) = self.command("browsingContext.getTree")["contexts"]
        self._page = page["context"]
        self.command(
            "browsingContext.setViewport", context=self._page, viewport={"width": 1280, "height": 900}
        )

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command; its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._sent:
            if answer.get("method") == "log.entryAdded":
                self.console.append(f"{answer['params']['level']}: {answer['params']['text']}")
        assert answer["type"] == "success", answer
        return answer["result"]

    def open(self, url: str) -> None:
        """Load a page completely."""
        self.command("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, which may be a promise."""
        answer = self.command(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._page},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def move_mouse(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window, in pixels."""
        move = {"type": "pointerMove", "x": round(x), "y": round(y)}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move]}
        self.command("input.performActions", context=self._page, actions=[mouse])
