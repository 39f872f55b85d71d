"""A supervisor with programs that start in milliseconds, run as a process of its own: DATA_DIR, then what the programs do."""

import sys
from pathlib import Path

from studio.errors import UserError
from studio.supervisor.processes import Program
from studio.supervisor.programs import Place
from studio.supervisor.up import Hooks, Options, up

WEB = """
import http.server, socket, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *words): print(*words)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""
SLEEPER = "import time; print('asleep', flush=True); time.sleep(600)"
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.path.join(os.environ["STUDIO_DATA_DIR"], "deaf"), "w").close()
time.sleep(600)
"""
BROKEN = "raise SystemExit('no such template')"


def programs(place: Place, *, web: str, worker: str) -> list[Program]:
    return [
        Program("web", (sys.executable, "-uc", web, str(place.listener)), keeps=(place.listener,)),
        Program("worker", (sys.executable, "-uc", worker), after_end=lambda pid: (sys.executable, "-c", f"print('takes up after', {pid})")),
    ]


def main() -> None:
    data_dir, behaviour = Path(sys.argv[1]), sys.argv[2]
    web = BROKEN if behaviour == "broken web" else WEB
    worker = STUBBORN if behaviour == "stubborn worker" else SLEEPER
    hooks = Hooks(prepare=lambda: print("prepared", flush=True), setup_url=lambda url: f"{url}/setup/token/")
    options = Options(data_dir, port=0, workers=1, ready_file=data_dir / "ready.json")
    try:
        up(options, hooks, programs=lambda place: programs(place, web=web, worker=worker))
    except UserError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
