"""Launchers as processes of their own, to be sent signals; and what processes there are."""

import sys
from pathlib import Path

import toy_consortium


def processes_below(folder: Path) -> list[int]:
    """Process ids whose command line names something below *folder*."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(int(path.name))
    return found


def run_server(folder: Path) -> None:
    """Serve the toy run as `collegium-server run` does, until a signal."""
    from server.launch import open_server
    from server.server_file import read_server, read_sites
    from shared_models.processes import signals_end

    file = read_server(folder / "server.toml")
    (file.state / "runs" / "toy-run").mkdir(parents=True)
    with signals_end(), open_server(file, read_sites(file)) as server:
        server.run("toy-run", module="toy_server_app")


def run_site(config: Path) -> None:
    """Keep a toy site up as `collegium-client start` does, until a signal."""
    from client import launch
    from client.site_file import read_site
    from shared_models.processes import signals_end

    command = [sys.executable, "-P", str(toy_consortium.TESTS / "toy_agent.py"), "--config", str(config)]
    with signals_end():
        launch.run_site(read_site(config), config, tell=print, agent=command, ended=lambda: False)


if __name__ == "__main__":
    try:
        {"server": run_server, "site": run_site}[sys.argv[1]](Path(sys.argv[2]))
    except KeyboardInterrupt:
        sys.exit(130)
